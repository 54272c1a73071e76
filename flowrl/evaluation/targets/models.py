"""A model without a run as a target, or a LoRA on one. Networks are imported and loaded only when samples are made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowrl.errors import UserError, did_you_mean
from flowrl.evaluation.decoding import sampler_of_model
from flowrl.evaluation.target import Target, Variant, medium_of
from flowrl.evaluation.targets.request import Request, Samplers
from flowrl.evaluation.targets.world_models import base_models, model_folder, pipeline_call, sample_length, world_of

FAMILIES = ("diffusion", "masked", "causal", "control", "reward")


def model_target(text: str, request: Request) -> tuple[Target, Samplers]:
    """A world's base model, a folder or a repository of the hub. Raises UserError for what does not fit it."""
    family, options = _load_options(text, request)
    variant = Variant("model", lambda: _load(text, request.device, options), _identity(text, family, options))
    target = Target(
        text, "model", (variant,), medium_of(family, model_folder(text, family)), world=world_of(text, family)
    )
    return target, _samplers(text, family, request)


def lora_target(path: str, request: Request) -> tuple[Target, Samplers]:
    """A LoRA outside a run, on the model that the user or its own files name. Raises UserError where neither does."""
    from flowrl.models.adapters import load_adapter, read
    from flowrl.models.adapters.read import find_adapter

    adapter = read(path, request.model)
    base = request.model or adapter.base
    if not base:
        raise UserError(f"{path} does not say which model it adapts; name it with --model FOLDER_OR_HUB_ID")
    family, options = _load_options(base, request)

    def tuned() -> Any:
        policy = _load(base, request.device, {**options, "lora": adapter.options()})
        load_adapter(policy, path)
        return policy

    identity = _identity(base, family, options)
    variants = [Variant("base", lambda: _load(base, request.device, options), identity)] if request.base else []
    variants.append(Variant("tuned", tuned, {**identity, "lora": folder_digest(find_adapter(path)[1].parent)}))
    target = Target(
        path, "lora", tuple(variants), medium_of(family, model_folder(base, family)), world=world_of(base, family)
    )
    return target, _samplers(base, family, request)


def folder_digest(path: Path) -> str | None:
    """Changes when the files below ``path`` do: their names, sizes and times, not their gigabytes.

    None for a model that is not a folder, such as one of the hub.
    """
    if not path.is_dir():
        return None
    files = sorted(file for file in path.rglob("*") if file.is_file())
    facts = [(str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _load_options(model: str, request: Request) -> tuple[str, dict[str, Any]]:
    """``(family, arguments of load_policy)`` of a model without a run. Raises UserError for what does not fit it."""
    if request.family not in (None, *FAMILIES):
        raise UserError(f"--family: there is no family {request.family!r}{did_you_mean(str(request.family), FAMILIES)}")
    family = request.family or _family(model)
    medium_of(family, model_folder(model, family))
    export = request.export
    exported = dict(export.load) if export is not None and export.family == family else {}
    if family == "diffusion":
        guidance = next(iter(request.decodings.values())).guidance
        call = pipeline_call(model, request.call, guidance, request.size)
        return family, {"family": family, "call": call, **exported}
    if request.call is not None:
        raise UserError(f"{model} is a language model, which has no pipeline to call; leave call out")
    return family, {"family": family, **exported}


def _family(model: str) -> str:
    bases = base_models(model)
    if len(bases) > 1:
        raise UserError(f"--family: the world {model} has several base models; choose {' or '.join(sorted(bases))}")
    if bases:
        return next(iter(bases))
    from flowrl.models import family_of  # diffusers and transformers: only where a model's files must tell

    return family_of(model)


def _identity(model: str, family: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": model, **options, "weights": folder_digest(model_folder(model, family))}


def _samplers(model: str, family: str, request: Request) -> Samplers:
    if request.export is not None and request.export.family == family:
        return {label: request.export.sampler(decoding) for label, decoding in request.decodings.items()}
    world = world_of(model, family)
    length = sample_length(world)
    return {label: sampler_of_model(family, length, decoding, world) for label, decoding in request.decodings.items()}


def _load(model: str, device: str, options: Mapping[str, Any]) -> Any:
    from flowrl.models import load_policy  # diffusers: only when samples have to be made

    return load_policy(model, device=device, **options)

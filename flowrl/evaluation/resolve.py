"""From the word on the command line to what it names. Networks are imported and loaded only when samples are made."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flowrl.composition import build
from flowrl.config import Config
from flowrl.data import worlds
from flowrl.errors import UserError, did_you_mean
from flowrl.evaluation.decoding import Decoding, of_model, of_run
from flowrl.evaluation.origin import Origin, read_origin
from flowrl.evaluation.target import Arm, Medium, Target
from flowrl.files import sha256
from flowrl.records.sample_files import is_image_folder, read_folder
from flowrl.types import Sampler
from flowrl.worlds import shapes

SHAPES = "shapes"
LORA_FILES = ("adapter_config.json", "pytorch_lora_weights.safetensors")
MODEL_FILES = ("model_index.json", "config.json")
FAMILIES = ("diffusion", "masked", "causal")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
INCIDENTAL = ("dtype", "torch_dtype", "transformers_version")
"""Keys of a model's config that say nothing about its architecture, besides those with a leading underscore."""

Samplers = Mapping[str, Sampler]
"""By the label of the decoding (see ``decoding.grid``); none for images that exist."""


@dataclass(frozen=True)
class Wish:
    """What the user asked for beside the target; None is "as the target has it"."""

    checkpoint: str = "best"
    decodings: Mapping[str, Decoding] = field(default_factory=lambda: {"": Decoding()})
    call: Mapping[str, Any] | None = None
    base: bool = True
    family: str | None = None
    """Which base model of a world that has several."""
    device: str = "auto"
    """Of a model that is not a run's."""
    model: str | None = None
    """What a LoRA folder adapts, where it does not say."""
    origin: Origin | None = None
    """What the target's own files say of the run it came from."""


def resolve(text: str, wish: Wish) -> tuple[Target, Samplers]:
    """The target and the samplers that make its samples.

    Raises UserError for a word that names nothing, or a LoRA whose base model is not known.
    """
    path = Path(text)
    wish = _remembered(path, wish)
    adapter = _is_lora(path, text, wish)
    if wish.model is not None and not adapter:
        raise UserError(f"--model: only a LoRA folder needs to be told its model, and {text} is none; leave it out")
    if adapter and not path.is_dir():
        return _lora(text, wish)
    if not path.exists():
        if text in worlds() or HUB_ID.fullmatch(text):
            return _model(text, wish)
        known = did_you_mean(text, worlds())
        raise UserError(f"there is no {text!r} here; give a model, a run, a LoRA or an image folder{known}")
    if (path / "config.yaml").is_file():
        return _run(path, wish)
    checkpoint = next((above for above in (path, path.parent) if _is_checkpoint(above)), None)
    if checkpoint is not None:  # RUN/checkpoints/step_000123, or its lora/ or peft/
        return _run(checkpoint.absolute().parent.parent, replace(wish, checkpoint=str(checkpoint)))
    if is_image_folder(path):
        return Target(text, "images", entries=tuple(read_folder(path)), folder=path), {}
    if adapter:
        return _lora(text, wish)
    if any((path / name).is_file() for name in MODEL_FILES):
        return _model(text, wish)
    raise UserError(
        f"{text} is none of: a pipeline (model_index.json), a language model (config.json), a run (config.yaml), "
        "a LoRA (adapter_config.json, or a .safetensors file), images in GenEval's layout "
        "(00000/metadata.jsonl), or with prompts.jsonl or prompts.txt"
    )


def _remembered(path: Path, wish: Wish) -> Wish:
    """The wish, with what an export says of its run where the user says nothing."""
    if any(_is_checkpoint(above) for above in (path, path.parent)):  # its run says it
        return wish
    origin = read_origin(path)
    if origin is None:
        return wish
    call = origin.called(next(iter(wish.decodings.values())), wish.call)
    return replace(wish, origin=origin, family=wish.family or origin.family, call=call or None)


def _is_lora(path: Path, text: str, wish: Wish) -> bool:
    """Whether the word names an adapter: by its files, or as a repository of the hub that holds nothing else."""
    if path.is_file():
        return path.suffix == ".safetensors"
    if path.is_dir() and (_is_checkpoint(path.parent) or (path / "config.yaml").is_file()):
        return False
    if any((path / name).is_file() for name in LORA_FILES):
        return True
    files = path.is_dir() and any(path.glob("*.safetensors"))
    hub = not path.exists() and text not in worlds() and text.count("/") >= 1
    if not files and not hub:
        return False
    from flowrl.models.adapters import is_adapter_name  # torch and diffusers: only where the name does not tell

    return is_adapter_name(text) or (hub and wish.model is not None)


def _is_checkpoint(path: Path) -> bool:
    run = path.absolute().parent.parent
    return path.name.startswith("step_") and (path / "manifest.json").is_file() and (run / "config.yaml").is_file()


def _run(run: Path, wish: Wish) -> tuple[Target, Samplers]:
    """A run before and after; its sampler and weight set are those of its config's held-out evaluation."""
    # Here, not above: the run directory writes images through this package, and diffusers is slow to import.
    from flowrl.startup.policies import evaluation_weights, open_policy, policy_of_run
    from flowrl.startup.resume import find_checkpoint

    config = Config.of_run(run / "config.yaml")
    family = build(config.algorithm).family
    if wish.call is not None:
        raise UserError("a run is evaluated with the call of its own config; export it to evaluate it with another")
    if wish.family not in (None, family):
        raise UserError(f"--family: {run} is a run of a {family} model, found {wish.family!r}; leave --family out")
    named = wish.checkpoint in ("best", "latest")
    checkpoint = find_checkpoint(run, wish.checkpoint) if named else find_checkpoint(Path(wish.checkpoint))
    options = config.model.model_dump(mode="json", exclude={"device"})
    base_identity = {**options, "weights": _fingerprint(_folder(config.model.path, family))}
    tuned_identity = {
        **base_identity,
        "run": str(run),
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": sha256(checkpoint / "manifest.json"),
        "weight_set": evaluation_weights(config),
    }
    tuned = Arm("tuned", lambda: policy_of_run(run, checkpoint), tuned_identity, evaluation_weights(config))
    arms = (Arm("base", lambda: open_policy(config), base_identity), tuned) if wish.base else (tuned,)
    samplers = {label: of_run(config, decoding) for label, decoding in wish.decodings.items()}
    world = _world(config.model.path, family)
    return Target(str(run), "run", arms, _medium(family), world=world, config=config), samplers


def _model(text: str, wish: Wish) -> tuple[Target, Samplers]:
    family, options = _options(text, wish)
    arm = Arm("model", lambda: _load(text, wish.device, options), _identity(text, family, options))
    return Target(text, "model", (arm,), _medium(family), world=_world(text, family)), _samplers(text, family, wish)


def _lora(path: str, wish: Wish) -> tuple[Target, Samplers]:
    """A LoRA outside a run, on the model that the user or its own files name."""
    from flowrl.models.adapters import load_adapter, read
    from flowrl.models.adapters.read import locate

    adapter = read(path, wish.model)
    base = wish.model or adapter.base
    if not base:
        raise UserError(f"{path} does not say which model it adapts; name it with --model FOLDER_OR_HUB_ID")
    family, options = _options(base, wish)

    def tuned() -> Any:
        policy = _load(base, wish.device, {**options, "lora": adapter.options()})
        load_adapter(policy, path)
        return policy

    identity = _identity(base, family, options)
    arms = [Arm("base", lambda: _load(base, wish.device, options), identity)] if wish.base else []
    arms.append(Arm("tuned", tuned, {**identity, "lora": _fingerprint(locate(path)[1].parent)}))
    target = Target(path, "lora", tuple(arms), _medium(family), world=_world(base, family))
    return target, _samplers(base, family, wish)


def _options(model: str, wish: Wish) -> tuple[str, dict[str, Any]]:
    """``(family, arguments of load_policy)`` of a model without a run. Raises UserError for an unfit wish."""
    if wish.family not in (None, *FAMILIES):
        raise UserError(f"--family: there is no family {wish.family!r}{did_you_mean(str(wish.family), FAMILIES)}")
    family = wish.family or _family(model)
    load = dict(wish.origin.load) if wish.origin is not None and wish.origin.family == family else {}
    if family == "diffusion":
        return family, {"family": family, "call": _call(model, wish), **load}
    if wish.call is not None:
        raise UserError(f"{model} is a language model, which has no pipeline to call; leave call out")
    return family, {"family": family, **load}


def _family(model: str) -> str:
    bases = _bases(model)
    if len(bases) > 1:
        raise UserError(f"--family: the world {model} has several base models; choose {' or '.join(sorted(bases))}")
    if bases:
        return next(iter(bases))
    from flowrl.models import family_of  # diffusers and transformers: only where a model's files must tell

    return family_of(model)


def _medium(family: str) -> Medium:
    return "images" if family == "diffusion" else "completions"


def _identity(model: str, family: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": model, **options, "weights": _fingerprint(_folder(model, family))}


def _samplers(model: str, family: str, wish: Wish) -> Samplers:
    if wish.origin is not None and wish.origin.family == family:
        return {label: wish.origin.sampler(decoding) for label, decoding in wish.decodings.items()}
    world = _world(model, family)
    length = None if world is None else getattr(_module(world), "LENGTH", None)
    return {label: of_model(family, length, decoding) for label, decoding in wish.decodings.items()}


def _module(world: str) -> Any:
    return importlib.import_module(f"flowrl.worlds.{world}")


def _bases(world: str) -> dict[str, Path]:
    """The base models of a world by family; none for a word that is no world's name."""
    if world == SHAPES:
        return {"diffusion": shapes.BASE}
    return getattr(_module(world), "BASES", {}) if world in worlds() else {}


def _world(model: str, family: str) -> str | None:
    """The world a model belongs to: named so, or of the architecture of its base (an export of a run)."""
    if model in worlds():
        return model
    file = Path("transformer") / "config.json" if family == "diffusion" else Path("config.json")
    bases = {world: base / file for world in worlds() if (base := _bases(world).get(family))}
    own = _architecture(Path(model) / file)
    return next((world for world, base in bases.items() if own is not None and own == _architecture(base)), None)


def _architecture(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    settings = json.loads(file.read_text(encoding="utf-8"))
    return {key: value for key, value in settings.items() if not key.startswith("_") and key not in INCIDENTAL}


def _call(model: str, wish: Wish) -> dict[str, Any]:
    """Arguments of the pipeline's call; an export of a world's model is called as the world's own."""
    if _world(model, "diffusion") != SHAPES:
        return dict(wish.call or {})
    # The world's call has no guidance, and a pipeline loaded without it has no unconditional branch to turn on later.
    guidance = next(iter(wish.decodings.values())).guidance
    guided = {"guidance_scale": guidance} if guidance not in (None, 1.0) else {}
    return {**shapes.CALL, **guided, **(wish.call or {})}


def _folder(model: str, family: str) -> Path:
    return _bases(model).get(family, Path(model))


def _fingerprint(path: Path) -> str | None:
    """Changes when the files below ``path`` do: their names, sizes and times, not their gigabytes.

    None for a model that is not a folder, such as one of the hub.
    """
    if not path.is_dir():
        return None
    files = sorted(file for file in path.rglob("*") if file.is_file())
    facts = [(str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _load(model: str, device: str, options: Mapping[str, Any]) -> Any:
    from flowrl.models import load_policy  # diffusers: only when samples have to be made

    return load_policy(model, device=device, **options)

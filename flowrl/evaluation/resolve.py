"""From the word on the command line to what it names. Networks are imported and loaded only when images are made."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowrl.algorithms import build
from flowrl.config import Config
from flowrl.errors import UserError, did_you_mean
from flowrl.evaluation.layout import is_image_folder, read_folder
from flowrl.evaluation.target import Arm, Target
from flowrl.runtime.files import sha256
from flowrl.samplers.flow import FlowSampler
from flowrl.worlds import shapes

if TYPE_CHECKING:
    from flowrl.models.diffusion.policy import DiffusionPolicy

SHAPES = "shapes"
STEPS = 28
"""Of a model without a run; SD3's own default."""
LORA_FILES = ("adapter_config.json", "pytorch_lora_weights.safetensors")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Wish:
    """What the user asked for beside the target; None is "as the target has it"."""

    checkpoint: str = "best"
    steps: int | None = None
    guidance: float | None = None
    call: Mapping[str, Any] | None = None
    base: bool = True


def resolve(text: str, wish: Wish) -> tuple[Target, FlowSampler | None]:
    """The target and the sampler that makes its images (None for images that exist).

    Raises UserError for a word that names nothing, or a LoRA whose base model is not known.
    """
    path = Path(text)
    if not path.exists():
        if text == SHAPES or HUB_ID.fullmatch(text):
            return _model(text, wish)
        known = did_you_mean(text, [SHAPES])
        raise UserError(f"there is no {text!r} here; give a model, a run, a LoRA or an image folder{known}")
    if (path / "config.yaml").is_file():
        return _run(path, wish)
    checkpoint = next((above for above in (path, path.parent) if _is_checkpoint(above)), None)
    if checkpoint is not None:  # RUN/checkpoints/step_000123, or its lora/ or peft/
        return _run(checkpoint.absolute().parent.parent, replace(wish, checkpoint=str(checkpoint)))
    if is_image_folder(path):
        return Target(text, "images", entries=tuple(read_folder(path)), folder=path), None
    if any((path / name).is_file() for name in LORA_FILES):
        return _lora(path, wish)
    if (path / "model_index.json").is_file():
        return _model(text, wish)
    raise UserError(
        f"{text} is none of: a diffusers model (model_index.json), a run (config.yaml), a LoRA (adapter_config.json), "
        "images in GenEval's layout (00000/metadata.jsonl) or with prompts.jsonl"
    )


def _is_checkpoint(path: Path) -> bool:
    run = path.absolute().parent.parent
    return path.name.startswith("step_") and (path / "manifest.json").is_file() and (run / "config.yaml").is_file()


def _run(run: Path, wish: Wish) -> tuple[Target, FlowSampler]:
    """A run before and after; steps, guidance and the weight set are those of its config's held-out evaluation."""
    # Here, not above: the run directory writes images through this package, and diffusers is slow to import.
    from flowrl.runtime.restore import evaluated, open_policy, policy_of_run
    from flowrl.runtime.resume import locate

    if wish.call is not None:
        raise UserError("a run is evaluated with the call of its own config; export it to evaluate it with another")
    config = Config.load(run / "config.yaml")
    trained = build(config.algorithm).sampler
    assert isinstance(trained, FlowSampler)
    named = wish.checkpoint in ("best", "latest")
    checkpoint = locate(run, wish.checkpoint) if named else locate(Path(wish.checkpoint))
    options = config.model.model_dump(mode="json", exclude={"device"})
    base_identity = {**options, "weights": _fingerprint(_folder(config.model.path))}
    tuned_identity = {
        **base_identity,
        "run": str(run),
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": sha256(checkpoint / "manifest.json"),
        "weight_set": evaluated(config),
    }
    tuned = Arm("tuned", lambda: policy_of_run(run, checkpoint), tuned_identity, evaluated(config))
    arms = (Arm("base", lambda: open_policy(config), base_identity), tuned) if wish.base else (tuned,)
    guidance = next((g for g in (wish.guidance, config.eval.guidance, trained.guidance) if g is not None), None)
    sampler = FlowSampler(steps=wish.steps or config.eval.steps or trained.steps, guidance=guidance)
    return Target(str(run), "run", arms, world=_world(config.model.path), config=config), sampler


def _model(text: str, wish: Wish) -> tuple[Target, FlowSampler]:
    call = _call(text, wish)
    identity = {"model": text, "call": call, "weights": _fingerprint(_folder(text))}
    arm = Arm("model", lambda: _load(text, call), identity)
    sampler = FlowSampler(steps=wish.steps or STEPS, guidance=wish.guidance)
    return Target(text, "model", (arm,), world=_world(text)), sampler


def _lora(path: Path, wish: Wish) -> tuple[Target, FlowSampler]:
    """A LoRA outside a run; its base model is what its own config says."""
    file = path / "adapter_config.json"
    options = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    base = options.get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"{path} does not say which model it adapts; evaluate the run it came from, or export it merged"
        )
    call = _call(base, wish)

    def tuned() -> DiffusionPolicy:
        from flowrl.models import LoRAOptions, load_policy

        targets = options.get("target_modules")
        named = tuple(targets) if isinstance(targets, list) else None
        lora = LoRAOptions(rank=options.get("r", 8), alpha=options.get("lora_alpha", 8), targets=named)
        policy = load_policy(base, call=call, lora=lora)
        policy.load_adapter(path)
        return policy

    identity = {"model": base, "call": call, "weights": _fingerprint(_folder(base))}
    arms = [Arm("base", lambda: _load(base, call), identity)] if wish.base else []
    arms.append(Arm("tuned", tuned, {**identity, "lora": _fingerprint(path)}))
    sampler = FlowSampler(steps=wish.steps or STEPS, guidance=wish.guidance)
    return Target(str(path), "lora", tuple(arms), world=_world(base)), sampler


def _world(model: str) -> str | None:
    """The world a model belongs to: named so, or of the architecture of its base (an export of a run)."""
    if model == SHAPES:
        return SHAPES
    own, ours = Path(model) / "transformer" / "config.json", shapes.BASE / "transformer" / "config.json"
    if not (own.is_file() and ours.is_file()):
        return None
    settings = [json.loads(path.read_text(encoding="utf-8")) for path in (own, ours)]
    public = [{key: value for key, value in found.items() if not key.startswith("_")} for found in settings]
    return SHAPES if public[0] == public[1] else None


def _call(model: str, wish: Wish) -> dict[str, Any]:
    """Arguments of the pipeline's call; an export of a world's model is called as the world's own."""
    if _world(model) != SHAPES:
        return dict(wish.call or {})
    # The world's call has no guidance, and a pipeline loaded without it has no unconditional branch to turn on later.
    guided = {"guidance_scale": wish.guidance} if wish.guidance not in (None, 1.0) else {}
    return {**shapes.CALL, **guided, **(wish.call or {})}


def _folder(model: str) -> Path:
    return shapes.BASE if model == SHAPES else Path(model)


def _fingerprint(path: Path) -> str | None:
    """Changes when the files below ``path`` do: their names, sizes and times, not their gigabytes.

    None for a model that is not a folder, such as one of the hub.
    """
    if not path.is_dir():
        return None
    files = sorted(file for file in path.rglob("*") if file.is_file())
    facts = [(str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _load(model: str, call: Mapping[str, Any]) -> DiffusionPolicy:
    from flowrl.models import load_policy  # diffusers: only when images have to be made

    return load_policy(model, call=dict(call))

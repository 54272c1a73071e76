"""A training run as a target: the model before training and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowrl.composition import build
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.evaluation.decoding import sampler_of_run
from flowrl.evaluation.target import Target, Variant, medium_of
from flowrl.evaluation.targets.models import folder_digest
from flowrl.evaluation.targets.request import Request, Samplers
from flowrl.evaluation.targets.world_models import model_folder, world_of
from flowrl.files import sha256


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint inside of its run."""
    run = path.absolute().parent.parent
    return path.name.startswith("step_") and (path / "manifest.json").is_file() and (run / "config.yaml").is_file()


def run_target(run: Path, request: Request) -> tuple[Target, Samplers]:
    """A run before and after; its sampler and weight set are those of its config's held-out evaluation."""
    from flowrl.startup.policies import evaluation_weights, open_policy, policy_of_run  # diffusers is slow to import
    from flowrl.startup.resume import find_checkpoint

    config = Config.of_run(run / "config.yaml")
    family = build(config.algorithm).family
    medium = medium_of(family, model_folder(config.model.path, family), config.model.image_tokenizer)
    if request.call is not None:
        raise UserError("a run is evaluated with the call of its own config; export it to evaluate it with another")
    if request.family not in (None, family):
        raise UserError(f"--family: {run} is a run of a {family} model, found {request.family!r}; leave --family out")
    named = request.checkpoint in ("best", "latest")
    checkpoint = find_checkpoint(run, request.checkpoint) if named else find_checkpoint(Path(request.checkpoint))
    base = _base_identity(config, family)
    tuned = {**base, **_checkpoint_identity(run, checkpoint), "weight_set": evaluation_weights(config)}
    variants = [Variant("base", lambda: open_policy(config), base)] if request.base else []
    variants.append(Variant("tuned", lambda: policy_of_run(run, checkpoint), tuned, evaluation_weights(config)))
    samplers = {label: sampler_of_run(config, decoding) for label, decoding in request.decodings.items()}
    world = world_of(config.model.path, family)
    return Target(str(run), "run", tuple(variants), medium, world=world, config=config), samplers


def _base_identity(config: Config, family: str) -> dict[str, Any]:
    options = config.model.model_dump(mode="json", exclude={"device"})
    return {**options, "weights": folder_digest(model_folder(config.model.path, family))}


def _checkpoint_identity(run: Path, checkpoint: Path) -> dict[str, Any]:
    digest = sha256(checkpoint / "manifest.json")
    return {"run": str(run), "checkpoint": checkpoint.name, "checkpoint_sha256": digest}

"""A run's trained weights, written for other tools and verified."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.models import export_formats, export_policy
from flowrl.records.directory import RunDirectory
from flowrl.runtime.display import Display
from flowrl.startup.policies import evaluation_weights, make_live, policy_of_run


@dataclass(frozen=True)
class Exported:
    """What was written."""

    to: str
    """The format."""
    weights: str
    """The weight set."""
    difference: float
    """Largest difference of the predictions after reloading."""


def export(
    run: Path, to: str | None, out: Path, display: Display, *, checkpoint: str = "best", weights: str | None = None
) -> Exported:
    """Write the weight set ``weights`` (by default the one that the run evaluates) of a checkpoint as ``to`` (see
    `flowrl.cli.options.ExportFormat`; by default what the model's own library loads) into the new folder ``out``, load
    it again and compare. Raises `UserError` for a folder that is not empty, a run without checkpoints, and weights that
    the format cannot hold."""
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out: {out} already exists and is not empty; name a new folder")
    config = Config.of_run(RunDirectory.open(run).config_path)
    chosen = weights or evaluation_weights(config)
    display.stage(f"loading the model {config.model.path}")
    policy = policy_of_run(run, checkpoint)
    make_live(policy, chosen)
    display.stage("writing, loading again and comparing")
    to = to or export_formats(policy)[0]
    return Exported(to, chosen, export_policy(policy, out, to))

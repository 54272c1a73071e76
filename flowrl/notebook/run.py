"""A run that was trained, as an object: its metrics, its model, samples of it, and its exports."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from PIL import Image

from flowrl.config import Config
from flowrl.records.directory import CONFIG, RunDirectory
from flowrl.runtime.display import Display

if TYPE_CHECKING:  # diffusers and transformers: only when the model is wanted
    from flowrl.models import LoadedPolicy

REWARD, HELDOUT = "reward/mean", "eval/reward/mean"


class Run(os.PathLike[str]):
    """A run's directory. What `flowrl.train` returns, and ``flowrl.Run("runs/quickstart")`` of an older one; it can
    stand wherever a path can. Raises `UserError` where there is no run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = RunDirectory.open(Path(path).expanduser()).path

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        metrics = self.metrics
        scores = self.column(HELDOUT)
        told = f", held-out reward {scores[0][1]:.3f} -> {scores[-1][1]:.3f}" if len(scores) > 1 else ""
        return f"Run({str(self.path)!r}, {metrics[-1]['step'] if metrics else 0} iterations{told})"

    @property
    def config(self) -> Config:
        """The resolved config."""
        return Config.of_run(self.path / CONFIG)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, one for each iteration (``step``; 0 is the evaluation before training). A
        table of them is ``pandas.DataFrame(run.metrics)``."""
        return RunDirectory(self.path).metrics()

    def column(self, name: str = REWARD) -> list[tuple[int, float]]:
        """``(step, value)`` of a metric, where it was measured; held-out ones begin with ``eval/``."""
        found = ((line["step"], line.get(name)) for line in self.metrics)
        return [(step, value) for step, value in found if value is not None and math.isfinite(value)]

    def load_policy(self, checkpoint: str = "best") -> LoadedPolicy:
        """The trained policy, of the checkpoint ``best``, ``latest`` or a path."""
        from flowrl.startup.policies import policy_of_run

        return policy_of_run(self.path, checkpoint)

    def sample(
        self, prompts: Sequence[str], count: int = 1, seed: int = 0, *, base: bool = False, checkpoint: str = "best"
    ) -> list[Any]:
        """``count`` samples of each prompt, group by group, by the sampler of the run's evaluation: Pillow images or
        texts. ``base``: of the model before training; at an equal seed it gets the same noise."""
        from flowrl.commands.sample import SampleOptions, sample

        with TemporaryDirectory() as folder:
            options = SampleOptions(count, seed, checkpoint=checkpoint, base=base)
            written = sample(str(self.path), [prompts] if isinstance(prompts, str) else prompts, Path(folder), options)
            if written.completions:
                return [line["completion"] for line in written.completions]
            return [_read(path) for path in written.files]

    def export(self, out: str | os.PathLike[str], to: str = "merged", *, checkpoint: str = "best") -> Path:
        """Write the trained weights for other tools into the new folder ``out``, load them again and compare. ``to``:
        ``merged`` (the whole model, for diffusers or transformers), ``diffusers`` or ``peft`` (its LoRA)."""
        from flowrl.commands.export import export

        with Display(silent=True) as display:
            export(self.path, to, Path(out), display, checkpoint=checkpoint)
        return Path(out)


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")

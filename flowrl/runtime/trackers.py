"""Experiment trackers: TensorBoard's own writer and the package of Weights & Biases."""

from __future__ import annotations

import importlib
import importlib.util
import math
import netrc
import urllib.parse
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from PIL import Image

from flowrl.config import Config
from flowrl.errors import UserError, describe_exception, first_line, missing_package
from flowrl.records.directory import RunDirectory
from flowrl.records.sample_files import read_json_lines

SILENT = ("offline", "dryrun", "disabled")
"""Modes of Weights & Biases that need no login."""
FINISH_S = 300
"""Longest wait for an upload at the end of a run; what is left stays on disk."""


class _Tracker(Protocol):
    name: str
    place: str
    """Where to look, in a few words."""

    def log(self, metrics: Mapping[str, float], step: int, saved: Sequence[_Saved]) -> None:
        """Show the metrics of a step, and the samples that were saved of it."""
        ...

    def close(self, failed: bool) -> None:
        """Send what is buffered; ``failed`` says how the run ended."""
        ...


@dataclass(frozen=True)
class _Saved:
    """The samples of one step as the run directory holds them."""

    kind: str
    """``samples`` (trained on) or ``heldout`` (of an evaluation)."""
    folder: Path
    rows: Sequence[Mapping[str, Any]]

    @property
    def pictures(self) -> list[tuple[Path, str]]:
        """Files and captions."""
        return [(self.folder / row["file"], _caption(row)) for row in self.rows if "file" in row]


class Trackers:
    """What a run shows elsewhere: its metrics, and the pictures and completions that it saves.

    A tracker is a witness, not a part of the run: one that fails while the run goes on is left out from there, and
    ``tell`` says so once. Use as a context manager.
    """

    def __init__(self, config: Config | None, run: RunDirectory, resumed: int | None = None) -> None:
        """``resumed``: the iteration a run goes on from; its trackers go on with the same curves, and forget what was
        shown after it as far as they can (TensorBoard can; Weights & Biases draws it over the ``step`` axis again).

        Raises:
            UserError: for a tracker that cannot begin: no login, no network.
        """
        self._run = run
        self._notes: list[str] = []
        self._open: list[_Tracker] = []
        if config is None:
            return
        try:
            for name in dict.fromkeys(config.log.trackers):
                self._open.append(_OPENERS[name](run.path, config, resumed))
        except BaseException:
            self.close(failed=True)
            raise
        self._notes += [f"{tracker.name}: {tracker.place}" for tracker in self._open]

    @classmethod
    def none(cls, run: RunDirectory) -> Self:
        """Those of a rank that writes nothing."""
        return cls(None, run)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=error is not None)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send the finite values of one step, and the samples that the run directory has of it."""
        if not self._open:
            return
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        saved = [_Saved(kind, folder, _rows(folder)) for kind, folder in self._run.saved(step).items()]
        self._each(lambda tracker: tracker.log(finite, step, saved))

    def close(self, failed: bool = False) -> None:
        """Send what is buffered."""
        self._each(lambda tracker: tracker.close(failed))
        self._open.clear()

    def tell(self, note: Callable[[str], None]) -> None:
        """Pass on what a person should read, each sentence once: where to look, and which tracker failed."""
        notes, self._notes = self._notes, []
        for sentence in notes:
            note(sentence)

    def _each(self, work: Callable[[_Tracker], None]) -> None:
        for tracker in list(self._open):
            try:
                work(tracker)
            except Exception as error:  # whatever a tracker's package raises, the run goes on
                self._open.remove(tracker)
                self._notes.append(f"{tracker.name} failed and gets nothing more of this run: {first_line(error)}")


def check_trackers(names: Sequence[str]) -> None:
    """Raise `UserError` for a tracker that is not installed or broken, or that needs a login that is not there."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise missing_package(f"log.trackers: {name}", name, "tracking", "remove it")
        try:
            importlib.import_module(_MODULES[name])
        except Exception as error:  # it is there, and something in it or below it does not work
            raise UserError(
                f"log.trackers: {name} cannot be imported ({describe_exception(error)}); mend its installation, or"
                " remove it"
            ) from error
    if "wandb" in names:
        import wandb

        settings = wandb.setup().settings
        if settings.mode in SILENT or settings.api_key or settings.identity_token_file:
            return
        if not _in_netrc(urllib.parse.urlsplit(settings.base_url).hostname or ""):
            raise UserError(
                f"log.trackers: wandb has no login for {settings.base_url}; run `wandb login`, or set WANDB_API_KEY, or"
                " WANDB_MODE=offline to keep the run on this machine"
            )


def _in_netrc(host: str) -> bool:
    """Whether the file of logins that wandb writes knows a host."""
    for place in (Path("~/.netrc"), Path("~/_netrc")):
        try:
            if netrc.netrc(place.expanduser()).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError, RuntimeError):  # no file, not one that can be read, no home
            continue
    return False


class _TensorBoard:
    """Event files below ``<run>/tensorboard``."""

    name = "tensorboard"

    def __init__(self, run: Path, config: Config, resumed: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run / "tensorboard"
        self.place = f"tensorboard --logdir {folder}"
        # what an interrupted session wrote after the checkpoint is hidden: it is about to happen again
        self._writer = SummaryWriter(str(folder), purge_step=0 if resumed is None else resumed + 1)
        if resumed is None:
            self._writer.add_text("config", _block(config.to_yaml()), 0)

    def log(self, metrics: Mapping[str, float], step: int, saved: Sequence[_Saved]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        for found in saved:
            pictures = [np.asarray(Image.open(path).convert("RGB")) for path, _ in found.pictures]
            if pictures:
                self._writer.add_images(f"{found.kind}/pictures", np.stack(pictures), step, dataformats="NHWC")
            self._writer.add_text(f"{found.kind}/texts", "\n\n---\n\n".join(map(_as_markdown, found.rows)), step)
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()


class _WandB:
    """A run of Weights & Biases, whose files lie below ``<run>/wandb``."""

    name = "wandb"

    def __init__(self, run: Path, config: Config, resumed: int | None) -> None:
        import wandb

        identity = run / "wandb" / "run_id"
        if resumed is None or not identity.is_file():
            identity.parent.mkdir(parents=True, exist_ok=True)
            identity.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        options: dict[str, Any] = {"silent": True, "console": "off"}  # the terminal belongs to the run's own progress
        if "finish_timeout" in wandb.Settings.model_fields:  # a network that is gone must not hold a finished run
            options["finish_timeout"] = FINISH_S
        try:
            self._run = wandb.init(
                project=config.log.project,
                name=run.name,
                id=identity.read_text("utf-8").strip(),
                resume="allow",
                reinit="create_new",  # a run that the calling program has open stays its own
                dir=str(run),
                config=config.model_dump(mode="json"),
                settings=wandb.Settings(**options),
            )
        except wandb.Error as error:
            raise UserError(
                f"log.trackers: wandb could not begin ({first_line(error)}); log in again, or keep the run on this"
                " machine with WANDB_MODE=offline"
            ) from error
        # an axis of our own: wandb's counter cannot go back to the checkpoint that a run goes on from
        self._run.define_metric("*", step_metric="step")
        self.place = _address(self._run)

    def log(self, metrics: Mapping[str, float], step: int, saved: Sequence[_Saved]) -> None:
        import wandb

        sent: dict[str, Any] = {**metrics, "step": step}
        for found in saved:
            if found.pictures:
                pictures = [wandb.Image(str(path), caption=caption) for path, caption in found.pictures]
                sent[f"{found.kind}/pictures"] = pictures
            texts = [row for row in found.rows if "completion" in row]
            if texts:
                names = list(texts[0]["rewards"])
                cells: list[Any] = [
                    [r["prompt"], r["completion"], r["total"], *(r["rewards"][n] for n in names)] for r in texts
                ]
                table = wandb.Table(columns=["prompt", "completion", "total", *names], data=cells)
                sent[f"{found.kind}/texts"] = table
        self._run.log(sent)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _address(run: Any) -> str:
    if run.disabled:
        return "disabled"
    return f"offline; send it with `wandb sync {run.settings.sync_dir}`" if run.offline else run.url


_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}
_OPENERS: dict[str, Callable[..., _Tracker]] = {"tensorboard": _TensorBoard, "wandb": _WandB}


def _rows(folder: Path) -> list[dict[str, Any]]:
    return read_json_lines(folder / "samples.jsonl")


def _caption(row: Mapping[str, Any]) -> str:
    """A picture's prompt and what it scored."""
    scores = ", ".join(f"{name} {_number(value)}" for name, value in row["rewards"].items())
    return f"{row['prompt']} | total {_number(row['total'])} ({scores})"


def _as_markdown(row: Mapping[str, Any]) -> str:
    """A sample in Markdown: its prompt and scores, and its completion if it is a text."""
    completion = f"\n\n{_block(row['completion'])}" if "completion" in row else ""
    return _block(_caption(row)) + completion


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _block(text: str) -> str:
    """Markdown that shows a text as it is."""
    return "\n".join(f"    {line}" for line in text.split("\n"))

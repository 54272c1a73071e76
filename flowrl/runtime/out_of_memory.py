"""Running out of memory, in words: which phase did, and what makes it smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flowrl.config import Config
from flowrl.errors import UserError, first_line, is_out_of_memory
from flowrl.runtime.timing import PhaseTimer


@contextmanager
def explain_out_of_memory(
    config: Config, phase: str, timer: PhaseTimer | None = None, save: Callable[[], None] | None = None
) -> Iterator[None]:
    """Running out of memory inside becomes a `UserError` that names the phase and the keys to lower. ``phase`` is what
    is done inside, where no phase of the ``timer`` failed. Before that or any other `UserError` goes on, ``save`` keeps
    what was finished; where it fails as well, the message says both."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, UserError) as error:
        mistake = isinstance(error, UserError)
        if not mistake and not is_out_of_memory(error):
            raise
        message = str(error) if mistake else _explained(config, (timer and timer.failed) or phase, error)
        try:
            if save is not None:
                save()
        except Exception as further:  # whatever it is, it must not hide what came first
            raise UserError(f"{message}; what was finished could not be saved: {first_line(further)}") from error
        if mistake:
            raise
        raise UserError(message) from error


def _explained(config: Config, phase: str, error: BaseException) -> str:
    doing, remedy = _advice(config, phase)
    return f"out of memory while {doing}: {remedy} ({first_line(error)})"


def _advice(config: Config, phase: str) -> tuple[str, str]:
    """What the phase does, and what to lower."""
    train, evaluation = config.train, config.eval
    smaller = "model.dtype=bfloat16" if config.model.dtype == "float32" else "a smaller model"
    if config.model.full:
        smaller += ", or train LoRA instead of model.full"
    recompute = "" if config.model.gradient_checkpointing else ", set model.gradient_checkpointing=true"
    batch, key = (evaluation.batch, "eval.batch") if evaluation.batch else (train.sample_batch, "train.sample_batch")
    tokens = train.micro_tokens
    portion = f"micro_batch={train.micro_batch}" if tokens is None else f"micro_tokens={tokens}"
    return {
        "load": ("loading the model", f"use {smaller}, or another model.device"),
        "sample": ("sampling", f"lower train.sample_batch={train.sample_batch}, or use {smaller}"),
        "decode": ("decoding samples", f"lower train.sample_batch={train.sample_batch}"),
        "reward": ("scoring samples", "give the rewards a batch_size, or a device of their own"),
        "eval": ("evaluating", f"lower {key}={batch}, or eval.samples={evaluation.samples}"),
        "monitor": ("checking samples for alarms", f"lower monitor.samples={config.monitor.samples}"),
        "save": ("saving a checkpoint", "its exports open the model again; use another model.device for training"),
    }.get(
        phase,
        (
            "updating the policy" if phase == "update" else phase,
            f"lower train.{portion}{recompute}, or use {smaller}",
        ),
    )

"""A few iterations of a run on several processes: gradients, weights and metrics, to be compared with those of one."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import Tensor

from tests.forks import forking

LENGTHS = {"countdown": 14, "sudoku": 16}


@dataclass
class Trained:
    """What a process has seen of a run."""

    gradients: list[Tensor] = field(default_factory=list)
    """[parameters] of every optimiser step, all parameters after each other, as the optimiser gets them."""
    weights: list[Tensor] = field(default_factory=list)
    """[sets x parameters] after every iteration: all weight sets."""
    metrics: list[dict[str, float]] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    """How many groups were sampled or kept here, in every iteration."""
    forwards: int = 0
    """Network rows, of all processes."""
    heldout: dict[str, float] = field(default_factory=dict)
    state: tuple[dict[str, Tensor], dict[str, Any]] | None = None
    """What a checkpoint would hold at the end."""


@dataclass(frozen=True)
class Work:
    """What is to be done with a config."""

    iterations: int
    """The number at the end."""
    evaluate: bool = False
    start: tuple[dict[str, Tensor], dict[str, Any]] | None = None
    """What to go on from."""


def config_of(preset: str, base: str, **changes: Any) -> dict[str, Any]:
    """A small run on an embedded world; keys of ``changes`` with a dot or two, as ``train__updates``."""
    from flowrl.composition import build
    from tests.contract.toys import taken

    family = build(preset).family
    sizes: dict[str, Any] = {
        "diffusion": {"sampler": {"steps": 3}},
        "causal": {"length": LENGTHS.get(base, 0)},
        "masked": {"length": 16, "steps": 4, "block": 8},
    }[family]
    full = base == "sudoku" and family == "causal"
    rewards = {"use": base} if base == "countdown" else {"use": base, "options": {"mode": "mixed"}}
    values: dict[str, Any] = {
        "name": preset,
        "model": {"path": base, **({"full": True} if full else {"lora": {"rank": 4, "alpha": 8}})},
        "algorithm": {"use": preset, **taken(preset, sizes)},
        "data": {
            "train": f"{base}:train",
            "test": f"{base}:test",
            "prompts": 5,
            "group": 2 if family == "diffusion" else 4,
        },
        "rewards": [rewards],
        "optimizer": {"lr": 1e-3, "max_grad_norm": 1e9},
        "train": {"iterations": 5, "updates": 2, "micro_batch": 8, "sample_batch": 7, "threads": 1},
        "eval": {"every": 0, "prompts": 5},
        "monitor": {"samples": 8},
    }
    if family == "diffusion":
        values["model"]["call"] = {"guidance_scale": 1.0}
    for key, value in changes.items():
        at, (*path, last) = values, key.split("__")
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return values


def train(values: Mapping[str, Any], work: Work) -> Trained:
    """The iterations, on the processes that are connected."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    from flowrl.checks import measure
    from flowrl.config import Config
    from flowrl.heldout import evaluate_heldout
    from flowrl.models.sharding import whole_of
    from flowrl.monitor import check_heldout
    from flowrl.runtime.timing import PhaseTimer
    from flowrl.session import open_session
    from flowrl.startup.preflight import check_run
    from flowrl.train import iterate

    found = Trained()

    def note(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        every = [p for group in optimizer.param_groups for p in group["params"]]
        grads = [whole_of(torch.zeros_like(p) if p.grad is None else p.grad) for p in every]
        found.gradients.append(torch.cat([grad.flatten().double() for grad in grads]))

    session = open_session(check_run(Config.of(dict(values))))
    handle = register_optimizer_step_pre_hook(note)
    try:
        if work.start is not None:
            session.restore(*copy.deepcopy(work.start))  # what comes over a line lies in memory that processes share
        while session.progress.iteration < work.iterations:
            metrics, batch, _ = iterate(session, PhaseTimer())
            metrics |= measure(session, batch, PhaseTimer())
            found.metrics.append(metrics)
            found.groups.append(len(batch.rollout.group[batch.share.here >= 0].unique()))
            state = session.policy.weights.state()
            found.weights.append(torch.cat([whole_of(state[key]).flatten().double() for key in sorted(state)]))
        found.forwards = session.progress.forwards
        tensors, values = session.state()
        found.state = copy.deepcopy(({key: whole_of(value) for key, value in tensors.items()}, values))
        if work.evaluate:
            made = evaluate_heldout(session, PhaseTimer())
            found.heldout = made.metrics | check_heldout(session, made.samples, made.scores, made.share)
    finally:
        handle.remove()
        session.rewards.close()
    return found


def _serve(line: Connection, rank: int) -> None:
    """A process that trains what it is told to, until the line is closed."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    while True:
        try:
            job = line.recv()
        except EOFError:
            return
        if job is None:
            return
        size, place, values, work = job
        try:
            if size > 1:
                dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=size)
            line.send(train(values, work))
        except Exception:
            line.send(traceback.format_exc())
        finally:
            if size > 1:
                dist.destroy_process_group()


class Processes:
    """Processes that train together; use as a context manager."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._jobs = 0

    def __enter__(self) -> Self:
        context = forking()
        self._folder = TemporaryDirectory()
        self._lines, self._processes = [], []
        for rank in range(self._most):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, rank), daemon=True)
            process.start()
            there.close()
            self._lines.append(here)
            self._processes.append(process)
        return self

    def __exit__(self, *error: object) -> None:
        for line in self._lines:
            line.send(None)
            line.close()
        for process in self._processes:
            process.join(10)
            process.kill()
        self._folder.cleanup()

    def train(self, size: int, values: Mapping[str, Any], work: Work) -> list[Trained]:
        """What each of ``size`` processes has seen. Raises `RuntimeError` with what they say if they fail."""
        self._jobs += 1
        place = Path(self._folder.name) / f"job{self._jobs}"
        for line in self._lines[:size]:
            line.send((size, str(place), {**values, "out": self._folder.name}, work))
        found = [line.recv() for line in self._lines[:size]]
        wrong = [each for each in found if isinstance(each, str)]
        if wrong:
            raise RuntimeError("\n".join(wrong))
        return found


def apart(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference over that of what was wanted."""
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))


def drift(found: Trained, wanted: Trained) -> tuple[float, float, float]:
    """How far apart the first gradient, the worst of all gradients, and the weights after the last iteration are."""
    grew = range(-len(found.gradients), 0)  # of a run that went on later, those that it made
    every = [apart(found.gradients[i], wanted.gradients[i]) for i in grew]
    return (
        apart(found.gradients[0], wanted.gradients[-len(found.gradients)]),
        max(every),
        apart(found.weights[-1], wanted.weights[-1]),
    )

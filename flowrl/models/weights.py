"""Named copies of a policy's trainable parameters: the same for LoRA and for full fine-tuning."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor, nn

from flowrl.errors import UserError, did_you_mean
from flowrl.models.pace import Pace

LIVE = "live"
REFERENCE = "reference"
DISTURBED = "disturbed"


class WeightSets(ABC):
    """Weight sets of ``parameters``; ``live`` is what the optimiser updates, ``reference`` what training started from.

    `PointerWeights` exchanges them by pointer; `flowrl.models.sharding.ShardedWeights` by copying shards. Frozen sets
    must be evaluated *before* a graph is built on ``live`` or after its backward, never in between. ``apart``:
    parameters that only ``live`` has, such as a critic's; they are saved with it, and are the same whatever set is in
    use.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], apart: Mapping[str, nn.Parameter] | None = None) -> None:
        self._apart = frozenset(apart or {})
        self._parameters = {**parameters, **(apart or {})}
        self._sets: dict[str, dict[str, Tensor]] = {}
        self._active = LIVE
        self._live: dict[str, Tensor] = {}
        """Where the live tensors are while another set is in use."""
        self._reference_moved = False
        self._reference_hash: str | None = None
        self._frozen: set[str] = set()
        """Sets that were read from elsewhere: they never move, and no checkpoint holds them."""
        self._learning: set[str] = {LIVE}
        """Sets that an optimiser moves."""
        self._sets[REFERENCE] = self._copy()

    @property
    def active(self) -> str:
        """The set in use."""
        return self._active

    def names(self) -> list[str]:
        """The sets that exist, ``live`` first."""
        return [LIVE, *self._sets]

    def stamps(self) -> list[tuple[Tensor, int]]:
        """Tensors of the set in use, and how often torch saw each written to; it sees no fused optimiser's steps."""
        live = self._active == LIVE
        held = self._parameters.values() if live else self._tensors(self._active).values()
        return [(tensor, tensor._version) for tensor in held]

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Compute with ``name``; gradients are off unless it is ``live``. Nests; restores on any exit."""
        before = self._active
        self._switch(name)
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled() and name == LIVE):
                yield
        finally:
            self._switch(before)

    @contextmanager
    def learning(self, name: str) -> Iterator[None]:
        """Let ``name`` stand in the place of the live weights: inside, gradients are on, and an optimiser of the
        parameters moves this set. Raises `ValueError` for sets that do not move."""
        if name in (LIVE, REFERENCE) or name in self._frozen:
            raise ValueError(f"the weights {name!r} are no companion's, which alone learn beside the live ones")
        self._learning.add(name)
        with self.using(name), torch.enable_grad():
            yield

    def learns(self, name: str) -> bool:
        """Whether an optimiser moves a set, which torch may not see (`stamps`)."""
        return name in self._learning

    def drop_reference(self, *, hashed: bool = True) -> None:
        """Free the reference where nothing will compare with it; its hash stays known, unless nobody will ask."""
        if self._active == REFERENCE:
            raise ValueError("the reference is in use")
        if hashed:
            self._reference_hash = self.sha256(REFERENCE)
        self._sets.pop(REFERENCE, None)

    def keep_frozen(self, name: str) -> None:
        """Let the live weights as they are now be the set ``name``, which never moves: whoever made them makes them
        again where a run goes on, so `state` leaves them out."""
        if name in (LIVE, REFERENCE) or name in self._sets:
            raise ValueError(f"there are weights called {name!r} already")
        self.update_ema(name, 0.0)
        self._frozen.add(name)

    def drop(self, name: str) -> None:
        """Free a set that is not in use; nothing where there is none of that name."""
        if name in (LIVE, self._active):
            raise ValueError(f"the weights {name!r} are in use")
        self._sets.pop(name, None)

    @contextmanager
    def disturbed(self) -> Iterator[None]:
        """Compute with live weights to each of which noise is added, of a twentieth of its tensor's standard deviation:
        for self-checks. The same on every process."""
        noise = torch.Generator().manual_seed(0)
        self._sets[DISTURBED] = self._copy()
        for tensor in self._sets[DISTURBED].values():
            scale = 0.05 * max(float(tensor.std(correction=0)), 0.02) if tensor.numel() else 0.0
            tensor.add_(torch.randn(tensor.shape, generator=noise).to(tensor), alpha=scale)
        try:
            with self.using(DISTURBED):
                yield
        finally:
            del self._sets[DISTURBED]

    def update_ema(self, name: str, decay: float, of: str = LIVE) -> None:
        """``name <- decay * name + (1 - decay) * of``; a set that does not exist yet becomes a copy of that."""
        if name in (LIVE, of):
            raise ValueError("the live weights are moved by the optimiser; choose another name to follow them")
        if name in self._frozen:
            raise ValueError(f"the weights {name!r} are a teacher's, which do not move; choose another name")
        if name not in self._sets:
            self._sets[name] = self._copy(of)
            return
        self._reference_moved |= name == REFERENCE and decay != 1
        live = self._tensors(of)
        for key, kept in self._sets[name].items():
            if decay:  # averages are float32, also of weights in bfloat16, which would not notice small steps
                self._sets[name][key] = kept.float().lerp_(live[key].float(), 1.0 - decay)
            else:
                kept.copy_(live[key])

    def state(self) -> dict[str, Tensor]:
        """All sets as one flat ``{"set/parameter": tensor}``. The reference is left out while it is where training
        started: loading the model again makes it, and its hash tells whether it is the same."""
        names = [n for n in self.names() if n not in self._frozen and (n != REFERENCE or self._reference_moved)]
        return {f"{n}/{key}": self._stated(key, tensor) for n in names for key, tensor in self._tensors(n).items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state()`` returned, in place; sets that are not in it (but ``live``) are left alone."""
        grouped: dict[str, list[str]] = {}
        for path in state:
            name, _, key = path.partition("/")
            grouped.setdefault(name, []).append(key)
        for name in grouped:
            self._check(name, state)
            if name != LIVE and name not in self._sets:
                self._sets[name] = self._copy()
            self._reference_moved |= name == REFERENCE
            for key, kept in self._tensors(name).items():
                stored = state[f"{name}/{key}"]
                if name != LIVE and kept.dtype != stored.dtype:  # an average of weights in bfloat16
                    self._sets[name][key] = kept = kept.to(stored.dtype)
                kept.copy_(self._own(key, stored))

    def sha256(self, name: str) -> str:
        """sha256 of a set's names, shapes, types and bytes; a dropped reference's as it was."""
        if name == REFERENCE and name not in self._sets and self._reference_hash is not None:
            return self._reference_hash
        digest = hashlib.sha256()
        for key, tensor in sorted(self._tensors(name).items()):
            whole = self._whole(key, tensor)
            digest.update(f"{key} {tuple(whole.shape)} {whole.dtype}".encode())
            digest.update(whole.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @abstractmethod
    def _switch(self, name: str) -> None:
        """Compute with the set ``name`` from here on."""

    def _present(self, key: str) -> Tensor:
        """This process' part of a parameter as it is now: it shares the parameter's memory."""
        return self._parameters[key].detach()

    def _stated(self, key: str, tensor: Tensor) -> Tensor:
        """A set's tensor as `state` returns it."""
        return tensor

    def _own(self, key: str, stored: Tensor) -> Tensor:
        """This process' part of a tensor that `state` returned."""
        return stored

    def _whole(self, key: str, tensor: Tensor) -> Tensor:
        """A set's tensor, that of all processes together."""
        return tensor

    def _copy(self, of: str = LIVE) -> dict[str, Tensor]:
        return {key: tensor.clone() for key, tensor in self._tensors(of).items() if key not in self._apart}

    def _tensors(self, name: str) -> dict[str, Tensor]:
        if name == LIVE:
            return {key: self._live[key] if key in self._live else self._present(key) for key in self._parameters}
        if name == REFERENCE and name not in self._sets:
            raise UserError(
                "the reference weights were freed, because no part of the algorithm names them; a part that compares "
                "with them names them: a regularizer of weight above 0 in its field 'to', an estimator in 'references'"
            )
        if name not in self._sets:
            raise UserError(f"there are no weights called {name!r}" + did_you_mean(name, self.names()))
        return self._sets[name]

    def _check(self, name: str, state: Mapping[str, Tensor]) -> None:
        for key, parameter in self._parameters.items():
            if key in self._apart and name != LIVE:
                continue
            path = f"{name}/{key}"
            found = state[path].shape if path in state else None
            if found != parameter.shape:
                shape = "missing" if found is None else f"of shape {tuple(found)}"
                raise UserError(
                    f"stored weights {name!r} do not fit this model: {key} is {shape}, expected"
                    f" {tuple(parameter.shape)}; load the model with the options it was trained with"
                )


class PointerWeights(WeightSets):
    """Weight sets of parameters that every process holds whole. ``using(name)`` points every parameter at the set's
    tensors and back, so it costs no copy; a graph built on ``live`` keeps the parameters themselves, not their data.

    Raises `ValueError` for parameters that are distributed: FSDP gathers them from memory of its own, whatever they
    point at, so that every set would compute what ``live`` computes.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], apart: Mapping[str, nn.Parameter] | None = None) -> None:
        split = [name for name, p in {**parameters, **(apart or {})}.items() if hasattr(p, "to_local")]
        if split:
            raise ValueError(f"{split[0]} is a shard of a parameter, which cannot be exchanged by pointer")
        super().__init__(parameters, apart)

    def _switch(self, name: str) -> None:
        if name == self._active:
            return
        target = self._tensors(name)
        if self._active == LIVE:  # remembered by pointer: the optimiser's tensors come back untouched
            self._live = {key: p.data for key, p in self._parameters.items()}
        for key, tensor in target.items():
            self._parameters[key].data = tensor
        if name == LIVE:
            self._live = {}
        self._active = name


class Teacher(Protocol):
    """A frozen policy that stands beside another one."""

    def asked_by(self, student: Any) -> Any:
        """What answers in place of ``student``, as a policy of its family: at its inputs, on its device."""
        ...


class HasWeightSets:
    """What every policy does with its weight sets (see `flowrl.types.Policy`)."""

    weights: WeightSets
    pace: Pace | None = None
    """Where the network is split over processes: how often each runs it."""
    teachers: Mapping[str, Teacher] = MappingProxyType({})
    """Who answers under a name that is no weight set, or not alone one (`flowrl.models.teachers`)."""
    parity: Callable[[Any], float]
    """The start-up check of its family, where `flowrl.load_policy` loaded it."""

    def check_parity(self) -> float:
        """Run the start-up check again: it raises `UserError`, or returns the largest deviation."""
        return self.parity(self)

    @contextmanager
    def using(self, name: str) -> Iterator[Self]:
        """The policy with a weight set, or a teacher, while the context is open; gradients are disabled unless it is
        ``live``."""
        if name in self.teachers:
            with torch.no_grad():
                yield cast(Self, self.teachers[name].asked_by(self))
            return
        with self.weights.using(name):
            yield self

    @property
    def is_split(self) -> bool:
        """Whether this process holds a part of the network alone."""
        return self.pace is not None

    def own_pace(self) -> AbstractContextManager[None]:
        """Inside, this process may run the network more or less often than others (`flowrl.models.pace`)."""
        return nullcontext() if self.pace is None else self.pace.own()

    def update_ema(self, name: str, decay: float) -> None:
        """``name <- decay * name + (1 - decay) * live``; a set that does not exist yet becomes a copy of live."""
        self.weights.update_ema(name, decay)

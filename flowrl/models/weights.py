"""Named copies of a policy's trainable parameters, exchanged by pointer: the same for LoRA and for full fine-tuning."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from flowrl.errors import UserError, did_you_mean

LIVE = "live"
REFERENCE = "reference"


class WeightSets:
    """Weight sets of ``parameters``; ``live`` is what the optimiser updates, ``reference`` what training started from.

    ``using(name)`` points every parameter at the set's tensors and back, so it costs no copy. A graph built on ``live``
    keeps the parameters themselves, not their data: frozen sets must be evaluated *before* it is built or after its
    backward, never in between. ``apart``: parameters that only ``live`` has, such as a critic's; they are saved with
    it, and are the same whatever set is in use.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], apart: Mapping[str, nn.Parameter] | None = None) -> None:
        self._apart = frozenset(apart or {})
        self._parameters = {**parameters, **(apart or {})}
        self._sets: dict[str, dict[str, Tensor]] = {}
        self._active = LIVE
        self._live: dict[str, Tensor] = {}
        self._reference_moved = False
        self._reference_hash: str | None = None
        self._sets[REFERENCE] = self._copy()

    @property
    def active(self) -> str:
        """The set in use."""
        return self._active

    def names(self) -> list[str]:
        """The sets that exist, ``live`` first."""
        return [LIVE, *self._sets]

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Compute with ``name``; gradients are off unless it is ``live``. Nests; restores on any exit."""
        before = self._active
        self._point_at(name)
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled() and name == LIVE):
                yield
        finally:
            self._point_at(before)

    def update_ema(self, name: str, decay: float) -> None:
        """``name <- decay * name + (1 - decay) * live``; a set that does not exist yet becomes a copy of live."""
        if name == LIVE:
            raise ValueError("the live weights are moved by the optimiser; choose another name to follow them")
        if name not in self._sets:
            self._sets[name] = self._copy()
            return
        self._reference_moved |= name == REFERENCE and decay != 1
        live = self._tensors(LIVE)
        for key, kept in self._sets[name].items():
            if decay:  # averages are float32, also of weights in bfloat16, which would not notice small steps
                self._sets[name][key] = kept.float().lerp_(live[key].float(), 1.0 - decay)
            else:
                kept.copy_(live[key])

    def drop_reference(self, *, hashed: bool = True) -> None:
        """Free the reference where nothing will compare with it; its hash stays known, unless nobody will ask."""
        if self._active == REFERENCE:
            raise ValueError("the reference is in use")
        if hashed:
            self._reference_hash = self.sha256(REFERENCE)
        self._sets.pop(REFERENCE, None)

    def state(self) -> dict[str, Tensor]:
        """All sets as one flat ``{"set/parameter": tensor}``. The reference is left out while it is where training
        started: loading the model again makes it, and its hash tells whether it is the same."""
        names = [n for n in self.names() if n != REFERENCE or self._reference_moved]
        return {f"{n}/{key}": tensor for n in names for key, tensor in self._tensors(n).items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state()`` returned, in place; sets that are not in it (but ``live``) are left alone."""
        grouped: dict[str, dict[str, Tensor]] = {}
        for path, tensor in state.items():
            name, _, key = path.partition("/")
            grouped.setdefault(name, {})[key] = tensor
        for name, tensors in grouped.items():
            self._check(name, tensors)
            if name != LIVE and name not in self._sets:
                self._sets[name] = self._copy()
            self._reference_moved |= name == REFERENCE
            for key, kept in self._tensors(name).items():
                if name != LIVE and kept.dtype != tensors[key].dtype:  # an average of weights in bfloat16
                    self._sets[name][key] = tensors[key].to(kept.device)
                else:
                    kept.copy_(tensors[key])

    def sha256(self, name: str) -> str:
        """sha256 of a set's names, shapes, types and bytes; a dropped reference's as it was."""
        if name == REFERENCE and name not in self._sets and self._reference_hash is not None:
            return self._reference_hash
        digest = hashlib.sha256()
        for key, tensor in sorted(self._tensors(name).items()):
            digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _copy(self) -> dict[str, Tensor]:
        return {key: tensor.clone() for key, tensor in self._tensors(LIVE).items() if key not in self._apart}

    def _tensors(self, name: str) -> dict[str, Tensor]:
        if name == LIVE:
            return self._live or {key: p.detach() for key, p in self._parameters.items()}
        if name == REFERENCE and name not in self._sets:
            raise UserError(
                "the reference weights were freed, because no part of the algorithm names them; a part that compares "
                "with them names them: a regularizer of weight above 0 in its field 'to', an estimator in 'references'"
            )
        if name not in self._sets:
            raise UserError(f"there are no weights called {name!r}" + did_you_mean(name, self.names()))
        return self._sets[name]

    def _point_at(self, name: str) -> None:
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

    def _check(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        for key, parameter in self._parameters.items():
            if key in self._apart and name != LIVE:
                continue
            found = tensors.get(key)
            if found is None or found.shape != parameter.shape:
                shape = "missing" if found is None else f"of shape {tuple(found.shape)}"
                raise UserError(
                    f"stored weights {name!r} do not fit this model: {key} is {shape}, expected"
                    f" {tuple(parameter.shape)}; load the model with the options it was trained with"
                )


class HasWeightSets:
    """What every policy does with its weight sets (see `flowrl.types.Policy`)."""

    weights: WeightSets
    parity: Callable[[Any], float]
    """The start-up check of its family, where `flowrl.load_policy` loaded it."""

    def check_parity(self) -> float:
        """Run the start-up check again: it raises `UserError`, or returns the largest deviation."""
        return self.parity(self)

    @contextmanager
    def using(self, name: str) -> Iterator[Self]:
        """The policy with a weight set, while the context is open; gradients are disabled unless it is ``live``."""
        with self.weights.using(name):
            yield self

    def update_ema(self, name: str, decay: float) -> None:
        """``name <- decay * name + (1 - decay) * live``; a set that does not exist yet becomes a copy of live."""
        self.weights.update_ema(name, decay)

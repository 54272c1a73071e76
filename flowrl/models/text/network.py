"""A language model whose vocabulary layer is applied only where a prediction is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from flowrl.devices import put
from flowrl.math import tokens as token_math
from flowrl.math.divergences import selective_divergence
from flowrl.math.tokens import PLAIN, Readout
from flowrl.models.lora import Adaptation
from flowrl.models.merging import MergedAdapter
from flowrl.models.pace import Pace
from flowrl.models.placement import Placement
from flowrl.models.text.config import text_config
from flowrl.models.text.known_masks import known
from flowrl.models.text.routers import Routers, experts_per_token
from flowrl.types import Distributions, Truncation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Route = Literal["states", "rows", "whole"]
CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state")
"""What the cache of keys, values and states is called: since transformers 5.24, before it, in Mamba's code, and in
RWKV's."""


@dataclass(frozen=True)
class Head:
    """How predictions are had from the model; which way works is found out at the start, by comparison.

    ``states``: the last hidden states are taken from the input of the vocabulary layer, a plain linear one, which is
    then applied by us. ``rows``: the layer is shown the states asked for and the model does the rest, whatever that
    is. ``whole``: the model computes all logits.
    """

    route: Route
    readout: Readout = PLAIN


@dataclass(frozen=True)
class Reading:
    """What the network says at k positions."""

    states: Tensor | None
    """[k, d]: the input of the vocabulary layer; ``None`` on route ``whole``."""
    logits: Tensor | None
    """[k, V] float32; ``None`` on route ``states``."""
    cache: Any = None
    balance: Tensor | None = None
    """[n] float32: how unevenly the experts of a mixture are used by each row (`routing.balance`)."""

    def rows(self, some: Tensor) -> Reading:
        """What is said at some of the positions."""
        states = None if self.states is None else self.states[some]
        return Reading(states, None if self.logits is None else self.logits[some])


def cache_of(output: Any) -> Any:
    """A model's cache by its name in the output. Only one the output has is asked for: transformers 5.24 warns at the
    old names and removes them in 5.40; before, and in code of checkpoints, there are only these."""
    return next((getattr(output, name) for name in CACHE_NAMES if hasattr(output, name)), None)


class Network:
    """A transformers language model, counted and read at chosen positions."""

    def __init__(
        self, model: PreTrainedModel, adaptation: Adaptation, placement: Placement, pace: Pace | None = None
    ) -> None:
        self.model = model
        self.adaptation = adaptation
        self.placement = placement
        self.pace = pace
        self.merged: MergedAdapter | None = None
        """What predicts without gradient, where adapters are merged for it."""
        self.head = Head("whole")
        self.calls = 0
        """Rows evaluated so far."""
        self.takes = frozenset(inspect.signature(model.forward).parameters)
        self._cache_name = next((name for name in CACHE_NAMES if name in self.takes), CACHE_NAMES[1])
        chosen = experts_per_token(model, self.takes)
        self.routers = None if chosen is None else Routers(chosen)
        """Of a mixture of experts that shows their scores."""
        self._layer: Any = model.get_output_embeddings()
        self._compiled = any(getattr(m, "_compiled_call_impl", None) is not None for m in model.modules())

    @property
    def device(self) -> torch.device:
        """Where the model's first parameter is."""
        return next(self.model.parameters()).device

    @property
    def name(self) -> str:
        """The model's class, for messages."""
        return type(self.model).__name__

    @property
    def width(self) -> int:
        """Size of the last hidden states."""
        return int(getattr(self._layer, "in_features", None) or text_config(self.model.config).hidden_size)

    @property
    def embedded(self) -> int:
        """Tokens that the model has embeddings of."""
        embeddings: Any = self.model.get_input_embeddings()
        return len(embeddings.weight)

    def routes(self) -> list[Head]:
        """Ways to try, the cheapest first."""
        inner = text_config(self.model.config)
        cap, up, down = (getattr(inner, n, None) for n in ("final_logit_softcapping", "logit_scale", "logits_scaling"))
        shaped = Readout(softcap=cap or None, scale=(up or 1.0) / (down or 1.0))
        plain = type(self._layer) is nn.Linear
        linear = [Head("states", readout) for readout in dict.fromkeys((shaped, PLAIN))] if plain else []
        return [*linear, *([Head("rows")] if self._layer is not None else []), Head("whole")]

    def read(
        self,
        inputs: Mapping[str, Tensor],
        rows: Tensor,
        columns: Tensor,
        *,
        keep: bool = False,
        cache: Any = None,
        inside: Tensor | None = None,
    ) -> Reading:
        """Run the model on ``inputs`` and read it at ``(rows, columns)`` [k]; with ``keep`` behind what ``cache``
        (``None``: nothing) holds of earlier columns, and with the cache in the result, if the model returns one. With
        the places ``inside`` [n, W] that are no padding, the routers of a mixture of experts are watched."""
        where = put(rows, self.device), put(columns, self.device)
        kept: list[Tensor] = []

        def show(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            states = given[0]
            picked = states.flatten(0, 1).index_select(0, where[0] * states.shape[1] + where[1])
            kept.append(picked)
            return ((picked[None] if self.head.route == "rows" else states[:, :0]), *given[1:])

        hook = None if self.head.route == "whole" else self._layer.register_forward_pre_hook(show)
        try:
            options: dict[str, Any] = {self._cache_name: cache, "use_cache": True} if keep else {}
            watched = self.routers if inside is not None else None
            output = self.run(inputs, **options, **({"output_router_logits": True} if watched else {}))
        finally:
            if hook is not None:
                hook.remove()
        cache = cache_of(output) if keep else None
        balance = watched(output, inside) if watched is not None and inside is not None else None
        if self.head.route == "states":
            return Reading(kept[0], None, cache, balance)
        if self.head.route == "rows":
            return Reading(kept[0], output.logits[0].float(), cache, balance)
        logits = output.logits
        return Reading(None, logits.flatten(0, 1)[where[0] * logits.shape[1] + where[1]].float(), cache, balance)

    def run(self, inputs: Mapping[str, Tensor], **options: Any) -> Any:
        """The model's own output."""
        on_device = {
            key: put(value, self.device, self.placement.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }
        self.calls += len(next(iter(on_device.values())))
        if "use_cache" in self.takes:
            options.setdefault("use_cache", False)
        if self.pace is not None:
            alone = {"use_cache": False} if "use_cache" in self.takes else {}
            self.pace.announce(lambda: self._call(on_device, alone))
        return self._call(on_device, options)

    def _call(self, on_device: Mapping[str, Tensor], options: Mapping[str, Any]) -> Any:
        with (
            self.placement.precision(),
            self.adaptation.dropout(torch.is_grad_enabled()),
            self.eager() if options.get("use_cache") else nullcontext(),
            known(one_sequence="position_ids" not in on_device),
            nullcontext() if self.merged is None else self.merged.predicting(),
        ):
            return self.model(**on_device, **options)

    def logits(self, reading: Reading) -> Tensor:
        """[k, V] float32."""
        if reading.logits is not None:
            return reading.logits
        assert reading.states is not None
        return token_math.vocabulary_logits(reading.states, self._layer.weight, self._layer.bias, self.head.readout)

    def log_softmax(
        self,
        reading: Reading,
        labels: Tensor,
        *,
        temperature: float,
        excluded: tuple[int, ...],
        entropy: bool,
        collision: bool,
        truncation: Truncation,
        keep: int,
    ) -> tuple[Tensor, Tensor | None]:
        """``(logp [k], entropies [k] or [k, 2] or None)`` float32; at most ``keep`` probabilities are kept for
        backward."""
        options: dict[str, Any] = {
            "temperature": temperature,
            "excluded": excluded,
            "entropy": entropy,
            "collision": collision,
            "truncation": truncation,
        }
        if reading.logits is not None:
            return token_math.log_softmax_at(reading.logits, labels, **options)
        assert reading.states is not None
        return token_math.selective_log_softmax(
            reading.states,
            self._layer.weight,
            self._layer.bias,
            labels,
            readout=self.head.readout,
            keep=keep,
            **options,
        )

    def shown(self, readings: Sequence[Reading], where: Tensor) -> Distributions:
        """What the distributions of ``readings`` are computed of, with the weights in use."""
        logits = [reading.logits for reading in readings if reading.logits is not None]
        if logits:
            return Distributions(torch.cat(logits).detach(), where)
        states = [reading.states.detach() for reading in readings if reading.states is not None]
        weight, bias = self._layer.weight.detach(), self._layer.bias
        return Distributions(
            torch.cat(states), where, weight, None if bias is None else bias.detach(), self.head.readout
        )

    def divergence(
        self,
        reading: Reading,
        other: Distributions,
        rows: Tensor,
        *,
        beta: float,
        top: int | None,
        temperature: float,
        excluded: tuple[int, ...],
    ) -> Tensor:
        """[k] float32: how far the distributions are from ``rows`` of another policy's."""
        options: dict[str, Any] = {"beta": beta, "top": top, "temperature": temperature, "excluded": excluded}
        if reading.logits is not None:
            return selective_divergence(reading.logits, None, None, other, rows, **options)
        assert reading.states is not None
        layer, readout = self._layer, self.head.readout
        return selective_divergence(reading.states, layer.weight, layer.bias, other, rows, readout=readout, **options)

    def eager(self) -> AbstractContextManager[Any]:
        """Compute without compilation: in decoding, every step has a cache of another length, which would be compiled
        anew."""
        return torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()

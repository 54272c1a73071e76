"""Sampling of autoregressive language models: one token after another, with a cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowrl.devices import float64_device, put, to_host
from flowrl.math.masking import draw_tokens, ended, through_end
from flowrl.math.random import uniform
from flowrl.types import CausalPolicy, Decoder, Draw, Rollout, TextCondition, TokenTrace, Truncation

TOKEN_STREAM = 0
COMPACT = 1 / 8
"""Share of the rows that must have ended before they are taken out of the cache, which costs a copy of it."""


@dataclass(frozen=True, kw_only=True)
class CausalSampler:
    """Draw up to ``length`` tokens from ``softmax(logits / temperature)``, truncated; rows that ended leave the batch.

    A token follows from its row's seed and its place (one uniform number, put through the inverse distribution
    function), so a completion does not depend on the batch it is made in, up to rounding of the logits.
    """

    family: ClassVar[str] = "causal"
    length: int = 256
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Draw from the most likely tokens up to this mass; 1 draws from all."""
    top_k: int | None = None
    """Draw from so many of the most likely tokens; the mass is then counted among them, as in transformers and vLLM."""
    greedy_first: bool = False
    """Decode the first sample of every group greedily: the baseline of ReMax."""
    engine: Literal["vllm"] | None = None
    """Let an inference engine make the samples (the extra ``vllm``); a token then follows from its row's seed
    as far as the engine keeps it so."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length={self.length} makes empty completions; use at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} should be 0 (greedy) or above")
        _ = self.truncation  # which says what is wrong with top_p and top_k

    @property
    def truncation(self) -> Truncation:
        """The tokens that can be drawn."""
        return Truncation(self.top_p, self.top_k)

    @property
    def forwards(self) -> int:
        return self.length

    @property
    def recorded(self) -> int:
        return self.length if self.temperature > 0 else 0

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> CausalSampler:
        """At the temperature asked for; an autoregressive model has neither steps nor guidance."""
        for name, value in (("steps", steps), ("guidance", guidance)):
            if value is not None:
                raise ValueError(f"autoregressive models have no {name}; remove it")
        temperature = self.temperature if temperature is None else temperature
        return replace(self, temperature=temperature, greedy_first=False)

    @torch.no_grad()
    def __call__(self, policy: CausalPolicy, condition: TextCondition, draw: Draw) -> Rollout:
        temperature = torch.full((len(draw),), self.temperature, dtype=torch.float64)
        if self.greedy_first:
            temperature[draw.place == 0] = 0.0
        if self.engine is None:
            heat = temperature if self.greedy_first else self.temperature
            tokens, logp, rows = self._decode(policy, condition, draw, heat)
        else:
            engine = policy.engine(self.engine)
            made = engine.generate(condition, draw.seeds, self.length, temperature.tolist(), self.truncation)
            tokens, logp, rows = *made, len(draw) * self.length
        mask = through_end(tokens, policy.end_tokens)
        has_ended = ended(tokens, mask, policy.end_tokens)
        trace = TokenTrace(tokens, mask, self.temperature, logp=logp, ended=has_ended, truncation=self.truncation)
        return Rollout.of(draw, condition, tokens, trace, forwards=rows)

    def _decode(
        self, policy: CausalPolicy, condition: TextCondition, draw: Draw, temperature: Tensor | float
    ) -> tuple[Tensor, Tensor, int]:
        """Tokens and their log-probabilities [N, length] on the host, and the network rows it took."""
        count, device = len(draw), policy.device
        tokens = torch.full((count, self.length), policy.pad_token, dtype=torch.int64, device=device)
        logp = torch.zeros(count, self.length, device=device)
        numbers = put(uniform(draw.seeds, (self.length,), stream=TOKEN_STREAM), float64_device(device))
        temperature = put(temperature, numbers) if isinstance(temperature, Tensor) else temperature
        ends = put(torch.tensor(policy.end_tokens, dtype=torch.int64), device)
        going = torch.arange(count, device=device)  # rows in the decoder, and which of them have not ended
        active = torch.ones(count, dtype=torch.bool, device=device)
        decoder = self._decoder(policy, condition)
        rows = 0
        for place in range(self.length):
            rows += len(going)
            chosen, found = draw_tokens(decoder.logits, numbers[:, place], temperature, self.truncation)
            tokens[going, place] = torch.where(active, chosen, policy.pad_token)
            logp[going, place] = torch.where(active, found, 0.0)
            active = active & ~torch.isin(chosen, ends)
            if place == self.length - 1:
                break
            left = active.cpu()  # the only wait for the device in this loop
            if not bool(left.any()):
                break
            if int(left.sum()) <= (1 - COMPACT) * len(left):
                kept = left.nonzero()[:, 0]
                decoder.keep(kept)
                going, active, chosen, numbers = (
                    value[put(kept, value.device)] for value in (going, active, chosen, numbers)
                )
                if isinstance(temperature, Tensor):
                    temperature = temperature[put(kept, temperature.device)]
            decoder.push(chosen)
        tokens, logp = to_host((tokens, logp))
        return tokens, logp, rows

    def _decoder(self, policy: CausalPolicy, condition: TextCondition) -> Decoder:
        return policy.decoder(condition)

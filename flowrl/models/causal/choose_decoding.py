"""Which way of decoding an autoregressive model bears, found out at loading."""

from __future__ import annotations

import torch
from torch import Tensor

from flowrl.errors import UserError, first_line
from flowrl.models.causal.caches import SELECT_METHODS, SelectMethod
from flowrl.models.causal.policy import CausalPolicy, Decoding
from flowrl.models.deviation import TOLERANCE, deviation
from flowrl.models.text.condition import TextCondition
from flowrl.models.text.parity import FAILURES, make_probe, raise_fault, single_row_logits


@torch.no_grad()
def choose_decoding(policy: CausalPolicy) -> None:
    """Find the quickest way of decoding whose logits are those of whole sequences, with rows that share a prompt,
    leave and change places. Raises `UserError` where there is none."""
    condition, tokens, targets = make_probe(policy)
    reference = single_row_logits(policy, (condition, tokens, targets)).view(*tokens.shape, -1)
    cached: tuple[Decoding, ...] = ("padded", "by length")
    ways = [(way, select_method) for way in cached for select_method in SELECT_METHODS]
    last: tuple[Decoding, SelectMethod] = ("recomputed", SELECT_METHODS[0])
    failure: Exception | None = None
    for policy.decoding, policy.select_method in [*ways, last]:
        try:
            worst = _decoding_deviation(policy, condition, tokens, reference)
        except FAILURES as error:
            raise_fault(error)
            failure = error
            continue
        if worst <= TOLERANCE[policy.dtype]:
            return
    why = "its logits are not those of whole sequences" if failure is None else first_line(failure)
    raise UserError(f"{policy.network.name} cannot be decoded token by token ({why}); unsupported") from failure


def _decoding_deviation(policy: CausalPolicy, condition: TextCondition, tokens: Tensor, reference: Tensor) -> float:
    """Largest deviation from ``reference`` [2, T, V] while five rows of two prompts become two, then one."""
    rows = torch.tensor([0, 1, 1, 0, 1])
    decoder, worst = policy.decoder(condition.take(rows)), 0.0
    for place, left in enumerate(([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [4, 0, 3], [1, 0], [1])):
        if len(left) < len(rows):
            decoder.keep(torch.tensor(left))
            rows = rows[left]
        if place:
            decoder.push(tokens[rows, place - 1])
        worst = max(worst, deviation(decoder.logits, reference[rows, place]))
    return worst

"""What language models hold while they compute, counted on tensors without numbers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.math.tokens import selective_log_softmax
from flowrl.models.held_bytes import counting, forward_bytes
from flowrl.models.placement import checkpoint_blocks
from flowrl.models.portions import PROBE_TOKENS, PROBES, Computing, Portions, in_training, tried, without_gradient
from flowrl.models.text.network import CACHE_NAMES, cache_of


def text_computing(network: Any, family: str, at: Portions) -> Computing:
    """Of a network with what is trained in it."""
    body, most = network.base_model, getattr(network.config, "max_position_embeddings", None)
    tokens = min(at.prompt + at.length, most or at.prompt + at.length)
    probing = without_gradient(network, lambda: body(_ids(PROBES, PROBE_TOKENS), **_uncached(body)), at)
    if family == "causal":
        sampling = tried(lambda: _decoding_tokens(network, body, tokens, at))
    else:
        whole = without_gradient(network, lambda: body(_ids(at.sampled, tokens), **_uncached(body)), at)
        sampling = whole and max(whole, _drawing(network, at.sampled * at.drawn))
    if at.checkpointed:
        checkpoint_blocks(network)
    layer = network.get_output_embeddings()
    weight = getattr(layer, "weight", None)
    if weight is not None and not at.widened:  # whose products are in float32 without
        weight = weight.detach().float().requires_grad_(weight.requires_grad)
    updating = in_training(network, lambda: _scored(body, weight, getattr(layer, "bias", None), tokens, at), at)
    return Computing(probing=probing, sampling=sampling, updating=updating)


def _ids(rows: int, tokens: int) -> Tensor:
    return torch.zeros(rows, tokens, dtype=torch.int64)


def _uncached(body: nn.Module) -> dict[str, Any]:
    return {"use_cache": False} if "use_cache" in inspect.signature(body.forward).parameters else {}


def _scored(body: Any, weight: Tensor | None, bias: Tensor | None, tokens: int, at: Portions) -> Any:
    """The log-probabilities of the completions of a micro-batch, and what a critic's copy of the network keeps; of a
    model without a vocabulary layer its states."""
    states = body(_ids(at.updated, tokens), **_uncached(body))[0]
    kept = body(_ids(at.updated, tokens), **_uncached(body))[0] if at.valued else None
    count = at.updated * min(at.length, tokens)
    picked = states.flatten(0, 1).index_select(0, torch.zeros(count, dtype=torch.int64))
    if weight is None:
        return picked, kept
    logp, _ = selective_log_softmax(picked, weight, bias, torch.zeros(count, dtype=torch.int64), entropy=True)
    return logp, kept


def _drawing(network: Any, count: int) -> int:
    """Of drawing so many tokens: float32 logits and, of as many rows as are looked at together, probabilities in
    float32 and their sums in float64 (`flowrl.math.masking.draw_tokens`)."""
    from flowrl.math.masking import CELLS

    wide = network.config.get_text_config().vocab_size
    return 4 * count * wide + 12 * max(wide, min(count * wide, CELLS))


def _decoding_tokens(network: Any, body: Any, tokens: int, at: Portions) -> int:
    """Of making completions token by token: reading the prompts, or the cache of all rows as wide as it gets, a step
    and its draw."""
    from flowrl.models.causal.growing import reserved

    drawing = _drawing(network, at.sampled) + 4 * at.sampled * network.config.get_text_config().vocab_size
    before = max(tokens - 1, 1)
    name = next(name for name in CACHE_NAMES if name in inspect.signature(body.forward).parameters)
    reading = forward_bytes(lambda: body(_ids(at.groups, at.prompt), use_cache=True), at.lower)
    with torch.no_grad(), counting(at.lower) as (held, _):
        cache = cache_of(body(_ids(at.sampled, before), use_cache=True))
        held.restart()
        kept = held.now
        body(_ids(at.sampled, 1), **{name: cache}, use_cache=True)
        peak = held.peak
    return max(reading, peak + int(kept * (reserved(at.prompt, tokens) / before - 1)) + drawing)

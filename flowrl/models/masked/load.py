"""From a folder, a hub name or an embedded world to a masked-diffusion policy, refusing early what cannot work."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from flowrl.errors import UserError
from flowrl.models.hub import read_json
from flowrl.models.masked.layout import Blocks, Canvases
from flowrl.models.masked.policy import MaskedPolicy
from flowrl.models.masked.reader import keeps_prefixes
from flowrl.models.merging import MergedAdapter
from flowrl.models.sharding import check_exchange
from flowrl.models.source import ModelSource
from flowrl.models.text.layout import Sequences, TokenLayout
from flowrl.models.text.load import Options, open_codec, open_network
from flowrl.models.text.network import Network
from flowrl.models.text.parity import NOTHING, accepts_layout, check, choose_reading, lookahead, predictions

LLADA2_BLOCK = 32
"""Default of diffusers' BlockRefinementScheduler."""


def load_masked(
    path: str | Path,
    *,
    mask_token_id: int | None = None,
    shift_logits: bool | None = None,
    **options: Unpack[Options],
) -> MaskedPolicy:
    """A policy from any bidirectional language model: ``AutoModelForMaskedLM``, LLaDA, Dream, a diffusers
    ``LLaDA2Pipeline`` or ``DiffusionGemmaPipeline``, or ``DiffusionGemmaForBlockDiffusion``.

    Args:
        path, options: as in :func:`flowrl.models.causal.load.load_causal`.
        mask_token_id: ``None``: the tokenizer's, else the config's.
        shift_logits: the prediction for position i is read at i - 1; ``None``: for Dream only.

    Raises:
        UserError: for a model that is missing or unsuitable, or options that exclude each other.
    """
    network, tokenizer, source = open_network(path, "masked", options)
    mask = _mask_token(mask_token_id, tokenizer, network, str(path))
    codec = open_codec(network, tokenizer, source, options, mask)
    layout = _layout(network, source, shift_logits, codec.pad, mask)
    policy = MaskedPolicy(network, codec, layout, source, mask_token=mask)
    network.merged = MergedAdapter(network.model, policy.weights) if options.get("merge_adapters") else None
    if isinstance(layout, Blocks) and not accepts_layout(policy):
        policy.layout = replace(layout, square=False)
    if isinstance(layout, Sequences) and lookahead(policy) <= NOTHING:
        raise UserError(
            f"{path} ({network.name}) is an autoregressive model: later tokens do not change its earlier predictions,"
            " but family masked needs a bidirectional one; use family causal"
        )
    choose_reading(policy)
    policy.keeps_prefixes = keeps_prefixes(policy)
    check(policy)
    if options.get("shard", "none") != "none":
        check_exchange(policy.weights, partial(predictions, policy), network.name)
    network.calls = 0
    return policy


def _mask_token(given: int | None, tokenizer: Any, network: Network, path: str) -> int:
    words = network.embedded
    for token in (given, tokenizer.mask_token_id, getattr(network.model.config, "mask_token_id", None)):
        if token is not None:
            if not 0 <= token < words:
                raise UserError(f"mask_token_id={token} is not one of the model's {words} tokens; give the right id")
            return int(token)
    raise UserError(
        f"neither the tokenizer nor the config of {path} names a mask token; set model.mask_token_id to its id"
    )


def _layout(network: Network, source: ModelSource, shift: bool | None, pad: int, mask: int) -> TokenLayout:
    kind = str(network.model.config.model_type)
    if kind == "diffusion_gemma":
        return Canvases(network.model.config.canvas_length)
    if kind.startswith("llada2"):
        scheduler = read_json(str(Path(source.path) / "scheduler"), "scheduler_config.json") or {}
        return Blocks(int(scheduler.get("block_length", LLADA2_BLOCK)), mask=mask, square=True, joint=True)
    shifted = kind.lower().startswith("dream") if shift is None else shift
    return Sequences(shift=shifted, causal=False, padded=True, pad=pad)

"""From a folder, a hub name or an embedded world to an autoregressive policy, refusing early what cannot work."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from flowrl.errors import UserError
from flowrl.models.causal.choose_decoding import choose_decoding
from flowrl.models.causal.engine import EngineOptions
from flowrl.models.causal.policy import CausalPolicy
from flowrl.models.deviation import TOLERANCE
from flowrl.models.merging import MergedAdapter
from flowrl.models.sharding import check_exchange
from flowrl.models.text.critic import Critic, Kind
from flowrl.models.text.image_tokens import find_image_tokenizer, open_image_tokens
from flowrl.models.text.layout import Sequences
from flowrl.models.text.load import Options, open_codec, open_network
from flowrl.models.text.parity import check, choose_reading, lookahead, predictions


def load_causal(
    path: str | Path,
    *,
    critic: Kind | None = None,
    vllm: Mapping[str, Any] | None = None,
    image_tokenizer: str | None = None,
    **options: Unpack[Options],
) -> CausalPolicy:
    """A policy from any ``AutoModelForCausalLM``.

    Args:
        path: a folder, a hub name, or an embedded world with a causal base model.
        critic: also learn values, with a ``network`` of their own or a linear ``head`` (see `Critic`).
        vllm: options of the inference engine, which starts at its first use (`EngineOptions`).
        image_tokenizer: a `VQModel` of diffusers that makes pictures of completions (`ImageTokens`); by default the
            folder of that name in the model's.
        options: see :class:`Options`.

    Raises:
        UserError: for a model that is missing or unsuitable, or options that exclude each other.
    """
    if critic == "network" and options.get("shard", "none") != "none":
        raise UserError("a network that is split over processes has no critic of its own; use critic=head")
    network, tokenizer, source = open_network(path, "causal", options)
    codec = open_codec(network, tokenizer, source, options)
    layout = Sequences(shift=True, causal=True, padded=True, pad=codec.pad)
    policy = CausalPolicy(network, codec, layout, source, critic=Critic(network, critic) if critic else None)
    network.merged = MergedAdapter(network.model, policy.weights) if options.get("merge_adapters") else None
    policy.engine_options = EngineOptions(**(vllm or {}))
    ahead = lookahead(policy)
    if ahead > TOLERANCE[policy.dtype]:
        raise UserError(
            f"{path} ({network.name}) is a bidirectional model: a later token changes its earlier predictions by"
            f" {ahead:.2g}, but family causal needs an autoregressive one; use family masked"
        )
    choose_reading(policy)
    if policy.critic is not None:
        if network.head.route == "whole":
            raise UserError(
                f"{network.name} does not show its last hidden states, which a critic needs; use a method without one"
            )
        policy.critic.read_like(network.head)
    choose_decoding(policy)
    check(policy)
    if options.get("shard", "none") != "none":
        check_exchange(policy.weights, partial(predictions, policy), network.name)
    if (images := find_image_tokenizer(source.path, image_tokenizer)) is not None:
        policy.image_tokens = open_image_tokens(images, tokenizer, policy.vocabulary, policy.device)
        policy.excluded = policy.image_tokens.others
    network.calls = 0
    return policy

"""From a folder, a hub name or an embedded world to a reward model that can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from flowrl.errors import UserError
from flowrl.models.merging import MergedAdapter
from flowrl.models.reward.parity import check
from flowrl.models.reward.policy import RewardPolicy
from flowrl.models.text.load import Options, open_codec, open_network
from flowrl.scorers.conversations import Conversations

LONGEST = 2**20
"""Tokens of a conversation, where neither model nor tokenizer has a limit."""


def load_reward(path: str | Path, **options: Unpack[Options]) -> RewardPolicy:
    """A reward model: an ``AutoModelForSequenceClassification`` with one label, or any autoregressive language model,
    whose vocabulary layer makes room for a linear one with one output. That is trained whole, and starts from small
    random weights, the same in every process.

    Args:
        path: a folder, a hub name, or an embedded world with a causal base model.
        options: see :class:`flowrl.models.text.load.Options`; ``chat`` and ``system`` say how conversations are read.

    Raises:
        UserError: for a model that is missing or unsuitable, or options that exclude each other.
    """
    for key, off in (("quantize", None), ("shard", "none")):
        if options.get(key, off) != off:
            raise UserError(f"model.{key}={options[key]}: a reward model is trained and exported whole; remove it")
    network, tokenizer, source = open_network(path, "reward", options)
    codec = open_codec(network, tokenizer, source, options)
    layout = "chat" if codec.prompt_format.chat else "joined"
    conversations = Conversations.of(network.model, tokenizer, layout, LONGEST, options.get("system"), str(path))
    policy = RewardPolicy(network, codec, source, conversations)
    network.merged = MergedAdapter(network.model, policy.weights) if options.get("merge_adapters") else None
    check(policy)
    network.calls = 0
    return policy

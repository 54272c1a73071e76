"""A reward model as a policy: it is asked for ratings of conversations, and makes none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from flowrl.models.source import ModelSource
from flowrl.models.text.codec import TextCodec
from flowrl.models.text.condition import TextCondition
from flowrl.models.text.layout import Sequences
from flowrl.models.text.network import Network
from flowrl.models.text.overlong_prompts import Overlong
from flowrl.models.text.policy import TextPolicy
from flowrl.scorers.conversations import Conversations, Row
from flowrl.types import IncompatibleError, Prompt


class RewardPolicy(TextPolicy):
    """Implements :class:`flowrl.types.RewardPolicy`; made by :func:`flowrl.models.reward.load.load_reward`.

    Conversations become tokens and the network is called as by the reward ``reward_model``, so that what is trained is
    what will be asked.
    """

    family: ClassVar[str] = "reward"

    def __init__(self, network: Network, codec: TextCodec, source: ModelSource, conversations: Conversations) -> None:
        layout = Sequences(shift=False, causal=True, padded=True, pad=codec.pad)
        super().__init__(network, codec, layout, source)
        self.conversations = conversations

    def fit_prompts(self, prompts: Sequence[Prompt], completion: int, overlong: Overlong = "error") -> list[Prompt]:
        """All of them: what has to fit are whole conversations (`lengths`)."""
        return list(prompts)

    def lengths(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[int]:
        """Tokens of whole conversations, however long the model can read."""
        whole = replace(self.conversations, max_length=2**31)
        return [len(whole.row(prompt.text, text)[0]["input_ids"]) for prompt, text in zip(prompts, texts, strict=True)]

    def read(self, prompts: Sequence[Prompt], texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Conversations [N, length] as tokens, padded on the right, and bool [N, length] where these are; a longer one
        has lost its beginning."""
        spoken = replace(self.conversations, max_length=min(length, self.conversations.max_length))
        tokens = torch.full((len(texts), length), self.pad_token, dtype=torch.int64)
        mask = torch.zeros(len(texts), length, dtype=torch.bool)
        for index, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            row = spoken.row(prompt.text, text)[0]["input_ids"]
            tokens[index, : len(row)], mask[index, : len(row)] = torch.tensor(row), True
        return tokens, mask

    def rate(self, condition: TextCondition | None, tokens: Tensor, mask: Tensor) -> Tensor:
        """[N] float32: the network's number at the last token of each conversation, which holds its prompt."""
        rows: list[Row] = [
            {"input_ids": row[kept].tolist()} for row, kept in zip(tokens.cpu(), mask.cpu(), strict=True)
        ]
        inputs, padding = self.conversations.batch(rows)
        config: Any = self.network.model.config
        config.get_text_config().pad_token_id = padding  # where the head looks for the last token
        return self.network.run(inputs).logits[:, 0].float()

    def score(self, *args: Any, **options: Any) -> NoReturn:
        """Raises `IncompatibleError`: there are no words to be likely."""
        raise IncompatibleError(
            "a reward model says nothing of tokens; take the estimator ratings, and recorded samples"
        )

    def logits(self, *args: Any, **options: Any) -> NoReturn:
        """Raises `IncompatibleError`, as `score`."""
        self.score()

    def metrics(self, ranks: Any = None) -> Mapping[str, float]:
        """None."""
        return {}

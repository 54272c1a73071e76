"""Toy language models whose every conditional is an entry of a table, so that anything can be enumerated in tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from flowrl.math.divergences import coarse_divergence
from flowrl.math.masking import truncate
from flowrl.math.random import uniform
from flowrl.models.weights import HasWeightSets, PointerWeights
from flowrl.types import ALL_TOKENS, Distributions, Prompt, TokenScores, Truncation

PROMPT_STREAM = 77


@dataclass(frozen=True)
class TinyTextCondition:
    """Index of each row's prompt; the last row of the table is the masked prompt."""

    index: Tensor  # [N]
    prompts: int

    def __len__(self) -> int:
        return len(self.index)

    @property
    def row_lengths(self) -> Tensor:
        """[N]: 0, prompts are columns of a table."""
        return torch.zeros_like(self.index)

    def take(self, rows: Tensor) -> TinyTextCondition:
        """The condition of the rows with these indices [n] (repeats allowed)."""
        return TinyTextCondition(self.index[rows], self.prompts)

    def corrupted(self, seeds: Tensor, share: float, token: int) -> TinyTextCondition:
        """Row i's whole prompt masked with probability ``share``, by ``seeds[i]`` alone; ``token`` is not needed."""
        hidden = uniform(seeds, (), stream=PROMPT_STREAM) < share
        return TinyTextCondition(torch.where(hidden, self.prompts, self.index), self.prompts)


class TinyText(HasWeightSets):
    """Logits from a table over (prompt, canvas, position): a masked model that need not be consistent, and read at
    left-to-right canvases an autoregressive one. Implements `CausalPolicy` and `RewardPolicy` (``causal=True``), and
    `MaskedPolicy`.

    vocabulary: V tokens; the mask is token V. ``end``: the token that ends a completion, -1 for none. The table has
    ``(prompts + 1) * (V + 1)^length * length * V`` entries, so keep it small.
    """

    def __init__(
        self,
        vocabulary: int = 3,
        length: int = 3,
        prompts: Sequence[str] = ("",),
        *,
        causal: bool = False,
        end: int = -1,
        scale: float = 1.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.vocabulary, self.length, self.causal = vocabulary, length, causal
        self.mask_token, self.end_tokens, self.pad_token = vocabulary, (end,), max(end, 0)
        self.device, self.prompts, self.network_calls = torch.device("cpu"), tuple(prompts), 0
        states = (vocabulary + 1) ** length
        generator = torch.Generator().manual_seed(seed)
        shape = (len(self.prompts) + 1, states, length)
        self.table = nn.Parameter(scale * torch.randn(*shape, vocabulary, generator=generator, dtype=dtype))
        self.critic = nn.Parameter(torch.zeros(shape, dtype=dtype))
        self.weights = PointerWeights({"table": self.table, "critic": self.critic})

    def parameters(self) -> list[nn.Parameter]:
        """The table of logits, then the critic's."""
        return [self.table, self.critic]

    def condition(self, prompts: Sequence[Prompt]) -> TinyTextCondition:
        """The row of the table for each prompt."""
        return TinyTextCondition(torch.tensor([self.prompts.index(p.text) for p in prompts]), len(self.prompts))

    def decode(self, final: Tensor) -> list[str]:
        """Digits up to the end token."""
        return ["".join(str(t) for t in self._content(row)) for row in final.tolist()]

    def encode(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """The digits and the end token, where there is one."""
        ends = [token for token in self.end_tokens if token >= 0]
        rows = [[*map(int, text), *ends][:length] for text in texts]
        tokens = torch.tensor([row + [self.pad_token] * (length - len(row)) for row in rows])
        return tokens, torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]

    def read(self, prompts: Sequence[Prompt], texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """The completions alone: prompts are columns of a table."""
        return self.encode(texts, length)

    def rate(self, condition: TinyTextCondition, tokens: Tensor, mask: Tensor) -> Tensor:
        """As `flowrl.types.RewardPolicy.rate`: the sum of the logits of a completion's tokens, so that sampling them
        makes what is rated well."""
        chosen = self._rows(condition, tokens)[0].gather(-1, tokens[..., None])[..., 0]
        return torch.where(mask, chosen, 0.0).sum(dim=1)

    def _content(self, row: list[int]) -> list[int]:
        return row[: next((i for i, token in enumerate(row) if token in self.end_tokens), len(row))]

    def state(self, canvas: Tensor) -> Tensor:
        """[...] number of each canvas [..., L] of tokens and masks."""
        base = (self.vocabulary + 1) ** torch.arange(self.length)
        return (canvas * base).sum(dim=-1)

    def score(
        self,
        condition: TinyTextCondition,
        tokens: Tensor,
        targets: Tensor,
        labels: Tensor,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        collision: bool = False,
        truncation: Truncation = ALL_TOKENS,
        show: bool = False,
        beside: Mapping[str, Sequence[Distributions]] = MappingProxyType({}),
        beta: float = 0.5,
        top: int | None = None,
    ) -> TokenScores:
        """As `flowrl.types.TokenPolicy.score`, from the table; values are the critic's, for causal models."""
        table, value = self._rows(condition, tokens)
        inside = labels.clamp(max=self.vocabulary - 1)
        heated = truncate((table / temperature).flatten(0, 1), truncation, inside.flatten()).view_as(table)
        logp = heated.log_softmax(dim=-1)
        found = torch.where(targets, logp.gather(-1, inside[..., None])[..., 0], 0.0)
        spread = torch.where(targets, torch.special.entr(logp.detach().exp()).sum(dim=-1), 0.0) if entropy else None
        where = torch.arange(tokens.numel()).view(tokens.shape)
        shown = (Distributions(table.detach().flatten(0, 1), where),) if show else ()
        apart = {}
        for name, others in beside.items():
            parts = [part.states[part.where.clamp(min=0)] * (part.where >= 0)[..., None] for part in others]
            own, other = ((each / temperature).flatten(0, 1) for each in (table, torch.stack(parts).sum(dim=0)))
            apart[name] = torch.where(targets, coarse_divergence(own, other, beta, top).value.view(tokens.shape), 0.0)
        values = torch.where(targets, value, 0.0) if self.causal else None
        again = torch.where(targets, -(2 * logp.detach()).logsumexp(dim=-1), 0.0) if collision else None
        return TokenScores(found, spread, values, shown=shown, divergence=apart, collision=again)

    def logits(self, condition: TinyTextCondition, tokens: Tensor, targets: Tensor) -> Tensor:
        """With -inf for the mask token."""
        rows = self._rows(condition, tokens)[0][targets]
        return torch.cat([rows, torch.full_like(rows[:, :1], -torch.inf)], dim=1)

    def reader(self, condition: TinyTextCondition) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
        """Every reading is a look at the table."""
        return lambda rows, tokens, targets, settled: self.logits(condition.take(rows), tokens, targets)

    def decoder(self, condition: TinyTextCondition) -> TinyDecoder:
        """Decoding from the table."""
        return TinyDecoder(self, condition)

    def _rows(self, condition: TinyTextCondition, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``([n, L, V] logits, [n, L] values)``."""
        self.network_calls += len(tokens)
        place = torch.arange(self.length)
        canvas = tokens
        if self.causal:
            earlier = place < place[:, None]  # [position, token]
            canvas = torch.where(earlier, tokens[:, None], self.mask_token)
        state = self.state(canvas)
        state = state if self.causal else state[:, None].expand(-1, self.length)
        return self.table[condition.index[:, None], state, place], self.critic[condition.index[:, None], state, place]


class TinyDecoder:
    """Decoding from the table."""

    def __init__(self, policy: TinyText, condition: TinyTextCondition) -> None:
        self._policy, self._condition, self._place = policy, condition, 0
        self._tokens = torch.full((len(condition), policy.length), policy.mask_token)
        self._look()

    def _look(self) -> None:
        self.logits = self._policy._rows(self._condition, self._tokens)[0][:, self._place].float()

    def push(self, tokens: Tensor) -> None:
        """Append one token [n] to every row, and look up the next logits."""
        self._tokens[:, self._place] = tokens
        self._place += 1
        self._look()

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows [m] only."""
        self._tokens, self._condition = self._tokens[rows], self._condition.take(rows)

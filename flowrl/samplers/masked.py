"""Sampling of masked-diffusion language models: fill a canvas of masks, a few positions per step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowrl.devices import float64_device, put, to_host, wide
from flowrl.math.masking import (
    commit_counts,
    draw_tokens,
    drawn_entropy,
    ended,
    is_end,
    random_subset,
    through_end,
    time_counts,
    time_share,
    truncate,
)
from flowrl.math.random import uniform
from flowrl.types import Draw, MaskedPolicy, Rollout, TextCondition, TokenTrace, Truncation

TOKEN_STREAM, PLACE_STREAM = 0, 1_000_000
"""Step k draws its tokens from the first stream plus k and its random positions from the second plus k."""

UNSEEN = ("random", "origin", "leftmost")
"""Orders that know the positions before the model says anything of them."""
Order = Literal["max_prob", "margin", "neg_entropy", "random", "origin", "leftmost", "low_confidence"]


@dataclass(frozen=True, kw_only=True)
class MaskedSampler:
    """Fill ``length`` masks in ``steps`` steps, in blocks of ``block`` from left to right (semi-autoregressive).

    order: which masked positions of the block are fixed in a step. ``max_prob``, ``margin`` (best minus second-best
        probability) and ``neg_entropy`` depend on the state alone; ``random`` and ``leftmost`` on nothing; ``origin``
        fixes every position independently (Dream's ancestral sampling, so their number varies). For all of these the
        sum of log-probabilities at the fixed positions has the exact policy gradient. ``low_confidence`` (LLaDA's)
        fixes the positions whose *drawn* token is most likely, so rejected draws are actions too and the trajectory
        gradient is biased; at temperature 0 it is ``max_prob``.
    threshold: fix every position of the block whose best probability reaches it, at least one per step
        (confidence-parallel decoding, arXiv:2505.22618); ``steps`` no longer matters.
    schedule: how many are fixed in a step: ``even`` as many in each (LLaDA), ``time`` a share 1 - s/t of the masked
        ones on Dream's grid of times (see `flowrl.math.masking.time_counts`), ``doubling`` 1, 2, 4, ... and in the last
        step of a block what is left (ascending step sizes, arXiv:2509.23924); a step that fixes none takes no forward.
    temperature: of the drawn tokens; 0 takes the best one.
    top_p, top_k: draw from the most likely tokens up to this mass, and from so many of them; the mass is counted
        among all tokens, as Dream does.
    tempered_order: choose positions by the probabilities that tokens are drawn from (tempered and cut, as Dream does)
        instead of the model's own at temperature 1 (LLaDA).
    order_temperature: above 0, positions are drawn without replacement from ``softmax(preference / temperature)``
        instead of the best being taken (Dream's ``alg_temp``). They are actions then, which nothing scores.
    end_reserve: below 1, how sure the model is of a position whose *drawn* token is an end token is multiplied by a
        factor that grows from this to 1 with the steps, or with the share of a block that is fixed after the step where
        they double: ends are fixed late (EOS early rejection, arXiv:2509.23924: .01). What it rejects was drawn, so
        the trajectory gradient is biased.
    keep_scores: also record log-probability and entropy of every token drawn, which some views are chosen by.
    keep_steps: also record every step: what the model read, what it drew for every masked position, and the completion
        that these would make (`TokenTrace.previews`).
    guidance: s of ``uncond + (s + 1)(cond - uncond)``, the unconditional prompt all masked; 0 is off.
    A row whose finished blocks hold an end token is done. Where the model allows it, prompt and finished blocks are
    read once (`MaskedPolicy.reader`), with the same result. Every draw follows from the row's seed and the step.
    Sources: LLaDA (arXiv:2502.09992) §2.4 and its released sampler; Dream (arXiv:2508.15487) and its released
    ``diffusion_generate``, which is ``schedule=time, tempered_order=True, block=None`` with order ``low_confidence``
    for its ``maskgit_plus``, ``margin`` for ``topk_margin``, ``neg_entropy`` for ``entropy`` and ``origin``.
    """

    family: ClassVar[str] = "masked"
    length: int = 128
    steps: int = 64
    block: int | None = 32
    """``None``: the whole completion."""
    order: Order = "max_prob"
    threshold: float | None = None
    schedule: Literal["even", "time", "doubling"] = "even"
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    tempered_order: bool = False
    order_temperature: float = 0.0
    end_reserve: float = 1.0
    keep_scores: bool = False
    keep_steps: bool = False
    guidance: float = 0.0

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length={self.length} makes empty completions; use at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} should be 0 (greedy) or above")
        if self.block is not None and self.block < 1:
            raise ValueError(f"block={self.block} should be at least 1, or null for the whole completion")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} is a probability: give one from 0 to 1")
        if self.guidance < 0:
            raise ValueError(f"guidance={self.guidance} should be 0 (off) or above")
        if self.order_temperature < 0 or (self.order_temperature and self.order in UNSEEN):
            raise ValueError(
                f"order_temperature={self.order_temperature} softens a preference: it is 0 (off) or above, and the "
                f"order {self.order} has none"
            )
        if not 0 <= self.end_reserve <= 1:
            raise ValueError(f"end_reserve={self.end_reserve} is a factor: give one from 0 to 1 (off)")
        if self.end_reserve < 1 and self.order in (*UNSEEN, "neg_entropy"):
            raise ValueError(
                f"end_reserve={self.end_reserve} multiplies a probability, and the order {self.order} has none; use "
                "low_confidence, max_prob or margin, or end_reserve=1 (off)"
            )
        if self.keep_steps and (self.order in UNSEEN or self.width < self.length):
            raise ValueError(
                "keep_steps records what every step predicts of the completion: use block=null, and an order that "
                f"looks at it, not {self.order}"
            )
        _ = self.truncation  # which says what is wrong with top_p and top_k
        if self.length % self.width:
            raise ValueError(f"length={self.length} is not a multiple of block={self.block}; change one of them")
        if self.steps < self.blocks:
            raise ValueError(f"steps={self.steps} leaves no step for some of the {self.blocks} blocks; use more")

    @property
    def width(self) -> int:
        """Positions of a block."""
        return self.block or self.length

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return self.length // self.width

    @property
    def exact(self) -> bool:
        """Whether the log-probability of the fixed tokens has the exact policy gradient of this sampler."""
        by_state = self.order != "low_confidence" and not self.order_temperature and self.end_reserve == 1
        return by_state and self.temperature > 0 and self.guidance == 0

    @property
    def left_to_right(self) -> bool:
        """Whether tokens are fixed one by one, each behind the one before."""
        one_by_one = self.steps >= self.length and self.schedule == "even" and self.threshold is None
        return one_by_one and (self.order == "leftmost" or self.width == 1)

    @property
    def truncation(self) -> Truncation:
        """The tokens that can be drawn."""
        return Truncation(self.top_p, self.top_k, nucleus_first=True)

    @property
    def most_steps(self) -> int:
        """Steps of a completion, at most."""
        return self.length if self.threshold is not None else self.steps

    @property
    def kept_steps(self) -> int:
        """Steps that are recorded with what the model read and drew; 0 for none."""
        return self.most_steps if self.keep_steps else 0

    @property
    def forwards(self) -> int:
        return self.most_steps * (2 if self.guidance else 1)

    @property
    def recorded(self) -> int:
        return self.length if self.temperature > 0 else 0

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> MaskedSampler:
        """With other steps, guidance or temperature."""
        changes = {"steps": steps, "guidance": guidance, "temperature": temperature}
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    @torch.no_grad()
    def __call__(self, policy: MaskedPolicy, condition: TextCondition, draw: Draw) -> Rollout:
        canvas = Canvas(self, policy, condition, draw)
        self.begin(canvas, policy)
        going = torch.arange(len(draw))
        for block in range(self.blocks):
            canvas.fill(block, going)
            done = is_end(canvas.tokens[going, : (block + 1) * self.width], policy.end_tokens)
            going = going[~done.any(dim=1)]
            if not len(going):
                break
        kept = {} if canvas.scores is None else {"logp": canvas.scores[0], "entropy": canvas.scores[1]}
        if canvas.steps is not None:
            kept |= {"canvases": canvas.steps[0], "drawn": canvas.steps[1], "previews": canvas.previews(policy)}
        trace = self.traced(policy, canvas.tokens, canvas.order, **kept)
        return Rollout.of(draw, condition, final_of(trace, policy), trace, forwards=canvas.forwards)

    def begin(self, canvas: Canvas, policy: MaskedPolicy) -> None:
        """Fix what is known before the first step: nothing."""

    def traced(self, policy: MaskedPolicy, tokens: Tensor, order: Tensor, **kept: Tensor) -> TokenTrace:
        """The record of filled canvases [N, L], from the ``order`` in which they were; -1 was never."""
        tokens = torch.where(order < 0, policy.pad_token, tokens)
        mask = through_end(tokens, policy.end_tokens) & (order >= 0)
        has_ended = ended(tokens, mask, policy.end_tokens)
        cut = self.truncation
        return TokenTrace(tokens, mask, self.temperature, order=order, ended=has_ended, truncation=cut, **kept)


def final_of(trace: TokenTrace, policy: MaskedPolicy) -> Tensor:
    """[N, L] completions, padded after their end."""
    return torch.where(trace.mask, trace.tokens, torch.full_like(trace.tokens, policy.pad_token))


class Canvas:
    """Completions being filled: tokens [N, L] on the host, and the step at which each was fixed (-1: not yet)."""

    def __init__(self, options: MaskedSampler, policy: MaskedPolicy, condition: TextCondition, draw: Draw) -> None:
        self.options, self.condition, self.draw = options, condition, draw
        self.tokens = torch.full((len(draw), options.length), policy.mask_token, dtype=torch.int64)
        self.order = torch.full((len(draw), options.length), -1, dtype=torch.int64)
        self.ends = policy.end_tokens
        self.scores = torch.zeros(2, len(draw), options.length) if options.keep_scores else None
        """Log-probability and entropy of every token that was fixed."""
        shape = (2, len(draw), options.kept_steps, options.length)
        self.steps = torch.full(shape, -1, dtype=torch.int32) if options.keep_steps else None
        """What the model read and drew in every step."""
        self.forwards = 0
        self.renew(policy)

    def renew(self, policy: MaskedPolicy) -> None:
        """Forget what readings of other rows left behind."""
        self.read, self.read_unconditional = policy.reader(self.condition), None
        if self.options.guidance:
            hidden = self.condition.corrupted(self.draw.seeds, 1.0, policy.mask_token)
            self.read_unconditional = policy.reader(hidden)

    def fill(self, block: int, rows: Tensor) -> None:
        """Fix every position of a block in the given rows."""
        o = self.options
        inside = torch.zeros(o.length, dtype=torch.bool)
        inside[block * o.width : (block + 1) * o.width] = True
        share = o.width if o.threshold is not None else _share(o.steps, o.blocks, block)
        before = o.width * block if o.threshold is not None else sum(_share(o.steps, o.blocks, b) for b in range(block))
        even = commit_counts(torch.full((len(rows),), o.width), share)
        for k in range(share):
            masked = (self.order[rows] < 0) & inside
            if not bool(masked.any()):
                return
            timed, left = o.schedule == "time" and o.threshold is None, masked.sum(dim=1)
            count = time_counts(left, k, share) if timed else even[:, k]
            if o.schedule == "doubling":
                count = left.clamp(max=2**k)
            if k == share - 1:
                count = left
            open_rows = (left > 0) & ((count > 0) | (o.order == "origin"))
            if bool(open_rows.any()):
                now, where = rows[open_rows], masked[open_rows]
                chance = float(time_share(k, share)) if timed else 1 / (share - k)
                self._step(now, where, block * o.width, before + k, count[open_rows], chance)

    def _step(self, rows: Tensor, masked: Tensor, settled: int, step: int, count: Tensor, chance: float) -> None:
        """Fix ``count`` [n] of the ``masked`` [n, L] positions of some rows; with order ``origin`` each by chance. The
        model is asked about the positions that may be fixed: those alone where they are known before it answers."""
        o = self.options
        chosen = self._chosen_unseen(masked, self.draw.seeds[rows], step, count, chance)
        if chosen is not None:
            some = chosen.any(dim=1)
            rows, masked, chosen = rows[some], chosen[some], chosen[some]
            if not len(rows):
                return
        logits, seeds = self._logits(rows, masked, settled), self.draw.seeds[rows]
        numbers = put(uniform(seeds, (o.length,), stream=TOKEN_STREAM + step)[masked], float64_device(logits.device))
        tokens, logp = draw_tokens(logits, numbers, o.temperature, o.truncation)
        found = [tokens, logp, drawn_entropy(logits, o.temperature, o.truncation)] if o.keep_scores else [tokens]
        kept = len(found)
        if chosen is None:
            found.append(self._preference(logits, tokens, masked, seeds, step))
            found += [] if o.threshold is None else [logits.softmax(dim=-1).amax(dim=-1)]
        drawn, *seen = to_host(found)  # the only wait for the device of a step
        if chosen is None:
            chosen = self._chosen(masked, count, *seen[kept - 1 :])
        proposals = torch.zeros(masked.shape, dtype=torch.int64)
        proposals[masked] = drawn
        if self.steps is not None:
            self.steps[0, rows, step] = self.tokens[rows].int()
            self.steps[1, rows, step] = torch.where(masked, proposals, -1).int()
        self.tokens[rows] = torch.where(chosen, proposals, self.tokens[rows])
        self.order[rows] = torch.where(chosen, torch.full_like(proposals, step), self.order[rows])
        for scores, values in zip(() if self.scores is None else self.scores, seen, strict=False):
            proposed = torch.zeros(masked.shape)
            proposed[masked] = values
            scores[rows] = torch.where(chosen, proposed, scores[rows])

    def previews(self, policy: MaskedPolicy) -> Tensor:
        """[N, S, L] the completion that every step would have made; of a step that a row did not take, the last."""
        assert self.steps is not None
        canvases, drawn = self.steps.long()
        guess = torch.where(drawn >= 0, drawn, canvases)
        whole = torch.where((drawn >= 0).any(dim=2, keepdim=True), guess, self.tokens[:, None])
        inside = through_end(whole.flatten(0, 1), policy.end_tokens).view(whole.shape)
        return torch.where(inside, whole, policy.pad_token)

    def _chosen_unseen(self, masked: Tensor, seeds: Tensor, step: int, count: Tensor, chance: float) -> Tensor | None:
        """[n, L] bool: the positions to fix; ``None`` where that depends on what the model says of them."""
        o = self.options
        if o.threshold is not None or o.order not in UNSEEN:
            return None
        if o.order == "leftmost":
            return random_subset(torch.arange(o.length).expand(masked.shape).double(), masked, count)
        coin = uniform(seeds, (o.length,), stream=PLACE_STREAM + step)
        return masked & (coin < chance) if o.order == "origin" else random_subset(-coin, masked, count)

    def _chosen(self, masked: Tensor, count: Tensor, preference: Tensor, best: Tensor | None = None) -> Tensor:
        """[n, L] bool: the positions to fix, by the ``preference`` [K] and the ``best`` probability of every masked
        one."""
        score = torch.full(masked.shape, -torch.inf, dtype=torch.float64)
        score[masked] = preference.double()
        if best is None:
            return random_subset(-score, masked, count)
        assert self.options.threshold is not None
        sure = torch.zeros(masked.shape, dtype=torch.bool)
        sure[masked] = best.double() >= self.options.threshold
        return masked & sure | random_subset(-score, masked, torch.ones(len(masked), dtype=torch.int64))

    def _logits(self, rows: Tensor, masked: Tensor, settled: int) -> Tensor:
        """[K, V] logits at the masked positions of some rows."""
        tokens, guidance = self.tokens[rows], self.options.guidance
        self.forwards += len(rows)
        logits = self.read(rows, tokens, masked, settled).float()
        if self.read_unconditional is None:
            return logits
        self.forwards += len(rows)
        other = self.read_unconditional(rows, tokens, masked, settled).float()
        mixed = other + (guidance + 1) * (logits - other)
        return torch.where(logits.isinf(), logits, mixed)  # the mask token stays impossible

    def _preference(self, logits: Tensor, drawn: Tensor, masked: Tensor, seeds: Tensor, step: int) -> Tensor:
        """[K] how gladly each masked position is fixed now."""
        order, length = self.options.order, self.options.length
        if order in ("random", "origin"):
            return uniform(seeds, (length,), stream=PLACE_STREAM + step)[masked]
        if order == "leftmost":
            return -torch.arange(length).expand(masked.shape)[masked].double()
        found = self._confidence(logits, drawn)
        if self.options.end_reserve < 1:
            found = torch.where(is_end(drawn, self.ends), found * self._reserve(step), found)
        order_temperature = self.options.order_temperature
        if not order_temperature:
            return found
        # the largest of these, and then the next, are draws from the softmax without replacement (Gumbel)
        coin = uniform(seeds, (length,), stream=PLACE_STREAM + step)[masked]
        found = wide(found)
        coin = put(coin, found.device)
        return found / order_temperature - (-coin.clamp(min=1e-300).log()).log()

    def _reserve(self, step: int) -> float:
        """The factor on how sure the model is of an end token."""
        o = self.options
        done = step / max(o.steps - 1, 1)
        if o.schedule == "doubling":
            done = min((2 ** (step % _share(o.steps, o.blocks, 0) + 1) - 1) / o.width, 1.0)
        return o.end_reserve + (1 - o.end_reserve) * min(done, 1.0)

    def _confidence(self, logits: Tensor, drawn: Tensor) -> Tensor:
        """[K] how sure the model is of each masked position."""
        o = self.options
        if o.tempered_order:
            logits = truncate(logits / o.temperature if o.temperature else logits, o.truncation)
        probability = logits.softmax(dim=-1)
        if o.order == "low_confidence":
            return probability.gather(1, drawn[:, None])[:, 0]
        if o.order == "neg_entropy":
            return torch.xlogy(probability, probability).sum(dim=-1)
        if o.order == "max_prob":
            return probability.amax(dim=-1)
        best = probability.topk(2, dim=-1).values
        return best[:, 0] - best[:, 1]


def _share(steps: int, blocks: int, block: int) -> int:
    """Steps of a block: even, the remainder first."""
    return steps // blocks + (block < steps % blocks)

"""Sampling of autoregressive language models that think first: one thought, cut at several budgets, and answers to each
part of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from flowrl.devices import float64_device, put
from flowrl.math.masking import draw_tokens, is_end
from flowrl.math.random import uniform
from flowrl.samplers.causal import TOKEN_STREAM, CausalSampler
from flowrl.samplers.sharing import distinct, tied_seeds
from flowrl.types import CausalPolicy, Decoder, Draw, IncompatibleError, Rollout, TextCondition, TokenTrace


@dataclass(frozen=True, kw_only=True)
class BudgetSampler(CausalSampler):
    """A thought of at most ``budgets[-1]`` tokens, and ``answers`` answers after each of its parts of ``budgets``
    tokens: ``len(budgets) * answers`` samples that share it. AnytimeReasoner (arXiv:2505.13438).

    A sample is a part of the thought, what is put behind it, and an answer of at most ``length - budgets[-1]`` tokens
    (with what is put behind the thought). The thought is drawn once and decoded once: the model's cache is forked where
    answers begin. Its tokens from one budget to the next count in the first answer to the longer part, and nowhere
    else. A thought that ends earlier is whole for all later budgets.

    Events: 0 is what a part adds to the one before, 1 the answer; `TokenTrace.node` holds the first samples of the
    thought, of the part, and the sample.
    """

    budgets: tuple[int, ...] = (64, 128, 192)
    answers: int = 4
    think_end: str = "</think>"
    """The token that ends a thought; empty: none but the model's own end, which ends the sample."""
    cut: str = "...\n\n...\n\n</think>"
    """Put behind a part that was cut."""
    bridge: str = "\n\n**Final Answer**\n"
    """Put before the answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = list(self.budgets) == sorted(set(self.budgets))
        if not self.budgets or not rising or self.budgets[0] < 1 or self.budgets[-1] >= self.length:
            raise ValueError(
                f"budgets={list(self.budgets)} should rise from 1 or more and leave room for an answer before "
                f"length={self.length}"
            )
        if self.answers < 1:
            raise ValueError(f"answers={self.answers} should be at least 1")
        if self.engine is not None or self.greedy_first:
            raise ValueError("engine and greedy_first are not for samplers whose completions share tokens; remove them")

    @property
    def tree(self) -> int:
        """Samples that share a thought."""
        return len(self.budgets) * self.answers

    @property
    def room(self) -> int:
        """Tokens of an answer, with what is put before it."""
        return self.length - self.budgets[-1]

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> CausalSampler:
        """Completions of ``length`` tokens, as the model itself divides them."""
        own = {f.name: getattr(self, f.name) for f in fields(CausalSampler)}
        return CausalSampler(**own).heldout(steps, guidance, temperature)

    @torch.no_grad()
    def __call__(self, policy: CausalPolicy, condition: TextCondition, draw: Draw) -> Rollout:
        made = _Thoughts(self, policy, condition, draw)
        made.decode(policy.decoder(condition.take(made.first)))
        trace, nodes = made.trace(policy), [draw.place // self.tree * self.tree]
        nodes += [draw.place // self.answers * self.answers, draw.place]
        trace = TokenTrace(**{**vars(trace), "node": torch.stack(nodes, dim=1)})
        return Rollout.of(draw, condition, trace.tokens, trace, forwards=made.forwards)


@dataclass
class _Going:
    """What is in the decoder."""

    row: list[int] = field(default_factory=list)
    """Of a thought, its number; of an answer, its sample."""
    thinks: list[bool] = field(default_factory=list)

    def take(self, places: list[int]) -> _Going:
        return _Going([self.row[place] for place in places], [self.thinks[place] for place in places])


class _Thoughts:
    """Thoughts and answers being decoded, all of them at the same place; on the host."""

    def __init__(self, options: BudgetSampler, policy: CausalPolicy, condition: TextCondition, draw: Draw) -> None:
        self.options, self.draw, self.ends, self.forwards = options, draw, policy.end_tokens, 0
        thought = draw.place // options.tree * options.tree
        self.first, self.which = distinct(torch.stack([draw.group, thought], dim=1))
        self.budget = draw.place % options.tree // options.answers  # [N] number of the budget of every sample
        alone = options.tree == 1
        own = draw.take(self.first)
        seeds = own.seeds if alone else tied_seeds(own, thought[self.first])
        self.numbers = [uniform(seeds, (options.length,), stream=TOKEN_STREAM)]
        self.numbers.append(uniform(draw.seeds, (options.length,), stream=TOKEN_STREAM))
        self.think_end = _ids(policy, options.think_end)
        if len(self.think_end) > 1:
            raise IncompatibleError(
                f"sampler.think_end={options.think_end!r} is {len(self.think_end)} tokens of this model, and one should"
                " end a thought; give the one that its template has, or an empty text"
            )
        bridge = _ids(policy, options.bridge)
        self.behind = {False: _ids(policy, options.cut) + bridge, True: bridge}
        """What is put behind a part that was cut, and behind a whole thought."""
        if max(map(len, self.behind.values())) >= options.room:
            raise IncompatibleError(
                f"sampler.cut and sampler.bridge are {max(map(len, self.behind.values()))} tokens, and an answer has "
                f"{options.room} with them (sampler.length less the last budget); raise sampler.length"
            )
        shape = (len(draw), options.length)
        self.tokens = torch.full(shape, policy.pad_token, dtype=torch.int64)
        self.logp = torch.zeros(shape)
        self.thoughts = torch.full((len(self.first), options.length), policy.pad_token, dtype=torch.int64)
        self.thoughts_logp = torch.zeros(self.thoughts.shape)
        self.start = torch.full((len(draw),), -1)
        """[N] the place where what is behind the thought begins; -1: it said the model's end."""
        self.given = torch.zeros(len(draw), dtype=torch.int64)  # [N] tokens put there
        self.whole = torch.zeros(len(draw), dtype=torch.bool)
        self.thought_length = torch.zeros(len(self.first), dtype=torch.int64)

    def decode(self, decoder: Decoder) -> None:
        """Until all answers are there."""
        options = self.options
        going = _Going(list(range(len(self.first))), [True] * len(self.first))
        for place in range(options.length):
            self.forwards += len(going.row)
            pairs = zip(going.row, going.thinks, strict=True)
            numbers = torch.stack([self.numbers[not thinks][row, place] for row, thinks in pairs])
            logits = decoder.logits
            numbers = put(numbers, float64_device(logits.device))
            drawn, found = draw_tokens(logits, numbers, options.temperature, options.truncation)
            chosen = self._noted(going, place, drawn.cpu(), found.cpu())
            kept, after = self._forked(going, place + 1)
            if not kept or place == options.length - 1:
                break
            if kept != list(range(len(going.row))):
                decoder.keep(torch.tensor(kept))
            decoder.push(put(chosen[kept], logits.device))
            going = after

    def _forked(self, going: _Going, place: int) -> tuple[list[int], _Going]:
        """``(places in the decoder to go on with, repeats included, what they are then)`` before a place is filled."""
        kept: list[int] = []
        after = _Going()

        def add(at: int, row: int, thinks: bool) -> None:
            kept.append(at)
            after.row.append(row)
            after.thinks.append(thinks)

        for at, (row, thinks) in enumerate(zip(going.row, going.thinks, strict=True)):
            if not thinks:
                if not self._answered(row, place):
                    add(at, row, False)
                continue
            last = int(self.thoughts[row, place - 1])
            self.thought_length[row] = place
            if last in self.ends:
                continue
            whole = last in self.think_end
            for sample in ((self.which == row) & (self.start < 0)).nonzero()[:, 0].tolist():
                if whole or self.options.budgets[int(self.budget[sample])] == place:
                    self.start[sample], self.whole[sample] = place, whole
                    self.given[sample] = len(self.behind[whole])
                    add(at, sample, False)
            if not whole and place < self.options.budgets[-1]:
                add(at, row, True)
        return kept, after

    def _answered(self, row: int, place: int) -> bool:
        start, given = int(self.start[row]), int(self.given[row])
        said = place > start + given and int(self.tokens[row, place - 1]) in self.ends
        return said or place >= start + self.options.room

    def _noted(self, going: _Going, place: int, drawn: Tensor, found: Tensor) -> Tensor:
        """[m] the tokens to go on with: those drawn, or those that are put there."""
        chosen = drawn.clone()
        for at, (row, thinks) in enumerate(zip(going.row, going.thinks, strict=True)):
            if thinks:
                self.thoughts[row, place], self.thoughts_logp[row, place] = drawn[at], found[at]
                continue
            behind = place - int(self.start[row])
            if behind < int(self.given[row]):
                chosen[at] = self.behind[bool(self.whole[row])][behind]
            else:
                self.logp[row, place] = found[at]
            self.tokens[row, place] = chosen[at]
        return chosen

    def trace(self, policy: CausalPolicy) -> TokenTrace:
        """Thought, what was put behind it, and answer, of every sample."""
        options, place = self.options, torch.arange(self.options.length)
        budgets = torch.tensor([0, *options.budgets])
        length = self.thought_length[self.which]
        end = torch.where(self.start < 0, length, self.start)[:, None]
        thinking = place < end
        tokens = torch.where(thinking, self.thoughts[self.which], self.tokens)
        logp = torch.where(thinking, self.thoughts_logp[self.which], self.logp)
        leads = (self.draw.place % options.answers == 0)[:, None]
        fresh = (
            thinking & leads & (place >= budgets[self.budget][:, None]) & (place < budgets[self.budget + 1][:, None])
        )
        answering = (place >= end + self.given[:, None]) & (place < end + options.room) & (self.start >= 0)[:, None]
        said = torch.where(answering, tokens, policy.pad_token)
        ends = is_end(said, policy.end_tokens) & answering
        answer = answering & ((ends.int().cumsum(dim=1) - ends.int()) == 0)
        event = torch.where(fresh, 0, torch.where(answer, 1, -1))
        closed = ends.any(dim=1) | (self.start < 0) & is_end(self.thoughts, policy.end_tokens).any(dim=1)[self.which]
        return TokenTrace(
            tokens,
            fresh | answer,
            options.temperature,
            logp=logp,
            ended=closed,
            truncation=options.truncation,
            event=event,
        )


def _ids(policy: CausalPolicy, text: str) -> list[int]:
    """Tokens of a text, without an end."""
    if not text:
        return []
    tokens, mask = policy.encode([text], 4 * len(text) + 8)
    ids = tokens[0][mask[0]].tolist()
    return ids[:-1] if ids and ids[-1] in policy.end_tokens else ids

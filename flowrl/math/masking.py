"""Choices of tokens and actions, and mask laws of language models: pure functions of logits, seeds and lengths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from flowrl.devices import exact, put, wide
from flowrl.math.random import uniform
from flowrl.types import ALL_TOKENS, Truncation

CELLS = 2**24
"""Entries of a chunk of logits: 128 MB in float64. All masked positions of a batch at once are many times that."""


def is_end(tokens: Tensor, ends: int | Sequence[int]) -> Tensor:
    """[...] bool: whether each of ``tokens`` [...] is one of the end tokens."""
    told = torch.tensor([ends] if isinstance(ends, int) else list(ends), dtype=tokens.dtype)
    return torch.isin(tokens, put(told, tokens.device))


def through_end(tokens: Tensor, ends: int | Sequence[int]) -> Tensor:
    """[N, T] bool: True up to and including the first of ``ends`` in each row, everywhere in a row without one."""
    last = is_end(tokens, ends).int()
    return (last.cumsum(dim=1) - last) == 0


def ended(tokens: Tensor, mask: Tensor, ends: int | Sequence[int]) -> Tensor:
    """[N] bool: whether a row of ``tokens`` [N, T] says one of ``ends`` where ``mask`` [N, T] counts; else it was
    cut."""
    return (is_end(tokens, ends) & mask).any(dim=1)


def truncate(logits: Tensor, truncation: Truncation, labels: Tensor | None = None) -> Tensor:
    """``logits`` [K, V], tempered already, with -inf at the tokens that ``truncation`` cuts away.

    A token stays in the nucleus if those more likely than it have less than ``top_p`` together. ``labels`` [K] stay as
    well: where the set is that of other weights than those that sampled, the token that was drawn remains possible.
    """
    if truncation.off:
        return logits
    ranked, index = logits.detach().sort(dim=-1, descending=True, stable=True)
    kept = torch.ones_like(ranked, dtype=torch.bool)
    if truncation.top_k is not None:
        kept &= ranked >= ranked[:, min(truncation.top_k, ranked.shape[1]) - 1, None]
    if truncation.top_p < 1:
        counted = ranked if truncation.nucleus_first else ranked.masked_fill(~kept, -torch.inf)
        mass = wide(counted).softmax(dim=-1)
        kept &= (mass.cumsum(dim=-1) - mass < truncation.top_p).to(kept.device)
    kept[:, 0] = True
    kept = torch.zeros_like(kept).scatter(1, index, kept)
    if labels is not None:
        kept = kept.scatter(1, labels[:, None], True)
    return logits.masked_fill(~kept, -torch.inf)


def draw_tokens(
    logits: Tensor, numbers: Tensor, temperature: Tensor | float, truncation: Truncation = ALL_TOKENS
) -> tuple[Tensor, Tensor]:
    """One token per row from ``softmax(logits / temperature)``, truncated, by the inverse distribution function.

    logits [K, V]; numbers [K] uniform in [0, 1); temperature [K] or one for all rows, 0 for the most likely token.
    Returns the tokens [K] and their log-probabilities [K] float32 under the distribution drawn from (0 for greedy).
    The sums are taken in float64, of as many rows at a time as have `CELLS` entries.
    """
    rows = max(1, CELLS // logits.shape[-1])
    heat = temperature.split(rows) if isinstance(temperature, Tensor) else itertools.repeat(temperature)
    parts = zip(logits.split(rows), numbers.split(rows), heat, strict=False)
    tokens, logp = zip(*(_draw(*part, truncation) for part in parts), strict=True)
    return torch.cat(tokens), torch.cat(logp)


def draw_choices(logp: Tensor, seeds: Tensor | None, stream: int) -> Tensor:
    """[n, h, d] float32 of log-probabilities [n, h, d]: 1 at a choice for each of h, 0 elsewhere. Row i's choices are a
    function of ``(seeds[i], stream)``, by the inverse distribution function; without ``seeds`` the likeliest."""
    n, h, d = logp.shape
    numbers = torch.zeros(n, h) if seeds is None else uniform(seeds, (h,), stream=stream)
    drawn, _ = draw_tokens(logp.flatten(0, 1), numbers.flatten(), 0.0 if seeds is None else 1.0)
    return torch.nn.functional.one_hot(drawn, d).float().view(n, h, d)


def drawn_entropy(logits: Tensor, temperature: float, truncation: Truncation = ALL_TOKENS) -> Tensor:
    """[K] float32 entropy, in nats, of the distributions that `draw_tokens` draws from; 0 for greedy."""
    if temperature == 0:
        return torch.zeros(len(logits), device=logits.device)
    rows = max(1, CELLS // logits.shape[-1])
    heated = (truncate(part / temperature, truncation).softmax(dim=-1) for part in logits.split(rows))
    return torch.cat([torch.special.entr(p).sum(dim=-1).float() for p in heated])


def _draw(
    logits: Tensor, numbers: Tensor, temperature: Tensor | float, truncation: Truncation
) -> tuple[Tensor, Tensor]:
    if not isinstance(temperature, Tensor):
        if temperature == 0:
            return logits.argmax(dim=-1), torch.zeros(len(logits), device=logits.device)
        return _draw_hot(logits if temperature == 1 else logits / temperature, numbers, truncation)
    hot = (temperature > 0).to(logits.device)
    scale = put(torch.where(temperature > 0, temperature, 1.0), logits)
    drawn, found = _draw_hot(logits / scale[:, None], numbers, truncation)
    tokens = torch.where(hot, drawn, logits.argmax(dim=-1))
    return tokens, torch.where(hot, found, torch.zeros_like(found))


def _draw_hot(logits: Tensor, numbers: Tensor, truncation: Truncation) -> tuple[Tensor, Tensor]:
    logp = truncate(logits, truncation).log_softmax(dim=-1)
    # float64: with a large vocabulary a float32 sum loses the last tokens' probabilities
    cumulative = exact(logp).to(torch.float64, copy=True).exp_().cumsum_(dim=-1)
    total = cumulative[:, -1]
    # below the total, whatever the product rounds to: the token drawn is a possible one
    wanted = torch.minimum(put(numbers, total) * total, total.nextafter(torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulative, wanted[:, None], right=True).clamp_(max=logits.shape[-1] - 1)
    tokens = tokens.to(logits.device)
    return tokens[:, 0], logp.gather(1, tokens)[:, 0].float()


def random_subset(numbers: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """[..., L] bool: ``count`` [...] of the True entries of ``among`` [..., L], uniformly without replacement, chosen
    by the smallest of ``numbers`` [..., L]."""
    key = torch.where(among, numbers, torch.full_like(numbers, torch.inf))
    rank = key.argsort(dim=-1).argsort(dim=-1)
    return among & (rank < count[..., None])


def systematic_counts(start: Tensor, draws: int, length: Tensor) -> Tensor:
    """[N, draws] int64 in 1..length: counts of masked tokens, stratified so that the draws spread over the range; each
    is uniform by itself. ``start`` [N] uniform in [0, 1), ``length`` [N] >= 1.

    LLaDA's likelihood evaluation (arXiv:2502.09992) spreads its counts so; the estimate stays unbiased and varies
    less."""
    place = (start[:, None] + torch.arange(draws) / draws) % 1.0
    return (place * length[:, None]).floor().long().clamp(max=length[:, None] - 1) + 1


def gauss_legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights [nodes] float64 on [0, 1]; exact for polynomials up to degree ``2 nodes - 1``."""
    from numpy.polynomial.legendre import leggauss

    x, w = leggauss(nodes)
    return torch.as_tensor(x).double() / 2 + 0.5, torch.as_tensor(w).double() / 2


def commit_counts(masked: Tensor, steps: int) -> Tensor:
    """[N, steps] int64: how many of ``masked`` [N] tokens are fixed in each step; even, the remainder first."""
    base = masked[:, None] // steps
    return base + (torch.arange(steps, device=masked.device) < (masked % steps)[:, None]).long()


def time_share(step: int, steps: int) -> Tensor:
    """``1 - s / t``, float32: the share of masked tokens fixed in a step of Dream's grid, which has ``steps`` steps of
    equal length from time 1 to .001; in the last step all are (its released ``diffusion_generate``)."""
    times = torch.linspace(1, 1e-3, steps + 1)
    return 1 - times[step + 1] / times[step] if step < steps - 1 else torch.ones(())


def time_counts(masked: Tensor, step: int, steps: int) -> Tensor:
    """[N] int64: how many of the ``masked`` [N] tokens Dream fixes in a step, ``int(n (1 - s/t))``. The grid ends above
    0, so the counts are not even: at as many steps as tokens the first step fixes none and a later one two. The
    arithmetic is Dream's float32, in which the product may lie just below a whole number."""
    return (masked.float() * time_share(step, steps)).long()


def log_ratio_kl(live: Tensor, other: Tensor, kind: str) -> Tensor:
    """Per-decision estimates of ``KL(live || other)`` at samples of the live policy, from ``d = live - other``.

    ``k1`` d, unbiased, any sign; ``k2`` d^2 / 2; ``k3`` exp(-d) - 1 + d, unbiased and never negative (Schulman 2020).
    """
    d = live - other
    match kind:
        case "k1":
            return d
        case "k2":
            return 0.5 * d**2
        case "k3":
            return (-d).exp() - 1 + d
    raise ValueError(f"kl should be k1, k2 or k3, found {kind!r}")

"""Does a reward keep its promises? The checks behind ``flowrl test-reward``."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.math.random import derive, uniform
from flowrl.score.gradients import Gradient, gradient_of
from flowrl.score.reward import CallStats
from flowrl.score.rewards import Rewards, load_rewards
from flowrl.score.samples import take
from flowrl.types import Prompt, Samples
from flowrl.worlds.shapes.scenes import SIZE, random_scene, render

TOLERANCE = 1e-4
"""Relative to the spread of the scores: float32 models differ a little with the batch."""
SMOOTH, SLOPE = 0.2, 0.05
"""How far a gradient's value may be from the score, in standard deviations of the scores, unless the reward says so;
and its slope from that of finite differences, relative."""
STEPS = (3e-2, 1e-2, 3e-3, 1e-3)
"""Of finite differences, of the pixel that moves most."""
GROUP = 4
"""Samples per prompt for a reward that compares them."""


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check."""

    check: str
    passed: bool
    detail: str


class _FailedCheckError(Exception):
    """A check did not hold."""


def run_checks(
    use: str,
    prompts: Sequence[Prompt],
    *,
    size: int = 32,
    text: bool = False,
    frames: int = 0,
    options: Mapping[str, Any] | None = None,
) -> list[CheckResult]:
    """Run every check on one reward. ``text`` gives it completions (the prompts' own texts) instead of images,
    ``frames`` videos of so many. One that sees whole groups gets groups of 4, and "one by one" means group by group.

    Stops after a check without which the others mean nothing.
    """
    results: list[CheckResult] = []

    def check(name: str, body: Callable[[], str]) -> bool:
        try:
            results.append(CheckResult(name, True, body()))
        except (UserError, _FailedCheckError) as problem:
            results.append(CheckResult(name, False, str(problem)))
        return results[-1].passed

    scorers: list[Rewards] = []
    if not check("loads", lambda: _load(scorers, use, options)):
        return results
    try:
        samples = _samples(prompts, size, text, GROUP if scorers[0].grouped else 1)
        _check_all(scorers[0], _moving(samples, frames) if frames else samples, check)
    finally:
        scorers[0].close()
    return results


def _check_all(scorer: Rewards, samples: Samples, check: Callable[[str, Callable[[], str]], bool]) -> None:
    score, unit = _scorer(scorer), GROUP if scorer.grouped else 1
    if not check("returns one number per sample", lambda: _shape(score(samples))):
        return
    first = score(samples)
    check("keeps its precision", lambda: _precision(scorer, samples))
    check("same answer twice", lambda: _same(score(samples), first, exact=True))
    check("same answer one by one", lambda: _same(_one_by_one(score, samples, unit), first))
    check("follows the order of the samples", lambda: _same(_reordered(score, samples), first))
    check("accepts junk", lambda: _junk(score, samples))
    check("speed", lambda: _speed(score, samples))
    gradient = gradient_of(scorer.rewards[0].function)
    if not isinstance(gradient, str) and samples.images is not None:
        check("gradient has the score's value", lambda: _smooth(gradient, samples, first, scorer.rewards[0].function))
        check("gradient is the slope", lambda: _slope(gradient, samples))


def _load(scorers: list[Rewards], use: str, options: Mapping[str, Any] | None) -> str:
    scorers.append(load_rewards([{"use": use, "options": dict(options or {})}], on_nan="drop_sample"))
    (style,) = scorers[0].styles.values()
    return f"{use} ({style} signature{', compares the samples of a group' if scorers[0].grouped else ''})"


def _scorer(rewards: Rewards) -> Callable[[Samples], Tensor]:
    """[N] scores of samples. All NaN is an answer here, though a run would stop."""

    def score(samples: Samples) -> Tensor:
        return rewards.raw(samples)[:, 0]

    return score


def _shape(values: Tensor) -> str:
    if bool(values.isnan().all()):
        raise _FailedCheckError(
            "every score is NaN (could not score): are the prompts' columns the right ones? See --prompts"
        )
    finite = values[~values.isnan()]
    return f"{len(values)} scores from {float(finite.min()):.4g} to {float(finite.max()):.4g}"


def _precision(scorer: Rewards, samples: Samples) -> str:
    """What the reward answers with: half precision makes ties of different samples, and groups without a winner."""
    stats = CallStats()
    scorer.rewards[0].score(samples, torch.tensor([prompt.id for prompt in samples.prompts]), stats)
    if stats.number_type in ("float16", "bfloat16"):
        raise _FailedCheckError(f"answers in {stats.number_type}, whose rounding makes ties; return scores.float()")
    return f"answers in {stats.number_type}"


def _same(values: Tensor, expected: Tensor, exact: bool = False) -> str:
    if not torch.equal(values.isnan(), expected.isnan()):
        raise _FailedCheckError("NaN in other places")
    difference = float((values - expected).nan_to_num().abs().max())
    scale = float(expected[~expected.isnan()].std(correction=0)) or float(expected.nan_to_num().abs().max()) or 1.0
    if difference > (0.0 if exact else TOLERANCE * scale):
        raise _FailedCheckError(f"differs by {difference:.3g} (scores spread by {scale:.3g})")
    return "exactly equal" if difference == 0 else f"equal within {difference:.1g}"


def _one_by_one(score: Callable[[Samples], Tensor], samples: Samples, unit: int) -> Tensor:
    rows = range(len(samples))
    return torch.cat([score(take(samples, rows[start : start + unit])) for start in rows[::unit]])


def _reordered(score: Callable[[Samples], Tensor], samples: Samples) -> Tensor:
    order = list(reversed(range(len(samples))))
    return score(take(samples, order)).flip(0)


def _smooth(gradient: Gradient, samples: Samples, scores: Tensor, function: Any) -> str:
    """A reward may say how far apart they are: its attribute ``gradient_within``, in standard deviations."""
    values = torch.as_tensor(gradient(samples)).detach().double().cpu()
    known = ~scores.isnan()
    spread = float(scores[known].std(correction=0)) or float(scores[known].abs().max()) or 1.0
    apart = float((values - scores)[known].abs().max()) / spread
    allowed = getattr(getattr(function, "function", None), "gradient_within", SMOOTH)
    if not values.shape == scores.shape or not apart <= allowed:
        raise _FailedCheckError(
            f"is up to {apart:.2g} standard deviations of the scores away from them, more than {allowed:g}; if it "
            "stands in for a score without a gradient, say how well: gradient_within = ..."
        )
    return f"within {apart:.1g} standard deviations of the scores (allowed: {allowed:g})"


def _slope(gradient: Gradient, samples: Samples) -> str:
    """Central differences along the gradient itself, at several lengths of a step, of which rounding spoils the short
    ones and curvature the long ones."""
    assert samples.images is not None
    images = (0.05 + 0.9 * samples.images).clone().requires_grad_()  # away from the ends, where clamps have corners
    total = torch.as_tensor(gradient(replace(samples, images=images))).double().sum()
    if not total.requires_grad:
        raise _FailedCheckError("its result has no gradient: something in it rounds, detaches or leaves torch")
    (found,) = torch.autograd.grad(total, images)
    if not bool(torch.isfinite(found).all()) or float(found.norm()) == 0:
        raise _FailedCheckError(f"the gradient has norm {float(found.norm()):.3g}")
    direction, apart = found / found.abs().max(), []
    for step in STEPS:
        sides = [
            float(torch.as_tensor(gradient(replace(samples, images=images.detach() + sign * direction))).double().sum())
            for sign in (step, -step)
        ]
        slope, wanted = (sides[0] - sides[1]) / (2 * step), float((found * direction).sum())
        apart.append(abs(slope / wanted - 1))
    if not min(apart) <= SLOPE:
        raise _FailedCheckError(f"differs by {min(apart):.0%} from finite differences along it")
    return f"finite differences along it agree to {min(apart):.1%}"


def _junk(score: Callable[[Samples], Tensor], samples: Samples) -> str:
    """Black, white and broken images, or empty and odd texts: a finite score or NaN, never an exception."""
    if samples.images is None:
        odd = ["", " ", "\x00", "日本語", "a" * 10_000]
        prompts = [samples.prompts[i % len(samples)] for i in range(len(odd))]
        values = score(Samples(prompts, completions=odd))
    else:
        images = samples.images[:1].expand(3, *samples.images.shape[1:]).clone()
        images[0], images[1], images[2, ..., 0, 0] = 0.0, 1.0, torch.nan
        values = score(Samples([samples.prompts[0]] * 3, images))
    return "scores " + ", ".join("NaN" if value != value else f"{value:.4g}" for value in values.tolist())


def _speed(score: Callable[[Samples], Tensor], samples: Samples) -> str:
    start = time.perf_counter()
    score(samples)
    return f"{1000 * (time.perf_counter() - start) / len(samples):.2f} ms per sample in a batch of {len(samples)}"


def _samples(prompts: Sequence[Prompt], size: int, text: bool, unit: int) -> Samples:
    """Different images or texts, ``unit`` for each prompt."""
    if not text:
        repeated = [prompt for prompt in prompts[: max(1, len(prompts) // unit)] for _ in range(unit)]
        return Samples(repeated, _images(repeated, size))
    repeated = [prompts[index - index % unit] for index in range(len(prompts) - len(prompts) % unit or len(prompts))]
    return Samples(repeated, completions=[prompt.text for prompt in prompts[: len(repeated)]])


def _moving(samples: Samples, frames: int) -> Samples:
    """Videos [N, frames, 3, size, size]: each image moves on by as many pixels a frame as its number says, and where
    that is odd every third frame is another's."""
    assert samples.images is not None
    videos = torch.stack(
        [torch.stack([image.roll(t * (number % 4), dims=-1) for t in range(frames)])
         for number, image in enumerate(samples.images)]
    )  # fmt: skip
    videos[1::2, ::3] = videos[1::2, ::3].flip(-1)
    return replace(samples, images=videos)


def _images(prompts: Sequence[Prompt], size: int) -> Tensor:
    """[N, 3, size, size] in [0, 1]: smooth random colour fields of different detail; for prompts of the shapes world
    every other image shows what its prompt asks for, so that scores differ."""
    images = torch.cat([_field(index, size) for index in range(len(prompts))])
    if size == SIZE and all("include" in prompt.columns for prompt in prompts):
        fitting = prompts[::2]
        images[::2] = render([random_scene(dict(prompt.columns), random.Random(prompt.id)) for prompt in fitting])
    return images


def _field(index: int, size: int) -> Tensor:
    cells = 2 + index % 7
    coarse = uniform(torch.tensor([derive(0, "test-reward", index)]), (3, cells, cells), stream=0).float()
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")

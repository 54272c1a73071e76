"""The self-checks of a run: what each looks at, which values are healthy, and what others mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flowrl.errors import UserError, did_you_mean
from flowrl.parts.diagnostics import DEVIATION, MISMATCH, MISMATCH_K1, MISMATCH_K3, MISMATCH_MAX, OUTSIDE
from flowrl.ratio_check import MISMATCH_LIMIT, OUTSIDE_LIMIT, RATIO_LIMIT
from flowrl.update_checks import COVERAGE, DETACHED, DRIFT, REACH, SHARE, START, STEP

TRAINABLE, VELOCITY = "check/trainable", "check/velocity_ratio"
DECODE, SCORE = "check/decode_repeat", "check/reward_repeat"
SATURATION, SPREAD = "check/reward_saturation", "check/action_spread"

ENOUGH_SAMPLES, ENOUGH_GROUPS = 16, 4
"""Below these, shares of samples or groups say nothing."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Facts:
    """What of a run and its iteration the healthy ranges depend on."""

    exact: bool = True
    """Whether the network computes in float32, and what samples is the trainer itself."""
    stale: bool = False
    """Whether the samples were made by older weights."""
    samples: int = ENOUGH_SAMPLES
    groups: int = ENOUGH_GROUPS
    group: int = 2
    """Samples of a prompt."""
    text: bool = False


@dataclass(frozen=True)
class SelfCheck:
    """One number of a run, and how it is read."""

    name: str
    metric: str
    """Its name in metrics.jsonl."""
    what: str
    healthy: Callable[[Facts], Range | None]
    """Least and largest healthy value; ``None`` where it means nothing for a run."""
    outside: str
    fix: str
    told: bool = False
    """Whether `flowrl.ratio_check` says it in a sentence of its own."""


def _range(low: float, high: float) -> Callable[[Facts], Range]:
    return lambda facts: (low, high)


def _by_precision(exact: Range, rough: Range) -> Callable[[Facts], Range | None]:
    """Of what old and new policy, or sampler and trainer, should agree on."""
    return lambda facts: None if facts.stale else exact if facts.exact else rough


def _of_groups(low: float, high: float) -> Callable[[Facts], Range | None]:
    return lambda facts: (low, high) if facts.groups >= ENOUGH_GROUPS and facts.group > 1 else None


def _of_samples(low: float, high: float) -> Callable[[Facts], Range | None]:
    return lambda facts: (low, high) if facts.samples >= ENOUGH_SAMPLES else None


CHECKS: tuple[SelfCheck, ...] = (
    SelfCheck(
        "trainable",
        TRAINABLE,
        "numbers of the policy that the optimiser holds and that require a gradient",
        _range(1, math.inf),
        "nothing is trained",
        "look at model.lora.targets or set model.full, and do not freeze parameters after the optimiser is made",
    ),
    SelfCheck(
        "gradient_reach",
        REACH,
        "share of the trained tensors that had a gradient in the first optimiser batch",
        _range(0.5, 1),
        "most of what is trained is not part of what the loss computes, such as adapters on layers that do not run",
        "name layers that run in model.lora.targets",
    ),
    SelfCheck(
        "replay_deviation",
        DEVIATION,
        "largest |ratio - 1| of the likelihood that the sampler recorded, or of a second measurement, before the first "
        "update of an iteration",
        _by_precision((0, RATIO_LIMIT), (0, 0.1)),
        "the model answers differently in sampling and in training: dropout, another precision, another guidance",
        "switch dropout off, use model.dtype=float32, or set algorithm.estimator.reduction=mean for large latents",
        told=True,
    ),
    SelfCheck(
        "outside_clip",
        OUTSIDE,
        "share of the ratios outside the clip before the first update of an iteration",
        _by_precision((0, OUTSIDE_LIMIT), (0, OUTSIDE_LIMIT)),
        "rounding alone decides which decisions have a gradient",
        "use model.dtype=float32 or float16 (rounds finer than bfloat16), or widen the clip",
        told=True,
    ),
    SelfCheck(
        "sampler_mean",
        MISMATCH,
        "mean |log p(trainer) - log p(sampler)| of a token before the first update",
        _by_precision((0, 1e-3), (0, MISMATCH_LIMIT)),
        "sampler and trainer are not the same policy: stale weights in an engine, another dtype, temperature or "
        "template",
        "compare dtype, model.path and the engine's version, or add token_advantage: [truncated_importance]",
        told=True,
    ),
    SelfCheck(
        "sampler_max",
        MISMATCH_MAX,
        "largest |log p(trainer) - log p(sampler)| of a token before the first update",
        _by_precision((0, 0.05), (0, 3)),
        "single tokens are scored quite differently: a cut distribution, an end token or padding that only one knows",
        "compare top_p, top_k, end tokens and template of sampler and trainer",
    ),
    SelfCheck(
        "sampler_k1",
        MISMATCH_K1,
        "k1 estimate of the KL of the sampler to the trainer: mean of log p(sampler) - log p(trainer)",
        _by_precision((-1e-3, 1e-3), (-MISMATCH_LIMIT, MISMATCH_LIMIT)),
        "the sampler finds its tokens systematically more (or less) likely than the trainer: another temperature, "
        "stale weights",
        "compare temperature, weights and template of sampler and trainer",
    ),
    SelfCheck(
        "sampler_k3",
        MISMATCH_K3,
        "k3 estimate of the KL of the sampler to the trainer: mean of exp(d) - 1 - d, d = log p(trainer) - log "
        "p(sampler)",
        _by_precision((0, 1e-5), (0, 5e-3)),
        "sampler and trainer are different policies: the samples are off-policy without anybody correcting it",
        "compare weights, dtype and template, or add token_advantage: [truncated_importance]",
    ),
    SelfCheck(
        "start_distance",
        START,
        "largest penalty for a distance to a weight set (KL, prediction) before the very first update, where all sets "
        "are the same weights",
        _by_precision((0, 1e-6), (0, 1e-2)),
        "the reference is not what training starts from, or dropout makes the same weights answer differently",
        "look at what the reference holds (model.path, an adapter that is merged twice), switch dropout off",
    ),
    SelfCheck(
        "velocity_ratio",
        VELOCITY,
        "|v| of the trained policy over |v| of the reference at points of a few samples; over its own at the first "
        "check where a run keeps no reference",
        _range(0.8, 1.25),
        "velocities grow or shrink as a whole, which shows as burnt or pale pictures and rarely as a better reward",
        "lower optimizer.lr, or add a penalty to the reference",
    ),
    SelfCheck(
        "action_spread",
        SPREAD,
        "standard deviation of a control policy's chunks for one observation, in standardised actions, where the clip "
        "is one of matching errors (fpo)",
        _range(0.2, math.inf),
        "the ratio of matching errors hardly leaves 1 for narrow policies, so that the clip lets them move many of "
        "their own deviations: at .05 an update may go 25 times as far as at 1",
        "standardise actions by demonstrations that spread as the policy does, lower optimizer.lr, or use dppo, "
        "reinflow or ppo_gaussian",
    ),
    SelfCheck(
        "drift",
        DRIFT,
        "norm of the mean gradient that the decisions of the first iteration have where all advantages are 1, over its "
        "standard error, of a control policy's ratios of matching errors (fpo); about 1 where nothing drifts",
        _of_samples(0, 1.75),
        "a constant advantage moves the policy, which no reward asked for: matching errors are no density, least of "
        "all those of actions that a coarse sampler made (of one batch on avoid 3, 2, 1.45, 1.2 with 3, 5, 10, 50 "
        "steps)",
        "set algorithm.steps=10 or more and optimizer.critic_warmup=1 or more, and keep advantages centred; or use "
        "dppo or ppo_gaussian",
    ),
    SelfCheck(
        "step_coverage",
        COVERAGE,
        "least share of the times (steps, noise levels) of an iteration that an optimiser batch trains, of those that "
        "it should hold",
        _range(1, 1),
        "optimiser batches see few noise levels each, so that updates pull in turn at different ends of the trajectory",
        "split samples, not steps, over updates; look at algorithm.loss_weight and the sampler's window",
    ),
    SelfCheck(
        "decode_repeat",
        DECODE,
        "mean difference of channel values between two decodings of the same latents, or share of texts that differ",
        lambda facts: (0, 0) if facts.text else (0, 1 / 255),
        "the decoder draws at random, or its answer depends on the batch",
        "make the decoder deterministic: no sampling in the VAE, no dropout, no stateful layer",
    ),
    SelfCheck(
        "reward_repeat",
        SCORE,
        "mean change of a reward of the same samples asked twice, over its standard deviation; of the worst reward",
        _range(0, 0.1),
        "part of the reward is noise, which the advantage takes for a difference between samples",
        "seed the reward or set its temperature to 0, average several answers, and score every sample by itself",
    ),
    SelfCheck(
        "reward_spread",
        "reward/std",
        "standard deviation of the total reward",
        _of_samples(1e-5, 100),
        "rewards hardly differ, so that their differences are rounding, or are so large that they act as a learning "
        "rate",
        "scale the reward (weight), or take an advantage that divides by the group's spread",
    ),
    SelfCheck(
        "reward_saturation",
        SATURATION,
        "share of samples with the largest, or with the least, total reward of the iteration, whichever is more",
        _of_samples(0, 0.97),
        "the reward is at its end for nearly every sample: there is nothing to tell good from bad",
        "take harder (or easier) prompts, or a finer reward",
    ),
    SelfCheck(
        "flat_groups",
        "zero_std_fraction",
        "share of the groups whose samples all have the same total reward",
        _of_groups(0, 0.9),
        "nearly no group teaches anything, because advantages compare samples within a group",
        "take prompts that the model solves sometimes, a finer reward, a larger data.group or a more random sampler",
    ),
    SelfCheck(
        "objective_share",
        SHARE + "objective",
        "norm of the objective's gradient over the sum of those of all terms of the loss, of a few samples",
        _range(0.05, 1),
        "penalties outweigh the reward: the run learns to stay where it is",
        "lower the weight of the regularizers",
    ),
    SelfCheck(
        "attached_penalties",
        DETACHED,
        "number of terms of the loss that have a value and exactly no gradient",
        _range(0, 0),
        "a penalty is reported and does nothing: it was detached from the policy",
        "compute the penalty from the live likelihood, outside torch.no_grad and without detach",
    ),
    SelfCheck(
        "update_to_weight",
        STEP,
        "|change of the trained weights| / |trained weights| of the first optimiser step",
        _range(1e-9, 0.3),
        "one step replaces the weights, or is lost in their rounding",
        "change optimizer.lr",
    ),
)


def find(name: str) -> SelfCheck:
    """The check of that name, or that reads that metric. Raises `UserError` for another one."""
    for check in CHECKS:
        if name in (check.name, check.metric):
            return check
    raise UserError(f"there is no self-check {name!r}{did_you_mean(name, [check.name for check in CHECKS])}")


@dataclass(frozen=True)
class Verdict:
    """A value of a check, and what is healthy in its run."""

    check: SelfCheck
    value: float
    low: float
    high: float

    @property
    def healthy(self) -> bool:
        return self.low <= self.value <= self.high

    def sentence(self) -> str:
        """What it is, and where it is outside what that means and what to change."""
        says = f"{self.check.name} is {self.value:.3g} (healthy: {span(self.low, self.high)})"
        return says if self.healthy else f"{says}: {self.check.outside}; {self.check.fix}"

    def row(self, step: int) -> dict[str, Any]:
        """A line of checks.jsonl; ``None`` for a bound or value that is not finite."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        name: dict[str, Any] = {"step": step, "check": self.check.name, "metric": self.check.metric}
        return name | finite | {"healthy": self.healthy}


def verdicts(metrics: Mapping[str, float], facts: Facts) -> list[Verdict]:
    """Of all checks that an iteration measured and that mean something for its run."""
    found = []
    for check in CHECKS:
        bounds = check.healthy(facts)
        if check.metric in metrics and bounds is not None:
            found.append(Verdict(check, metrics[check.metric], *bounds))
    return found


def span(low: float, high: float) -> str:
    """A range in words."""
    if low == high:
        return f"{low:.3g}"
    return f"{low:.3g} or more" if high == math.inf else f"{low:.3g} to {high:.3g}"


def explain(check: SelfCheck) -> str:
    """The page of a check."""
    kinds = {
        "": Facts(),
        "in half precision, or with an engine": Facts(exact=False),
        "of texts": Facts(text=True),
    }
    spans: dict[str, str] = {}
    for words, facts in kinds.items():
        bounds = check.healthy(facts)
        if bounds is not None and (told := span(*bounds)) not in spans:
            spans[told] = f"{told} {words}".strip()
    return (
        f"{check.name}: {check.what}.\n"
        f"  metric   {check.metric} in metrics.jsonl; verdicts in checks.jsonl\n"
        f"  healthy  {'; '.join(spans.values())}\n"
        f"  outside  {check.outside}\n"
        f"  fix      {check.fix}\n"
    )

"""Further presets for masked-diffusion language models, against the losses of their released code written out here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.estimators.bound_views import CountPairs, EveryBlock
from flowrl.estimators.path_views import Leftmost, RecordedSteps, SampledSteps, TwoStates
from flowrl.estimators.views import BlockAndAfter, Trajectory
from flowrl.parts.ema import Every
from flowrl.parts.selections import NonzeroAdvantage
from tests.fidelity import cell, release
from tests.fidelity.bench import alike
from tests.fidelity.text import TextTrial, centred, clipped, k3, mean_over, others_mean, standardised, text_trial

release("just_grpo", 'LeapLabTHU/JustGRPO eebe50e, 2026; "fast": NVIDIA NeMo-RL research/just_grpo 749b0ed')
release("agrpo", "probablyabot/agrpo 98f1182, ICML 2026")
release("d2", "d2 (StepMerge) 381b9f1, on dllm-reasoning/d1")
release("cj_grpo", "yjyddq/EOSER-ASS-RL 5affb4e, 30 Sep 2025")
release("espo", "ML-GSAI/ESPO b5f2dac, Dec 2025")
release("ebpo", "re-implementation alone: yjyddq/DARE 83ae8a3; the authors' code is not public")
release("stable_drl", "JianyuanZhong/StableDRL 26ad014, 2026")
release("dipo", "DiRL ec4bfb3, for block-diffusion models")
release("mdpo_dllm", "autonomousvision/mdpo e6ae439, 2025; its score as yjyddq/DARE 83ae8a3 groups it")
release("igpo", "facebookresearch/igpo e85eaea, 2025")
release("reflect_rollout", "nothing public: derived from a translation of the report")
release("diffpo", "nothing public: reconstructed from notes of third parties")


def sampler(name: str) -> tuple:
    made = composition.build(name).sampler
    return made.order, made.temperature, made.length, made.steps, made.block


# ------------------------------------------------------------------------------------------------------- JustGRPO
@cell(
    "just_grpo",
    "loss, gradient",
    "equal",
    "clipped ratio of every token in its left-to-right state, over the canvas' length and the number of samples with A "
    "not 0; A over the group's deviation + 1e-4",
)
def test_just_grpo_gradient() -> None:
    t = text_trial("just_grpo")
    a = standardised(t.rewards, 1, 1e-4)
    assert torch.allclose(a, t.it.advantage)
    canvas = t.content.shape[1]
    tokens = torch.arange(canvas)
    for view in range(canvas):  # each is one token's state: it and what follows hidden, earlier ones shown
        hidden = t.rows.inputs[:, view] == t.policy.mask_token
        known = t.content & (tokens < view)
        assert torch.equal(hidden[t.content[:, view]], ~known[t.content[:, view]])
    each = torch.where(t.mask, clipped(t.live - t.old, a[:, None, None], 0.2, 0.2), 0.0)
    count = int((a != 0).sum())
    assert isinstance(t.algorithm.selection, NonzeroAdvantage)
    assert alike(t.gradient, t.gradient_of(each.sum() / (canvas * count)))


@cell("just_grpo", "defaults", "equal", "left to right, one token a step, T 1, 256 tokens, clip .2, no KL")
def test_just_grpo_settings() -> None:
    made = composition.build("just_grpo")
    assert sampler("just_grpo") == ("leftmost", 1.0, 256, 256, 1) and made.sampler.exact
    assert (made.objective.clip_range, made.regularizers) == ((0.2, 0.2), ())
    assert made.estimator.views == Leftmost(limit=256)


@cell("just_grpo", "defaults", "option", '"fast": `positions: low_logp` (NeMo-RL) or `entropy`, both biased')
def test_just_grpo_fast() -> None:
    made = composition.build({"use": "just_grpo", "positions": "low_logp"})
    assert made.estimator.views.draws == 64 and made.sampler.keep_scores
    t = text_trial("just_grpo", positions="low_logp", share=0.3)
    lowest = torch.where(t.content, t.it.rollout.trace.logp, torch.inf).argmin(dim=1)
    assert torch.equal(t.mask[:, 0].int().argmax(dim=1), lowest)


@cell(
    "just_grpo, agrpo, d2, cj_grpo, espo, ebpo",
    "gradient",
    "deviation",
    "what follows the end token, or the block that holds it, is neither sampled nor scored",
    reason="the releases fill the canvas with end tokens and (but agrpo) train them like content",
)
def test_nothing_behind_the_end() -> None:
    for name in ("just_grpo", "agrpo", "d2", "cj_grpo", "espo", "ebpo"):
        t = text_trial(name)
        never = t.it.rollout.trace.order < 0 if name == "just_grpo" else ~t.content
        asked = t.mask.any(dim=1) & never
        inside = t.it.rollout.trace.order >= 0
        assert bool(never.any()) and not bool((asked & ~inside).any())


# ---------------------------------------------------------------------------------------------------------- AGRPO
def agrpo_loss(t: TextTrial, chance: Tensor, last: Tensor) -> Tensor:
    """Sum over tokens of a drawn step, times (1 / (S + 1)) / q, over draws and samples."""
    a = centred(t.rewards)
    assert torch.allclose(a, t.it.advantage)
    total, draws = torch.zeros(()).double(), t.mask.shape[1]
    order = t.it.rollout.trace.order
    for row in range(len(a)):
        for view in range(draws):
            asked = t.mask[row, view]
            step = int(order[row][asked].unique())  # one step of the sampler, all that it fixed
            assert torch.equal(asked, order[row] == step)
            each = clipped(t.live[row, view] - t.old[row, view], a[row], 0.2, 0.2)[asked].sum()
            total = total + each * (1 / (last[row] + 1)) / chance[row, step]
    return total / (draws * len(a))


def last_step(t: TextTrial) -> Tensor:
    """Of the last token that is not the end."""
    trace = t.it.rollout.trace
    other = trace.mask & (trace.tokens != 0)
    return torch.where(other, trace.order, 0).amax(dim=1)


PLAIN = {"temperature": 1.0, "draws": 4, "sampler": {"top_p": 1.0, "top_k": None}}


@cell(
    "agrpo",
    "loss, gradient",
    "equal",
    "clipped tokens of steps drawn by their summed entropy, weight (1 / (S + 1)) / q, over draws and samples",
)
def test_agrpo_gradient() -> None:
    t = text_trial("agrpo", **PLAIN)
    trace, last = t.it.rollout.trace, last_step(t)
    summed = torch.stack([torch.where(trace.order == k, trace.entropy, 0.0).sum(dim=1) for k in range(3)], dim=1)
    possible = torch.arange(3) <= last[:, None]
    summed = torch.where(possible, summed.double() + 1e-8, 0.0)
    assert alike(t.gradient, t.gradient_of(agrpo_loss(t, summed / summed.sum(dim=1, keepdim=True), last)))


@cell("agrpo", "loss, gradient", "option", "`law: uniform`: every step as likely")
def test_agrpo_uniform() -> None:
    t = text_trial("agrpo", law="uniform", **PLAIN)
    last = last_step(t)
    even = (1 / (last + 1).double())[:, None].expand(-1, 3)
    assert alike(t.gradient, t.gradient_of(agrpo_loss(t, even, last)))
    path = text_trial("agrpo", law="uniform", of="path", **PLAIN)
    assert torch.allclose(path.rows.weights.amax(dim=2), (last + 1)[:, None].double().expand(-1, 4))


@cell(
    "agrpo",
    "gradient",
    "deviation",
    "the uniform law also draws the last step",
    reason="the release takes floor(u S) with S the last step's number from 0, which never draws it",
)
def test_agrpo_draws_the_last_step() -> None:
    t = text_trial("agrpo", law="uniform", **PLAIN)
    last = last_step(t)
    drawn = (t.mask & (t.it.rollout.trace.order == last[:, None])[:, None]).any(dim=(1, 2))
    assert float(drawn[last > 0].double().mean()) > 0.9
    assert not bool(((torch.rand(1000) * 2).floor() == 2).any())


@cell(
    "agrpo",
    "gradient",
    "deviation",
    "tokens that are kept are those of the weights in use, with the drawn one",
    reason="the release stores the sampler's mask over the vocabulary, .4 GB for eight rows; equal before an update",
)
def test_agrpo_keeps_the_drawn_token() -> None:
    t = text_trial("agrpo", off=1.0, draws=4, sampler={"top_p": 0.6})
    assert t.rows.truncation.top_p == 0.6 and t.rows.temperature == 0.6
    assert math.isfinite(float(t.gradient.norm())) and float(t.gradient.norm()) > 0


@cell(
    "agrpo",
    "defaults",
    "equal",
    "384 tokens in 128 steps, blocks of 12, random positions, T .6, top-p .99, top-k 150, 24 draws by entropy, clip .2",
)
def test_agrpo_settings() -> None:
    made = composition.build("agrpo")
    assert sampler("agrpo") == ("random", 0.6, 384, 128, 12)
    assert (made.sampler.top_p, made.sampler.top_k, made.objective.clip_range) == (0.99, 150, (0.2, 0.2))
    assert made.estimator.views == SampledSteps(draws=24, law="entropy") and made.estimator.tempered


# ------------------------------------------------------------------------------------------------- d2 and CJ-GRPO
@cell(
    "d2",
    "loss, gradient",
    "equal",
    "tokens of a segment of steps in its first state, clip .5, .04 k3, mean over all tokens of the batch",
)
def test_d2_gradient() -> None:
    t = text_trial("d2", segments=2, off=1.0)
    a = centred(t.rewards)
    assert torch.allclose(a, t.it.advantage) and t.algorithm.estimator.views.merge == 2
    order = t.it.rollout.trace.order
    for segment, begins in enumerate((0, 2)):
        assert torch.equal(t.mask[:, segment], t.content & (order // 2 == segment))
        shown = t.rows.inputs[:, segment] != t.policy.mask_token
        assert torch.equal(shown, (order >= 0) & (order < begins))
    each = clipped(t.live - t.old, a[:, None, None], 0.5, 0.5) + 0.04 * k3(t.live, t.reference)
    assert alike(t.gradient, t.gradient_of(mean_over(each, t.mask)))


@cell("d2", "defaults", "equal", "16 segments (8 for GSM8K and MATH), clip .5, KL .04, a clean prompt; sampler as d1's")
def test_d2_settings() -> None:
    made = composition.build("d2")
    assert sampler("d2") == sampler("diffu_grpo") and made.estimator.corrupt == 0
    assert made.estimator.views == Trajectory(limit=16, merge=8, through="end", by="steps")
    assert (made.objective.clip_range, made.regularizers[0].weight) == ((0.5, 0.5), 0.04)


@cell(
    "cj_grpo",
    "loss, gradient",
    "equal",
    "per step the mean over its tokens in the batch, clip .5 and .04 k3, then over steps",
)
def test_cj_grpo_gradient() -> None:
    t = text_trial("cj_grpo", off=1.0, schedule="doubling", steps=2)
    a = centred(t.rewards)
    assert torch.allclose(a, t.it.advantage)
    each = clipped(t.live - t.old, a[:, None, None], 0.5, 0.5) + 0.04 * k3(t.live, t.reference)
    order = t.it.rollout.trace.order
    per_step = [mean_over(each[:, k], (order == k)) for k in range(2)]
    assert int((order == 0).sum()) < int((order == 1).sum())
    assert alike(t.gradient, t.gradient_of(sum(per_step) / 2))


@cell(
    "cj_grpo",
    "defaults",
    "equal",
    "256 tokens in 128 steps, blocks of 128, T 1, clip .5, KL .04, reference mixed by .6 every 64 updates",
)
def test_cj_grpo_settings() -> None:
    made = composition.build("cj_grpo")
    assert sampler("cj_grpo") == ("low_confidence", 1.0, 256, 128, 128)
    assert made.estimator.views == Trajectory(limit=128) and made.ema_weights[0].decay == Every(64, 0.4)
    assert (made.objective.clip_range, made.regularizers[0].weight) == ((0.5, 0.5), 0.04)


@cell(
    "cj_grpo",
    "defaults",
    "option",
    "EOSER `{end_reserve: 0.01, block: null}`; ASS `{schedule: doubling, steps: 8, block: null}`",
)
def test_cj_grpo_decodings() -> None:
    ass = composition.build({"use": "cj_grpo", "schedule": "doubling", "steps": 8, "block": None, "end_reserve": 0.01})
    assert ass.sampler.forwards == 8 and ass.estimator.views.limit == 8
    # the released factor of step i is .01 + .99 (2^(i + 1) - 1) / 2^8 with doubling, .01 + .99 i / 127 without
    from flowrl.samplers.masked import Canvas

    canvas = Canvas.__new__(Canvas)
    for spec, wanted in (
        (ass.sampler, [0.01 + 0.99 * (2 ** (i + 1) - 1) / 2**8 for i in range(8)]),
        (
            composition.build({"use": "cj_grpo", "block": None, "end_reserve": 0.01}).sampler,
            [0.01 + 0.99 * i / 127 for i in range(128)],
        ),
    ):
        canvas.options = spec
        assert torch.allclose(torch.tensor([canvas._reserve(i) for i in range(len(wanted))]), torch.tensor(wanted))


# --------------------------------------------------------------------------------------------------- ESPO and EBPO
def bound(t: TextTrial, lp: Tensor) -> Tensor:
    """[N] the mean over views of weighted sums, each weight taken from the view's number of hidden positions."""
    return (lp * t.rows.weights).sum(dim=2).mean(dim=1)


@cell(
    "espo",
    "loss, gradient",
    "equal",
    "one ratio exp((B - B_old) / L), clip .2, plus .001 (B - B_ref)^2 / (2 L); B half of (L + 1) / k and (L + 1) / "
    "(L - k) times the sums of a mask and its complement; leave-one-out advantage",
)
def test_espo_gradient() -> None:
    t = text_trial("espo", off=1.0, kl=0.05)
    a, length = others_mean(t.rewards), t.content.sum(dim=1).double()
    assert torch.allclose(a, t.it.advantage)

    def elbo(lp: Tensor) -> Tensor:
        halves = []
        for pair in (0, 1):
            for view in (pair, 2 + pair):
                k = t.mask[:, view].sum(dim=1)
                halves.append((length + 1) / k.clamp(min=1) * (lp[:, view] * t.mask[:, view]).sum(dim=1))
        return sum(halves) / 4

    live, old, reference = elbo(t.live), elbo(t.old), elbo(t.reference)
    loss = clipped((live - old) / length, a, 0.2, 0.2) + 0.05 * (live - reference) ** 2 / 2 / length
    assert alike(t.gradient, t.gradient_of(loss.mean()))
    assert t.metrics["clip_fraction"] > 0


@cell(
    "espo",
    "defaults",
    "equal",
    "256 tokens in 256 steps, blocks of 32, T 1, two pairs, clip .2, KL .001 (GSM8K, MATH), new masks each epoch, "
    "reference mixed by .6 every 64 updates",
)
def test_espo_settings() -> None:
    made = composition.build("espo")
    assert sampler("espo") == ("low_confidence", 1.0, 256, 256, 32) and made.redraw
    assert made.estimator.views == CountPairs(pairs=2) and made.ema_weights[0].decay == Every(64, 0.4)
    assert (made.objective.clip_range, made.regularizers[0].weight) == ((0.2, 0.2), 1e-3)


@cell(
    "espo",
    "loss",
    "deviation",
    "L is the completion's own length; numbers of hidden tokens are stratified within it",
    reason="the release counts the canvas, whose tail is not sampled here, and stratifies over a process's batch",
)
def test_espo_length() -> None:
    t = text_trial("espo")
    assert bool((t.content.sum(dim=1) < t.rows.inputs.shape[2]).any()) and torch.equal(t.rows.content, t.content)
    pair = t.mask[:, 0].sum(dim=1) + t.mask[:, 2].sum(dim=1)
    assert torch.equal(pair, t.content.sum(dim=1))


@cell(
    "ebpo",
    "loss, gradient",
    "equal",
    "one ratio exp(B - B_old) of whole completions, clipped; B the mean over draws of sums over blocks of n / k times "
    "the hidden tokens; k2 of B",
)
def test_ebpo_gradient() -> None:
    t = text_trial("ebpo", off=0.3, draws=3, kl=0.05, length=4, block=2)
    a = centred(t.rewards)
    size = torch.stack([t.content[:, 2 * (view % 2) : 2 * (view % 2) + 2].sum(dim=1) for view in range(6)], dim=1)

    def composite(lp: Tensor) -> Tensor:
        k = t.mask.sum(dim=2)
        return (size / k.clamp(min=1) * (lp * t.mask).sum(dim=2)).sum(dim=1) / 3

    live, old, reference = composite(t.live), composite(t.old), composite(t.reference)
    loss = clipped(live - old, a, 0.2, 0.2) + 0.05 * (live - reference) ** 2 / 2
    assert alike(t.gradient, t.gradient_of(loss.mean()))


@cell("ebpo", "defaults", "equal", "16 draws, blocks of 32, T .6, no KL; the clip, .2, is a placeholder")
def test_ebpo_settings() -> None:
    made = composition.build("ebpo")
    assert made.estimator.views == EveryBlock(length=256, block=32, repeats=16) and made.sampler.temperature == 0.6
    assert (made.objective.clip_range, made.regularizers, made.objective.by_length) == ((0.2, 0.2), (), False)


@cell(
    "ebpo",
    "gradient",
    "deviation",
    "every block is a view of its own",
    reason="a block-diffusion model answers all in one forward of twice the length; the mean is the same",
)
def test_ebpo_costs_a_row_per_block() -> None:
    assert composition.build("ebpo").estimator.decisions(256) == (128, 128)


# ------------------------------------------------------------------------------------------------------ StableDRL
def scores_of(t: TextTrial, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SPG's score per token, and the lower bounds per token of new and old."""
    lower, old = (mean_over(lp, t.mask, 2).mean(dim=1) for lp in (t.live, t.old))
    length = t.content.sum(dim=1).double()
    share = t.mask.sum(dim=2, keepdim=True) / length[:, None, None]
    inside, seen = torch.where(t.mask, t.live.exp() ** 1.5 / share, 0.0).mean(dim=1), t.mask.any(dim=1)
    upper = torch.where(seen, inside, 1.0).log().sum(dim=1) / seen.sum(dim=1) / 1.5
    return torch.where(a > 0, lower, 0.5 * upper + 0.5 * lower), lower, old


@cell(
    "stable_drl",
    "loss, gradient",
    "equal",
    "-sum w A S with SPG's score per token and w = softmax(min(log r, log 5)) over the batch",
)
def test_stable_drl_gradient() -> None:
    t = text_trial("stable_drl", off=1.0, high=1.2)
    a = centred(t.rewards)
    score, lower, old = scores_of(t, a)
    log_ratio = (lower - old).detach()
    weight = log_ratio.clamp(max=math.log(1.2)).softmax(dim=0)
    assert bool((log_ratio > math.log(1.2)).any())
    assert alike(t.gradient, t.gradient_of(-(weight * a * score).sum()))


@cell("stable_drl", "loss, gradient", "option", "the paper's text: `{low: 0.8, high: 1.2}`, clipped on both sides")
def test_stable_drl_of_the_text() -> None:
    t = text_trial("stable_drl", off=1.0, low=0.8, high=1.2)
    a = centred(t.rewards)
    score, lower, old = scores_of(t, a)
    ratio = (lower - old).detach().exp().clamp(0.8, 1.2)
    assert alike(t.gradient, t.gradient_of(-(ratio / ratio.sum() * a * score).sum()))


@cell(
    "stable_drl",
    "gradient",
    "deviation",
    "new and old see the same masks, and the weights sum to one over the whole batch",
    reason="the release draws other masks for the old bound, so that noise is in the weights, and sums on each process",
)
def test_stable_drl_weights_are_even_at_first() -> None:
    t = text_trial("stable_drl", off=0.0)
    a = centred(t.rewards)
    score, lower, old = scores_of(t, a)
    assert torch.allclose(lower, old)
    assert alike(t.gradient, t.gradient_of(-(a * score).mean()))


@cell("stable_drl", "defaults", "equal", "SPG's views and sampler, two views, power 1.5, omega .5, ratios up to 5")
def test_stable_drl_settings() -> None:
    made = composition.build("stable_drl")
    assert sampler("stable_drl") == ("low_confidence", 0.9, 256, 128, 32)
    assert made.estimator.views == BlockAndAfter(block=32, draws=2, corrupt=0.15) and made.estimator.corrupt == 0.15
    assert (made.objective.omega, made.objective.power, made.objective.low, made.objective.high) == (0.5, 1.5, 0.0, 5.0)


# ------------------------------------------------------------------------------------------------ DiPO and DiFFPO
@cell(
    "dipo",
    "loss, gradient",
    "equal",
    "tokens of each step in its state, clip .8 to 1.28, .1 k3 to the reference, mean over all tokens, flat groups left "
    "out",
)
def test_dipo_gradient() -> None:
    t = text_trial("dipo", off=1.0)
    a = standardised(t.rewards, 0)
    assert torch.allclose(a, t.it.advantage)
    each = clipped(t.live - t.old, a[:, None, None], 0.2, 0.28) + 0.1 * k3(t.live, t.reference)
    kept = (t.rewards.std(dim=1) > 0).repeat_interleave(t.rewards.shape[1])
    assert alike(t.gradient, t.gradient_of(mean_over(each, t.mask & kept[:, None, None])))


@cell("dipo", "defaults", "equal", "blocks of 4, threshold .9, T 1, top-k 50 not scored, clip 1.28 above, KL .1")
def test_dipo_settings() -> None:
    made = composition.build("dipo")
    assert (made.sampler.block, made.sampler.threshold, made.sampler.temperature, made.sampler.top_k) == (4, 0.9, 1, 50)
    assert not made.estimator.tempered
    assert (made.objective.clip_range, made.regularizers[0].weight) == ((0.2, 0.28), 0.1)


@cell(
    "dipo",
    "gradient",
    "deviation",
    "every step is a view, as many as tokens at most",
    reason="a block-diffusion model scores the r-th steps of all blocks in one forward",
)
def test_dipo_views() -> None:
    made = composition.build("dipo")
    assert made.estimator.decisions(256)[1] == 256


@cell(
    "diffpo",
    "loss, gradient",
    "equal",
    "as the notes say: tokens fixed before a random step under the full mask, others in that step's state, clipped, "
    "times min(p_surrogate / p_sampler, C) of the policy that sampled",
)
def test_diffpo_gradient() -> None:
    t = text_trial("diffpo", off=1.0, temperature=1.0, cap=1.5)
    drawn = t.it.rollout.trace.logp
    weight = (t.old.detach() - drawn[:, None]).exp().clamp(max=1.5)
    a = centred(t.rewards)[:, None, None] * weight
    assert bool((weight[t.mask] == 1.5).any()) and bool((weight[t.mask] < 1).any())
    assert alike(t.gradient, t.gradient_of(mean_over(clipped(t.live - t.old, a, 0.5, 0.5), t.mask)))


@cell("diffpo", "defaults", "deviation", "clip .5, C = 2, diffu-GRPO's sampler", reason="none of them is confirmed")
def test_diffpo_settings() -> None:
    made = composition.build("diffpo")
    assert made.estimator.views == TwoStates() and made.token_advantage[0].cap == 2.0
    assert made.objective.clip_range == (0.5, 0.5) and made.sampler.keep_scores


# ----------------------------------------------------------------------------------------------------------- MDPO
@cell(
    "mdpo_dllm",
    "loss, gradient",
    "equal",
    "u_s = r_s - r_(s-1) + 1 + mean of later r, over the group at its step; the largest steps' predictions at masked "
    "positions, clipped, times length over number masked and confidence, over their number",
)
def test_mdpo_gradient() -> None:
    t = text_trial("mdpo_dllm", off=0.4, keep=2, temperature=0.8)
    trace, r = t.it.rollout.trace, t.it.scores.steps
    before = torch.cat([torch.zeros(len(r), 1).double(), r[:, :-1]], dim=1)
    later = torch.stack([r[:, 1:].mean(dim=1), r[:, 2:].mean(dim=1), r[:, 2]], dim=1)
    u = (r - before + 1 + later).view(2, 16, 3)
    a = ((u - u.mean(dim=1, keepdim=True)) / (u.std(dim=1, keepdim=True) + 1e-4)).view(32, 3)
    assert torch.allclose(a, t.it.advantage)
    kept = a.abs().sum(dim=0).topk(2).indices.tolist()
    assert len(kept) == 2
    loss, count = torch.zeros(()).double(), 0
    for step in kept:
        masked = trace.canvases[:, step] == t.policy.mask_token
        assert torch.equal(masked, t.mask[:, step])
        confidence = t.old[:, step].detach().exp()
        each = clipped(t.live[:, step] - t.old[:, step].detach(), a[:, step, None], 0.2, 0.2)
        scale = masked.shape[1] / masked.sum(dim=1, keepdim=True)
        loss = loss + (torch.where(masked, each * confidence, 0.0) * scale).sum()
        count += int(masked.sum())
    assert alike(t.gradient, t.gradient_of(loss / count))


@cell(
    "mdpo_dllm",
    "defaults",
    "equal",
    "512 tokens in 128 steps, one block, T .1, 16 steps of them, clip .2, no KL",
)
def test_mdpo_settings() -> None:
    made = composition.build("mdpo_dllm")
    assert sampler("mdpo_dllm") == ("low_confidence", 0.1, 512, 128, None)
    assert made.estimator.views == RecordedSteps(limit=128, weight="hidden") and made.token_advantage[0].keep == 16
    assert (made.objective.clip_range, made.regularizers) == ((0.2, 0.2), ())


@cell(
    "mdpo_dllm",
    "gradient",
    "deviation",
    "rewards of steps are centred within their group",
    reason="the release takes groups by steps from rows by steps, which is right for one group a batch alone",
)
def test_mdpo_centres_within_groups() -> None:
    t = text_trial("mdpo_dllm", temperature=0.8)
    mean = t.it.advantage.view(2, 16, 3).mean(dim=1)
    assert torch.allclose(mean, torch.zeros_like(mean), atol=1e-9)


# ----------------------------------------------------------------------------------------------------------- IGPO
@cell(
    "igpo",
    "loss, gradient",
    "equal",
    "failed groups with right hinted samples for their first ones, reward less the mixed group's mean, .8 to 1.28, "
    "mean over masked tokens and the fifth of masked hints of largest entropy",
)
@pytest.mark.parametrize("correct", [0.6, 1.0])
def test_igpo_gradient(correct: float) -> None:
    """Both groups solve a prompt by themselves, or none does and hints rescue one of them."""
    t = text_trial("igpo", off=1.0, correct=correct, sampler={"least": 1, "most": 1, "low": 0.4, "high": 1.0})
    trace, rewards = t.it.rollout.trace, t.rewards
    with t.policy.using("sampled"):
        p = t.policy._rows(t.it.rollout.condition, t.rows.inputs[:, 0])[0].double().softmax(dim=-1)
    entropy = -(p * p.log()).sum(dim=-1)
    loss, count, rescued = torch.zeros(()).double(), 0, 0
    for group in range(2):
        rows = list(range(16 * group, 16 * group + 16))
        hinted, own = rows[:4], rows[4:]
        right = [row for row in hinted if float(rewards.flatten()[row]) >= correct]
        if not any(float(rewards.flatten()[row]) >= correct for row in own):
            rescued, own = rescued + len(right), [*right, *own[len(right) :]]
        r = rewards.flatten()[own]
        for row, a in zip(own, r - r.mean(), strict=True):
            given = t.mask[row, 0] & trace.given[row]
            counted = t.mask[row, 0] & ~trace.given[row]
            if bool(given.any()):
                counted[torch.where(given, entropy[row], -1.0).argmax()] = True
            each = clipped(t.live[row, 0] - t.old[row, 0], a, 0.2, 0.28)
            loss, count = loss + each[counted].sum(), count + int(counted.sum())
    assert alike(t.gradient, t.gradient_of(loss / count)) and rescued == (correct == 1)


@cell(
    "igpo",
    "defaults",
    "equal",
    "T 1.2, blocks of 64, a step for two tokens, clip .2 and .28, chunks of 4 to 8 tokens, a fifth of the hints, no KL",
)
def test_igpo_settings() -> None:
    made = composition.build("igpo")
    assert sampler("igpo") == ("low_confidence", 1.2, 256, 128, 64)
    assert (made.sampler.least, made.sampler.most, made.sampler.low, made.sampler.high) == (4, 8, 0.2, 0.6)
    assert (made.objective.clip_range, made.regularizers, made.token_advantage[0].share) == ((0.2, 0.28), (), 0.2)


@cell(
    "igpo",
    "data",
    "deviation",
    "the first samples of every group are hinted, at the hints' own places; each epoch draws the rate of its masks",
    reason="the release samples them only where a group failed, spreads the chunks, and takes rates of an even grid",
)
def test_igpo_always_samples_hints() -> None:
    t = text_trial("igpo")
    assert t.it.rollout.source.view(2, 16)[:, :4].bool().all() and not t.it.rollout.source.view(2, 16)[:, 4:].any()
    assert composition.build("igpo").redraw


# ------------------------------------------------------------------------------------------------- ReflectDrive-2
@cell(
    "reflect_rollout",
    "loss, gradient",
    "equal",
    "as derived: the reward less the mean of the group times the log-probability of every token drawn, in draft "
    "or edit, in the state in which it was",
)
def test_reflect_rollout_gradient() -> None:
    t = text_trial("reflect_rollout", off=0.3, below=0.6)
    trace, a = t.it.rollout.trace, centred(t.rewards)
    total = torch.zeros(()).double()
    for step in range(trace.drawn.shape[1]):
        logits = t.policy._rows(t.it.rollout.condition, trace.canvases[:, step].long().clamp(min=0))[0].double()
        drawn = trace.drawn[:, step].long()
        each = logits.log_softmax(dim=-1).gather(-1, drawn.clamp(min=0)[..., None])[..., 0]
        total = total + (a * torch.where(drawn >= 0, each, 0.0).sum(dim=1)).mean()
    assert bool((trace.order >= 3).any())
    assert alike(t.gradient, t.gradient_of(-total))


@cell("reflect_rollout", "defaults", "deviation", "16 tokens, two edits below .3, no clip", reason="none is confirmed")
def test_reflect_rollout_settings() -> None:
    made = composition.build("reflect_rollout")
    assert (made.sampler.length, made.sampler.edits, made.sampler.below) == (16, 2, 0.3)
    assert made.sampler.exact and made.objective.clip_range is None and made.estimator.decisions(16) == (160, 10)

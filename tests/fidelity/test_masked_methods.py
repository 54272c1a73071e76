"""Presets for masked-diffusion language models, against the loss functions of their released code written out here."""

from __future__ import annotations

import math

import torch

from flowrl import composition
from flowrl.estimators.views import BlockAndAfter, BlockRandom, Quadrature
from flowrl.parts.ema import Every
from tests.fidelity import cell, release
from tests.fidelity.bench import alike, cosine
from tests.fidelity.text import centred, clipped, k3, mean_over, others_mean, standardised, text_trial

release("diffu_grpo", "dllm-reasoning/d1 837888f, 4 May 2025")
release("coupled_grpo", "apple/ml-diffucoder f735e01, 8 Jul 2025")
release(
    "gdpo_dllm", "derived code alone: YanJiangJerry/Block-R1 fd7a1b8, 16 May 2026; NVIDIA NeMo-RL research/gdpo 403a837"
)
release("spg", "facebookresearch/SPG a1c7120, 17 Oct 2025")
release("wd1", "xiaohangt/wd1 0898985, 8 Jul 2025")
release("tracerl", "Gen-Verse/dLLM-RL 10b4fd1, 28 Jan 2026")


def sampler(name: str) -> tuple:
    made = composition.build(name).sampler
    return made.order, made.temperature, made.length, made.steps, made.block


@cell(
    "diffu_grpo",
    "loss, gradient",
    "equal",
    "clipped token ratios under one full mask, plus .04 k3, mean over all tokens",
)
def test_diffu_grpo_gradient() -> None:
    t = text_trial("diffu_grpo", off=1.0)
    a = centred(t.rewards)
    assert torch.allclose(a, t.it.advantage)
    each = clipped(t.live - t.old, a[:, None, None], 0.5, 0.5) + 0.04 * k3(t.live, t.reference)
    assert alike(t.gradient, t.gradient_of(mean_over(each, t.mask)))
    assert 0 < t.metrics["clip_fraction"] < 1


@cell(
    "diffu_grpo",
    "defaults",
    "equal",
    "clip .5, KL .04, prompt masked at .15, T .9, low-confidence blocks of 32, 128 of 256 steps, new masks each epoch",
)
def test_diffu_grpo_settings() -> None:
    made = composition.build("diffu_grpo")
    assert sampler("diffu_grpo") == ("low_confidence", 0.9, 256, 128, 32) and made.redraw
    assert (made.objective.clip_range, made.regularizers[0].weight, made.estimator.corrupt) == ((0.5, 0.5), 0.04, 0.15)


@cell(
    "diffu_grpo, wd1, spg, gdpo_dllm, coupled_grpo",
    "gradient",
    "deviation",
    "what follows the end token is hidden in every view",
    reason=(
        "rows that ended are not sampled further here; in the releases a tail of end tokens is, and is shown "
        "in partial views"
    ),
)
def test_the_tail_is_hidden() -> None:
    for name in ("diffu_grpo", "wd1", "spg", "gdpo_dllm", "coupled_grpo"):
        t = text_trial(name)
        tail = ~t.content[:, None].expand_as(t.rows.inputs)
        assert bool(tail.any()) and bool((t.rows.inputs == t.policy.mask_token)[tail].all())
        assert not bool((t.rows.targets & tail).any())


@cell(
    "coupled_grpo",
    "loss, gradient",
    "equal",
    "half the full-mask and half the weighted partial score of a token, clip .5, .01 k3, token mean, "
    "leave-one-out advantage",
)
def test_coupled_gradient() -> None:
    t = text_trial("coupled_grpo")
    a = others_mean(t.rewards)
    assert torch.allclose(a, t.it.advantage)
    full, part, rest = t.rows.targets.unbind(dim=1)
    assert torch.equal(part | rest, full) and not bool((part & rest).any())
    ratio = t.rows.weights.amax(dim=2) / 1.5  # three views; a mean over them, times 3/2 in its place
    inverse = ratio[:, 1:]  # 1/t and 1/(1 - t) of this row; 0 where a view asks for nothing
    assert torch.allclose((1 / inverse.clamp(min=1e-9)).sum(dim=1)[(inverse > 0).all(dim=1)], torch.ones(1).double())

    def token(lp):
        return (lp[:, 0] + torch.where(part, lp[:, 1] * inverse[:, :1], lp[:, 2] * inverse[:, 1:])) / 2

    live, old, reference = token(t.live), token(t.old), token(t.reference)
    each = clipped(live - old, a[:, None], 0.5, 0.5) + 0.01 * k3(live, reference)
    assert alike(t.gradient, t.gradient_of(mean_over(each, t.content)))


@cell(
    "coupled_grpo",
    "defaults",
    "equal",
    "Dream's sampler by entropy at T 1.0 and top-p .95, 256 steps, reference mixed by .6 every 64 updates",
)
def test_coupled_settings() -> None:
    made = composition.build("coupled_grpo")
    assert sampler("coupled_grpo") == ("neg_entropy", 1.0, 256, 256, None)
    assert (made.sampler.top_p, made.sampler.schedule, made.sampler.tempered_order) == (0.95, "time", True)
    assert made.ema_weights[0].decay == Every(64, 0.4) and made.ema_weights[0].name == "reference"
    assert (made.objective.clip_range, made.regularizers[0].weight, made.estimator.corrupt) == ((0.5, 0.5), 0.01, 0.0)


@cell(
    "gdpo_dllm",
    "loss, gradient",
    "equal",
    "one ratio exp((B - B_old) / L), clip .5, three Gauss nodes of exactly floor(t L) hidden tokens",
)
def test_gdpo_gradient() -> None:
    t = text_trial("gdpo_dllm", off=1.0)
    nodes = torch.tensor([0.5 - math.sqrt(0.15), 0.5, 0.5 + math.sqrt(0.15)])
    weights = torch.tensor([5 / 18, 8 / 18, 5 / 18]).double()
    length = t.content.sum(dim=1)
    asked = torch.tensor([[max(1, int(float(node) * int(n))) for node in nodes] for n in length])
    assert torch.equal(t.mask.sum(dim=2), asked)

    def bound(lp):
        return ((lp * t.mask).sum(dim=2) * (weights / nodes)).sum(dim=1)

    a = centred(t.rewards)
    d = (bound(t.live) - bound(t.old)) / length
    assert alike(t.gradient, t.gradient_of(clipped(d, a, 0.5, 0.5).mean()))
    beyond = torch.where(a > 0, d.exp() > 1.5, d.exp() < 0.5) & (a != 0)
    assert 0 < 2 * t.metrics["clip_fraction"] == float(beyond.double().mean())  # none in the first of two updates


@cell(
    "gdpo_dllm",
    "gradient",
    "option",
    "the paper's form: the ratio of whole completions, clip .2, random numbers of hidden tokens, loss over length",
)
def test_gdpo_of_the_paper() -> None:
    spec = {"clip": 0.2, "objective": {"by_length": False}, "estimator": {"views": {"counts": "bernoulli"}}}
    t = text_trial("gdpo_dllm", off=0.1, loss_weight={"use": "by_length", "power": -1.0}, **spec)
    nodes, weights = torch.tensor([0.5 - math.sqrt(0.15), 0.5, 0.5 + math.sqrt(0.15)]), torch.tensor([5, 8, 5]) / 18
    length = t.content.sum(dim=1).double()

    def bound(lp):
        return ((lp * t.mask).sum(dim=2) * (weights / nodes)).sum(dim=1)

    loss = clipped(bound(t.live) - bound(t.old), centred(t.rewards), 0.2, 0.2) * length.mean() / length
    assert alike(t.gradient, t.gradient_of(loss.mean()))


@cell(
    "gdpo_dllm",
    "defaults",
    "equal",
    "clip .5, no KL, three nodes with one mask each; rate 3e-7 and gradient norm .2 belong to the recipe",
)
def test_gdpo_settings() -> None:
    made = composition.build("gdpo_dllm")
    assert made.objective.clip_range == (0.5, 0.5) and made.regularizers == ()
    assert made.estimator.views == Quadrature(nodes=3, repeats=1, counts="floor")


@cell(
    "gdpo_dllm",
    "loss",
    "deviation",
    "L is the completion's own length",
    reason="as in NeMo-RL; Block-R1 counts and scores the whole canvas, which is not sampled behind the end here",
)
def test_gdpo_length_is_the_contents() -> None:
    t = text_trial("gdpo_dllm")
    assert bool((t.content.sum(dim=1) < t.rows.inputs.shape[2]).any())
    assert torch.equal(t.rows.content, t.content)


@cell(
    "spg",
    "loss, gradient",
    "equal",
    "-A score weighted by length; mean log-probability of what is hidden for A > 0, half the upper bound "
    "(power 1.5) else",
)
def test_spg_gradient() -> None:
    t = text_trial("spg")
    a, length = centred(t.rewards), t.content.sum(dim=1).double()
    lower = mean_over(t.live, t.mask, 2).mean(dim=1)
    share = t.mask.sum(dim=2, keepdim=True) / length[:, None, None]  # empirical t
    inside = torch.where(t.mask, t.live.exp() ** 1.5 / share, 0.0).mean(dim=1)
    seen = t.mask.any(dim=1)
    upper = torch.where(seen, inside, 1.0).log().sum(dim=1) / seen.sum(dim=1) / 1.5
    score = torch.where(a > 0, lower, 0.5 * upper + 0.5 * lower)
    assert alike(t.gradient, t.gradient_of((-a * score * length).sum() / length.sum()))


@cell(
    "spg",
    "defaults",
    "equal",
    "two views of block_random, .15 masked, T .9, blocks of 32; power 1.5, omega .5 (GSM8K, MATH, Countdown)",
)
def test_spg_settings() -> None:
    made = composition.build("spg")
    assert sampler("spg") == ("low_confidence", 0.9, 256, 128, 32)
    assert made.estimator.views == BlockAndAfter(block=32, draws=2, corrupt=0.15) and made.estimator.corrupt == 0.15
    assert (made.objective.omega, made.objective.power, made.regularizers) == (0.5, 1.5, ())


@cell(
    "spg", "defaults", "option", "Sudoku `power: 1.0, temperature: 0.3`; spg_eubo `omega: 1` (Countdown `power: 2.0`)"
)
def test_spg_by_task() -> None:
    sudoku = composition.build({"use": "spg", "power": 1.0, "temperature": 0.3})
    assert (sudoku.objective.power, sudoku.sampler.temperature) == (1.0, 0.3)
    assert composition.build({"use": "spg", "omega": 1.0, "power": 2.0}).objective.omega == 1.0


@cell(
    "spg",
    "gradient",
    "option",
    "`estimator: {views: block_random}`, the bound that the text describes; another gradient",
)
def test_spg_of_the_text() -> None:
    plan = {"use": "block_random", "block": 2}
    other = text_trial("spg", estimator={"views": plan})
    assert isinstance(other.algorithm.estimator.views, BlockRandom)
    assert cosine(other.gradient, text_trial("spg").gradient) < 0.98


@cell(
    "wd1",
    "loss, gradient",
    "equal",
    "softmax(a) - softmax(-a) of a group times summed one-step log-probabilities, summed over the group",
)
def test_wd1_gradient() -> None:
    t = text_trial("wd1")
    a = centred(t.rewards).view_as(t.rewards)
    weight = (a.softmax(dim=1) - (-a).softmax(dim=1)).flatten()
    summed = (t.live * t.mask).sum(dim=(1, 2))
    assert alike(t.gradient, t.gradient_of(-(weight * summed).view_as(t.rewards).sum(dim=1).mean()))


@cell("wd1", "defaults", "equal", "temperature 1 of the weights, prompt masked at .15, diffu-GRPO's rollouts")
def test_wd1_settings() -> None:
    made = composition.build("wd1")
    assert sampler("wd1") == sampler("diffu_grpo") and made.advantage.temperature == 1.0
    assert made.estimator.corrupt == 0.15 and made.regularizers == ()


@cell(
    "tracerl",
    "loss, gradient",
    "equal",
    "clipped token mean of a view plus .01 times the sum of its k3 to the sampling policy, mean over all views",
)
def test_tracerl_gradient() -> None:
    t = text_trial("tracerl", merge=2)
    a = standardised(t.rewards, 0)
    assert torch.allclose(a, t.it.advantage)
    d = t.live - t.old
    views = t.mask.any(dim=2)
    policy = mean_over(clipped(d, a[:, None, None], 0.2, 0.2), t.mask, 2)[views]
    divergence = torch.where(t.mask, (-d).exp() - 1 + d, 0.0).sum(dim=2)[views]
    assert alike(t.gradient, t.gradient_of((policy + 0.01 * divergence).mean()))
    assert 0 < t.metrics["clip_fraction"] < 1 and int(views.sum()) != 2 * len(views)


@cell(
    "tracerl",
    "defaults",
    "equal",
    "T .8, 512 steps of one token, blocks of 32, 8 steps a view, clip .2, .01 KL, scores at T 1 before the end token",
)
def test_tracerl_settings() -> None:
    made = composition.build("tracerl")
    assert sampler("tracerl") == ("low_confidence", 0.8, 512, 512, 32)
    assert (made.estimator.views.merge, made.estimator.views.through, made.estimator.tempered) == (
        8,
        "before_end",
        False,
    )
    assert (made.objective.clip_range, made.regularizers[0].weight) == ((0.2, 0.2), 0.01)


@cell(
    "tracerl",
    "gradient",
    "option",
    "`sampler: {order: max_prob}` with `estimator: {tempered: true, views: {through: all}}`: the exact "
    "path, as `trajectory_pg`",
)
def test_tracerl_exact() -> None:
    made = composition.build({"use": "tracerl", "merge": 1, "sampler": {"order": "max_prob"}})
    assert made.sampler.exact and not composition.build("tracerl").sampler.exact

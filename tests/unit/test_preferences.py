"""Losses of pairs and labels by their closed forms, minimisers and slopes."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor

from flowrl.estimators.tokens import TokenRows
from flowrl.parts.loss_weights import PerToken
from flowrl.parts.preferences import LOSSES, Desirable, Preference, ReferenceFree
from flowrl.types import Batch, IncompatibleError, Likelihood, Table

BETA, EPS = 0.3, 0.15
W, X = (2.0, -1.0, 0.5, 0.0), (-1.0, 1.5, 0.2, 0.0)


def sigma(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def robust(z: float) -> float:
    return (-(1 - EPS) * math.log(sigma(z)) + EPS * math.log(sigma(-z))) / (1 - 2 * EPS)


def exo(z: float) -> float:
    p, q = sigma(z), 1 - EPS
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def discopop(z: float) -> float:
    gate = sigma(z / 0.05)
    return (1 - gate) * -math.log(sigma(z)) + gate * math.exp(-z)


FORMS: dict[str, Callable[[float, float], float]] = {
    "sigmoid": lambda w, x: -math.log(sigma(BETA * (w - x))),
    "hinge": lambda w, x: max(0.0, 1 - BETA * (w - x)),
    "ipo": lambda w, x: (w - x - 1 / (2 * BETA)) ** 2,
    "robust": lambda w, x: robust(BETA * (w - x)),
    "exo_pair": lambda w, x: exo(BETA * (w - x)),
    "nca_pair": lambda w, x: (
        -math.log(sigma(BETA * w)) - 0.5 * math.log(sigma(-BETA * w)) - 0.5 * math.log(sigma(-BETA * x))
    ),
    "bco_pair": lambda w, x: -math.log(sigma(BETA * w)) - math.log(sigma(-BETA * x)),
    "sppo_hard": lambda w, x: (w - 1 / (2 * BETA)) ** 2 + (x + 1 / (2 * BETA)) ** 2,
    "apo_zero": lambda w, x: 1 - sigma(BETA * w) + sigma(BETA * x),
    "apo_down": lambda w, x: sigma(BETA * w) + 1 - sigma(BETA * (w - x)),
    "discopop": lambda w, x: discopop(BETA * (w - x)),
}
SMOOTHED = ("robust", "exo_pair")


def batch_of(label: list[int], group: list[int], lengths: list[int] | None = None) -> Batch:
    """Completions of these lengths, with these signs of their advantages, in these groups."""
    lengths = lengths or [1] * len(label)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    rows = TokenRows(torch.zeros(mask.shape, dtype=torch.int64), mask, None, 1.0)
    weight = mask / mask.sum(dim=1, keepdim=True) / len(label)
    advantage = torch.tensor(label)[:, None].expand(mask.shape).double()
    return Batch(advantage, Likelihood(torch.zeros(mask.shape)), weight.double(), torch.tensor(group), rows)


def spread(values: Tensor, batch: Batch) -> Tensor:
    """[N, D] tokens, the same in a completion, that sum to these values [N]."""
    mask = batch.weight > 0
    return torch.where(mask, (values / mask.sum(dim=1))[:, None], 0.0)


def total(objective: Preference | ReferenceFree | Desirable, live: Tensor, reference: Tensor, batch: Batch) -> Tensor:
    """The weighted loss of completions with these log-probabilities [N]."""
    logp = spread(live, batch)
    ratio = (logp - spread(reference, batch)).detach()
    return (batch.weight * objective(Likelihood(logp, {"log_ratio/reference": ratio}), batch)).sum()


def interleaved(w: tuple[float, ...], x: tuple[float, ...]) -> Tensor:
    return torch.tensor([value for pair in zip(w, x, strict=True) for value in pair], dtype=torch.float64)


def pairs(count: int, lengths: list[int] | None = None) -> Batch:
    return batch_of([1, -1] * count, [index // 2 for index in range(2 * count)], lengths)


@pytest.mark.parametrize("loss", FORMS)
@pytest.mark.parametrize("length", [1, 3])
def test_losses_are_their_closed_forms(loss: str, length: int) -> None:
    """Value and, by differences, slope; the reference is subtracted, and the mean is over pairs."""
    smoothing = EPS if loss in SMOOTHED else 0.0
    objective = Preference(loss, BETA, smoothing)  # pyright: ignore[reportArgumentType]
    batch, reference = pairs(4, [length] * 8), torch.linspace(-3, 1, 8).double()
    live = (interleaved(W, X) + reference).requires_grad_()
    got = total(objective, live, reference, batch)
    wanted = sum(FORMS[loss](w, x) for w, x in zip(W, X, strict=True)) / 4
    assert got.item() == pytest.approx(wanted, rel=1e-6)
    slope = torch.autograd.grad(got, live)[0]
    for index, (w, x) in enumerate(zip(W, X, strict=True)):
        h = 1e-5
        if loss == "hinge" and abs(1 - BETA * (w - x)) < h:
            continue
        by_w = (FORMS[loss](w + h, x) - FORMS[loss](w - h, x)) / (2 * h) / 4
        by_x = (FORMS[loss](w, x + h) - FORMS[loss](w, x - h)) / (2 * h) / 4
        assert slope[2 * index : 2 * index + 2].tolist() == pytest.approx([by_w, by_x], rel=1e-4, abs=1e-7)


def test_every_loss_has_its_form_here() -> None:
    assert set(LOSSES) == {*FORMS, "aot_unpaired"}


def test_at_the_reference_a_pair_is_pulled_apart_by_half_of_beta() -> None:
    live = torch.tensor([-1.0, -2.0]).double().requires_grad_()
    slope = torch.autograd.grad(total(Preference(beta=BETA), live, live.detach(), pairs(1)), live)[0]
    assert slope.tolist() == pytest.approx([-BETA / 2, BETA / 2])


def test_sorted_margins_couple_the_pairs_of_a_batch() -> None:
    """AOT: sorted margins of the policy less sorted ones of the reference; unpaired: sorted scores."""
    live, reference = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).double()
    ours, theirs = (sorted((v[0::2] - v[1::2]).tolist()) for v in (live, reference))
    wanted = sum(-math.log(sigma(BETA * (a - b))) for a, b in zip(ours, theirs, strict=True)) / 4
    assert float(total(Preference("aot", BETA), live, reference, pairs(4))) == pytest.approx(wanted)
    s = live - reference
    w, x = sorted(s[0::2].tolist()), sorted(s[1::2].tolist())
    wanted = sum(-math.log(sigma(BETA * (a - b))) for a, b in zip(w, x, strict=True)) / 4
    assert float(total(Preference("aot_unpaired", BETA), live, reference, pairs(4))) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("link", "form"),
    [
        ("forward_kl", lambda s: 1 - math.exp(-s)),
        ("js", lambda s: math.log(2) + math.log(sigma(s))),
        ("alpha", lambda s: (math.exp(-0.5 * s) - 1) / -0.5),
    ],
)
def test_links_of_other_divergences(link: str, form: Callable[[float], float]) -> None:
    objective = Preference(beta=BETA, link=link)  # pyright: ignore[reportArgumentType]
    got = total(objective, interleaved(W, X), torch.zeros(8).double(), pairs(4))
    wanted = sum(-math.log(sigma(BETA * (form(w) - form(x)))) for w, x in zip(W, X, strict=True)) / 4
    assert got.item() == pytest.approx(wanted)
    slope = (form(1e-6) - form(-1e-6)) / 2e-6
    assert (form(0.0), slope) == (0, pytest.approx(0.5 if link == "js" else 1, abs=1e-6))


def test_label_smoothing_is_read_or_refused() -> None:
    """TRL 1.16 takes label_smoothing for its sigmoid loss and ignores it."""
    z = torch.linspace(-3, 3, 601).double()
    zero = torch.zeros_like(z)
    smoothed = LOSSES["sigmoid"](z, zero, 1.0, 0.2)
    assert float(z[smoothed.argmin()]) == pytest.approx(math.log(0.8 / 0.2), abs=0.01)  # 1.386
    fair = LOSSES["sigmoid"](z, zero, 1.0, 0.0)
    flipped = 0.8 * LOSSES["robust"](z, zero, 1.0, 0.2) + 0.2 * LOSSES["robust"](-z, zero, 1.0, 0.2)
    assert float((flipped - fair).abs().max()) < 1e-14  # unbiased under flips; conservative DPO is not
    off = 0.8 * smoothed + 0.2 * LOSSES["sigmoid"](-z, zero, 1.0, 0.2) - fair
    assert 0.9 < float(off.abs().max()) < 1.0
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1 means nothing for hinge"):
        Preference("hinge", label_smoothing=0.1)
    for wrong, problem in ((0.5, "from 0 to below"), (-0.1, "from 0 to below")):
        with pytest.raises(ValueError, match=problem):
            Preference(label_smoothing=wrong)
    with pytest.raises(ValueError, match="exo_pair infinite"):
        Preference("exo_pair")


# three actions: a completion is one of them, and labels follow Bradley and Terry
RHO, REFERENCE = torch.tensor([0.0, 0.7, 1.5]).double(), torch.tensor([0.5, 0.3, 0.2]).double()
ORDERED = list(permutations(range(3), 2))


def expected(objective: Preference | ReferenceFree, policy: Tensor) -> Tensor:
    """The loss over all ordered pairs, each as often as Bradley and Terry prefer its first."""
    batch = pairs(len(ORDERED))
    often = torch.tensor([sigma(float(RHO[w] - RHO[x])) for w, x in ORDERED], dtype=torch.float64).repeat_interleave(2)
    rows = torch.tensor(ORDERED).flatten()
    logp, other = policy.log()[rows, None], REFERENCE.log()[rows, None]
    ratio = (logp - other).detach()
    loss = objective(Likelihood(logp, {"log_ratio/reference": ratio}), batch)
    return (often[:, None] * loss).sum() / 2


def slope_at(objective: Preference | ReferenceFree, policy: Tensor) -> float:
    logits = policy.log().requires_grad_()
    return float(torch.autograd.grad(expected(objective, logits.softmax(dim=0)), logits)[0].norm())


def test_minimisers_on_three_actions() -> None:
    best = REFERENCE * (RHO / 0.5).exp()
    best = best / best.sum()
    assert best.tolist() == pytest.approx([0.0872, 0.2122, 0.7006], abs=1e-4)
    assert slope_at(Preference(beta=0.5), best) < 1e-12 < 1e-3 < slope_at(Preference(beta=0.5), REFERENCE)
    free = (RHO / 2).softmax(dim=0)
    assert free.tolist() == pytest.approx([0.2205, 0.3128, 0.4667], abs=1e-4)
    assert slope_at(ReferenceFree("mean", 2.0), free) < 1e-12 < 1e-3 < slope_at(ReferenceFree("mean", 2.0, 1.0), free)
    # IPO's gaps are the least-squares fit of (P - 1/2) / tau
    gaps = [(sigma(a) - 0.5) / 0.5 for a in (0.7, 1.5, 0.8)]
    assert gaps == pytest.approx([0.336, 0.635, 0.380], abs=1e-3)
    design = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]]).double()
    fit = torch.linalg.lstsq(design, torch.tensor(gaps, dtype=torch.float64)[:, None]).solution[:, 0]
    assert [*fit.tolist(), float(fit[1] - fit[0])] == pytest.approx([0.309, 0.662, 0.353], abs=1e-3)
    policy = REFERENCE * torch.cat([torch.zeros(1).double(), fit]).exp()
    assert slope_at(Preference("ipo", 0.5), policy / policy.sum()) < 1e-6


def test_scores_without_a_reference() -> None:
    lengths = [2, 4, 3, 1]
    live = torch.tensor([-2.0, -3.0, -1.5, -0.2]).double()
    batch, none = pairs(2, lengths), torch.zeros(4).double()
    mean = [value / length for value, length in zip(live.tolist(), lengths, strict=True)]
    forms: dict[str, Callable[[int], float]] = {
        "sum": lambda i: float(live[i]),
        "mean": lambda i: mean[i],
        "odds": lambda i: math.log(math.exp(mean[i]) / (1 - math.exp(mean[i]))),
        "power": lambda i: (1 - math.exp(mean[i]) ** -0.25) / 0.25,
    }
    for score, form in forms.items():
        objective = ReferenceFree(score, 2.0, 0.5, weight=3.0)  # pyright: ignore[reportArgumentType]
        wanted = 3 * sum(-math.log(sigma(2 * (form(i) - form(i + 1)) - 0.5)) for i in (0, 2)) / 2
        assert float(total(objective, live, none, batch)) == pytest.approx(wanted), score
    plain = float(total(ReferenceFree("mean"), live, none, batch))
    pooled = float(total(ReferenceFree("mean", sft=1.0, sft_over="batch"), live, none, batch)) - plain
    each = float(total(ReferenceFree("mean", sft=1.0), live, none, batch)) - plain
    assert (pooled, each) == (pytest.approx(3.5 / 5), pytest.approx((1.0 + 0.5) / 2))


def test_a_completion_that_is_certain_has_finite_odds() -> None:
    live = torch.zeros(2).double().requires_grad_()
    loss = total(ReferenceFree("odds"), live, torch.zeros(2).double(), pairs(1))
    assert bool(torch.isfinite(loss)) and bool(torch.isfinite(torch.autograd.grad(loss, live)[0]).all())


def test_all_of_a_group_are_compared_and_ties_with_nobody() -> None:
    batch = batch_of([1, 1, -1, 0, -1, 1], [0, 0, 0, 0, 1, 2])
    live = torch.tensor([1.0, 2.0, 0.0, 9.0, 9.0, 9.0]).double()
    loss = Preference(beta=1.0)(Likelihood(live[:, None], {"log_ratio/reference": live[:, None]}), batch)
    assert loss[:, 0].tolist() == pytest.approx(
        [2 * math.log1p(math.exp(-1)), 2 * math.log1p(math.exp(-2)), 0, 0, 0, 0]
    )


def test_what_the_log_says_of_pairs() -> None:
    """Shares of pairs told apart, margins and log-probabilities of preferred samples, at these alone."""
    batch = pairs(2, [2, 2, 2, 2])
    live, reference = torch.tensor([-1.0, -2.0, -6.0, -1.0]).double(), torch.tensor([-2.0, -2.0, -2.0, -2.0]).double()
    logp, ratio = spread(live, batch), spread(live - reference, batch)
    found = Preference(beta=0.5).measures(Likelihood(logp, {"log_ratio/reference": ratio}), batch)
    shown = {name.removeprefix("preference/"): value[[0, 2]].tolist() for name, value in found.items()}
    assert shown == {"accuracy": [1, 0], "margin": [0.5, -2.5], "chosen_logp": [-1, -6]}
    assert all(value[[1, 3]].isnan().all() for value in found.values())
    free = ReferenceFree("mean", 2.0).measures(Likelihood(logp), batch)
    assert free["preference/margin"][[0, 2]].tolist() == [1.0, -5.0]


def test_labels_against_the_distance_of_other_completions() -> None:
    """KTO: z is their mean score, at least 0, and a constant."""
    batch = batch_of([1, 0, -1, 0], [0, 0, 1, 1])
    score = torch.tensor([1.0, 0.5, -2.0, 0.7]).double()
    objective = Desirable(BETA, 2.0, 3.0)
    live = score.clone().requires_grad_()
    got = total(objective, live, torch.zeros(4).double(), batch)
    z = 0.6
    good, bad = 1 - sigma(BETA * (1 - z)), 1 - sigma(BETA * (z + 2))
    assert got.item() == pytest.approx((2 * good + 3 * bad) / 2)
    slope = torch.autograd.grad(got, live)[0]
    assert slope[[1, 3]].tolist() == [0, 0]
    assert slope[[0, 2]].tolist() == pytest.approx([-BETA * good * (1 - good), 1.5 * BETA * bad * (1 - bad)])
    below = total(objective, -score, torch.zeros(4).double(), batch)  # a negative mean counts as 0
    assert below.item() == pytest.approx((2 * (1 - sigma(-BETA)) + 3 * (1 - sigma(BETA * -2))) / 2)
    alone = batch_of([1, -1], [0, 1])  # without others: APO-zero on single samples
    got = total(Desirable(BETA), torch.tensor([1.0, -2.0]).double(), torch.zeros(2).double(), alone)
    assert got.item() == pytest.approx((1 - sigma(BETA) + 1 - sigma(2 * BETA)) / 2)


def test_bounds_per_token_by_the_completion_or_by_all() -> None:
    """Answers of 4 and 16 tokens with losses 1 and 2 a token: 1.5, or 1.8 pooled; .631 where both are filled up to 32
    with end tokens of loss .1."""

    def mean(bounds: list[float], lengths: list[int], over: str) -> float:
        batch = batch_of([1] * 2, [0, 1], lengths)
        table = Table(
            batch.probe, batch.group, batch.group, None, batch.advantage, batch.weight > 0, batch.weight, None
        )
        weight = PerToken(over)(table)[:, 0]  # pyright: ignore[reportArgumentType]
        return float((weight * torch.tensor(bounds)).mean())

    assert mean([4.0, 32.0], [4, 16], "sample") == pytest.approx(1.5)
    assert mean([4.0, 32.0], [4, 16], "all") == pytest.approx(1.8)
    assert mean([4 + 2.8, 32 + 1.6], [32, 32], "sample") == pytest.approx(0.631, abs=1e-3)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Preference(beta=0), "beta=0 scales"),
        (lambda: Preference(sft=-1), "push preferred samples away"),
        (lambda: Preference(link="alpha", alpha=1), "link=log"),
        (lambda: Preference("aot", link="js"), "use link=log"),
        (lambda: ReferenceFree("power", alpha=0), "score=mean"),
        (lambda: ReferenceFree(label_smoothing=0.7), "from 0 to below"),
        (lambda: Desirable(desirable=-1), "give 0 or more"),
    ],
)
def test_options_that_mean_nothing_are_refused(make: Callable[[], object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()


def test_without_a_reference_there_is_no_score() -> None:
    with pytest.raises(IncompatibleError, match="log_ratio/reference"):
        Preference()(Likelihood(torch.zeros(2, 1)), pairs(1))


def test_what_weights_and_cuts_of_pairs_do_not_bear() -> None:
    with pytest.raises(ValueError, match=r"tail=2.* give 0 to 1"):
        Preference(tail=2)
    with pytest.raises(ValueError, match=r"weighting=free is of pairs, and loss=aot_unpaired sorts them"):
        Preference("aot_unpaired", weighting="free")
    with pytest.raises(ValueError, match=r"tail=0.5 cuts scores of pairs, and loss=aot reads likelihoods"):
        Preference("aot", tail=0.5)
    batch = batch_of([1, -1, -1], [0, 0, 0])
    live = Likelihood(torch.zeros(3, 1), {"log_ratio/reference": torch.zeros(3, 1)})
    with pytest.raises(IncompatibleError, match=r"tail needs one pair in a group"):
        Preference(tail=0.5)(live, batch)
    with pytest.raises(IncompatibleError, match=r"'collision' is not measured"):
        Preference(weighting="capped")(live, batch)

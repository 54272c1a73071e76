"""Gradients through the steps of a sampler: finite differences, hand-made sums, closed forms and known numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowrl import composition
from flowrl.estimators.adjoint import Adjoint
from flowrl.estimators.pathwise import Replay
from flowrl.estimators.renoise import RelativeRenoise, Renoise
from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import CPS, DDIM, FlowSDE
from flowrl.math.random import normal, seeds
from flowrl.models.tiny_flow import TinyCondition
from flowrl.models.weights import PointerWeights
from flowrl.parts.objectives import Ascent
from flowrl.parts.regularizers import FDivergence
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import EveryStep, LastSteps
from flowrl.step import UpdateSettings, improve
from flowrl.types import Draw, Dynamics, IncompatibleError, Likelihood, Rollout
from tests.contract.toys import Recorder, disturb, gradients, roll, small, start

GRID = torch.tensor([1.0, 0.8, 0.6, 0.35, 0.1, 0.0], dtype=torch.float64)
C2, MEAN = 0.25, 0.5  # of the data of the bench "G1", N(.5, .25)


@dataclass
class Field:
    """A policy of a velocity field in float64 whose weights are one flat tensor."""

    field: Callable[[Tensor, Tensor, Tensor], Tensor]
    weights_: Tensor
    grid: Tensor | None = None
    latent_shape: tuple[int, ...] = (2,)
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        self.theta = nn.Parameter(self.weights_.clone())
        self.weights = PointerWeights({"theta": self.theta})
        self.calls: list[Tensor] = []

    @contextmanager
    def using(self, name: str):
        with self.weights.using(name):
            yield self

    def parameters(self) -> list[nn.Parameter]:
        return [self.theta]

    def times(self, steps: int) -> Tensor:
        if self.grid is not None:
            return self.grid
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    def snap(self, t: Tensor) -> Tensor:
        return t

    def initial(self, noise: Tensor, times: Tensor) -> Tensor:
        return noise.double()

    def velocity(self, x: Tensor, t: Tensor, condition: Any, *, guidance: Any = None, cfg_grad: str = "cond") -> Tensor:
        self.calls.append(t)
        return self.field(self.theta, x.double(), t.double()[:, None])


@dataclass(frozen=True)
class Total:
    """A judge of latents: functions of them, one for each reward."""

    functions: tuple[Callable[[Tensor], Tensor], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"r{k}" for k in range(len(self.functions)))

    def __call__(self, clean: Tensor, rows: Tensor) -> Tensor:
        return torch.stack([function(clean) for function in self.functions], dim=1)

    def in_words(self, clean: Tensor, rows: Tensor, templates: Sequence[str]) -> list[Tensor]:
        return [len(template) * self(clean, rows) for template in templates]


def bowl(x: Tensor) -> Tensor:
    return -((x - torch.tensor([0.7, -0.2])) ** 2).sum(dim=1) + x.prod(dim=1).tanh()


def first(x: Tensor) -> Tensor:
    return x[:, 0]


def net(theta: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Two layers: 3 -> 6 -> 2."""
    w1, w2 = theta[:18].view(6, 3), theta[18:].view(2, 6)
    return torch.tanh(torch.cat([x, t], dim=1) @ w1.T) @ w2.T


def blind(theta: Tensor, x: Tensor, t: Tensor) -> Tensor:
    return (theta[:6].view(2, 3)[:, :1] * t.T).T + 0 * x


def network() -> Any:
    return Field(net, 0.7 * torch.randn(30, generator=torch.Generator().manual_seed(2), dtype=torch.float64), GRID)


def sampled(policy: Any, sampler: Any, count: int = 4, functions: Any = (bowl,)) -> Any:
    group = torch.zeros(count, dtype=torch.long)
    draw = Draw.of(seeds(0, "pathwise", count=count), group, 0, 0)
    rollout = sampler(policy, TinyCondition(group), draw)
    return replace(rollout, judge=Total(functions))


def answer(policy: Any, estimator: Any, rollout: Rollout, references: Sequence[str] = ()) -> tuple[Likelihood, Any]:
    rows = estimator.probe(rollout, policy, rollout.seeds)
    return estimator(policy, rows, rollout.condition, references), rows


def slope(policy: Any, estimator: Any, rollout: Rollout) -> Tensor:
    """Of the mean reward, by the estimator."""
    live, rows = answer(policy, estimator, rollout)
    counted = torch.ones(live.logp.shape) if rows.counted is None else rows.counted
    mean = (live.need("reward/r0") * counted).sum(dim=1) / counted.sum(dim=1)
    return torch.autograd.grad(mean.mean(), policy.theta)[0]


def by_differences(policy: Any, sampler: FlowSampler, step: float = 1e-5) -> Tensor:
    """Of the mean reward of samples from the same seeds, by central differences."""
    found = []
    for i in range(len(policy.theta)):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                policy.theta[i] += sign * step
                ends.append(bowl(sampled(policy, sampler).final).mean())
                policy.theta[i] -= sign * step
        found.append((ends[0] - ends[1]) / (2 * step))
    return torch.stack(found)


# ------------------------------------------------------------------------------------------------------------ replay
@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize(
    "sampler",
    [
        FlowSampler(steps=5, window=LastSteps()),
        FlowSampler(steps=5, window=LastSteps(noise=True), dynamics=CPS(1.0)),
        FlowSampler(steps=5, window=LastSteps(noise=True), dynamics=FlowSDE(0.7)),
    ],
    ids=["ode", "consistency", "sde"],
)
def test_all_steps_are_the_gradient_of_sampling(sampler: FlowSampler, checkpoint: bool) -> None:
    policy = network()
    rollout = sampled(policy, sampler)
    live, _ = answer(policy, Replay(checkpoint=checkpoint), rollout)
    assert float(live.logp.abs().max()) < 1e-28  # it arrives where the sampler did, in every step
    assert torch.equal(live.need("reward/r0")[:, 0], live.need("reward/r0")[:, 4])
    torch.testing.assert_close(live.need("reward/r0")[:, 0].detach(), bowl(rollout.final), rtol=0, atol=1e-14)
    wanted = by_differences(policy, sampler)
    found = slope(policy, Replay(checkpoint=checkpoint), rollout)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-10 * float(wanted.abs().max()) / 1e-1)


def test_refl_of_the_last_step_is_draft_1() -> None:
    policy = network()
    draft = slope(policy, Replay(), sampled(policy, FlowSampler(steps=5, window=LastSteps(1))))
    rollout = sampled(policy, FlowSampler(steps=5, window=LastSteps()))
    assert torch.equal(slope(policy, Replay(first="last"), rollout), draft)
    drtune = Replay(inputs=False, trained=1)
    assert torch.equal(slope(policy, drtune, rollout), draft)


@pytest.mark.parametrize("trained", [None, 1, 2, 3, 5])
def test_drtune_is_the_sum_over_its_steps(trained: int | None) -> None:
    """``sum_k dt_k (dv(sg x_k) / dtheta)^T r'(x_T)`` over the spaced steps, written out."""
    policy = network()
    rollout = sampled(policy, FlowSampler(steps=5, window=LastSteps()))
    policy.calls.clear()
    found = slope(policy, Replay(inputs=False, trained=trained, checkpoint=False), rollout)
    count = trained or 5
    chosen = [4 - j * (5 // count) for j in range(count)]
    assert sorted(float(t[0]) for t in policy.calls) == sorted(float(GRID[k]) for k in chosen)  # the rest costs nothing
    end = rollout.final.clone().requires_grad_()
    (pull,) = torch.autograd.grad(bowl(end).mean(), end)
    total = torch.zeros((), dtype=torch.float64)
    for k in chosen:
        v = policy.velocity(rollout.trace.states[:, k], GRID[k].expand(4), None)
        total = total + (GRID[k + 1] - GRID[k]) * (v * pull).sum()
    torch.testing.assert_close(found, torch.autograd.grad(total, policy.theta)[0], rtol=1e-12, atol=1e-14)
    whole = slope(policy, Replay(), rollout)
    if trained is None:
        assert 0.9 < float(nn.functional.cosine_similarity(found, whole, dim=0)) < 0.9999


def test_where_the_velocity_does_not_read_the_state_drtune_is_backpropagation() -> None:
    policy: Any = Field(blind, torch.randn(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64), GRID)
    rollout = sampled(policy, FlowSampler(steps=5, window=LastSteps()))
    torch.testing.assert_close(slope(policy, Replay(inputs=False), rollout), slope(policy, Replay(), rollout))


def exact(theta: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The velocity of data N(.5, .25) plus a number for every step of `GRID`."""
    step = (t - GRID[:-1]).abs().argmin(dim=1)
    variance = (1 - t) ** 2 * C2 + t**2
    pull = (t - (1 - t) * C2) / variance
    return pull * x - MEAN - pull * (1 - t) * MEAN + theta[step][:, None]


def one_dimension(theta: Tensor | None = None) -> Any:
    return Field(exact, torch.zeros(5, dtype=torch.float64) if theta is None else theta, GRID, (1,))


def test_derivatives_of_single_steps_on_gaussian_data() -> None:
    policy = one_dimension()
    rollout = sampled(policy, FlowSampler(steps=5, window=LastSteps()), functions=(first,))
    numbers = {
        "whole": (Replay(), [-0.0890, -0.1157, -0.2103, -0.2647, -0.1]),
        "drtune": (Replay(inputs=False), [-0.2, -0.2, -0.25, -0.25, -0.1]),
    }
    for estimator, wanted in numbers.values():
        assert slope(policy, estimator, rollout).tolist() == pytest.approx(wanted, abs=6e-5)
    rollout = sampled(policy, FlowSampler(steps=5, window=LastSteps()), 64, (first,))
    estimator = Replay(first="last", last="random")
    live, rows = answer(policy, estimator, rollout)
    total = torch.autograd.grad(live.need("reward/r0").sum(), policy.theta)[0]
    counts = torch.bincount(rows.event[:, 0], minlength=5)
    assert int(counts.min()) > 3
    assert (total / counts).tolist() == pytest.approx([-1, -0.8, -0.6, -0.35, -0.1], abs=1e-12)


@pytest.mark.parametrize("inputs", [True, False])
def test_samples_may_begin_and_end_at_steps_of_their_own(inputs: bool) -> None:
    """Against autograd through the steps that each sample takes, one by one."""
    policy, sampler = network(), FlowSampler(steps=5, dynamics=DDIM(1.0), window=LastSteps(noise=True))
    rollout = sampled(policy, sampler, 24)
    first_one = "random" if inputs else "recorded"
    estimator = Replay(first=first_one, last="random", stop=3, inputs=inputs, trained=None if inputs else 2)
    live, rows = answer(policy, estimator, rollout)
    assert rows.unit == rows.shape[1]
    lengths = rows.taken.sum(dim=1)
    assert len(lengths.unique()) > 2 or not inputs
    for i in range(24):
        events = [int(e) for e, on in zip(rows.event[i], rows.taken[i], strict=True) if on]
        x = clean = rollout.trace.states[i, events[0]][None]
        for k in range(events[0], events[-1] + 1):
            t, t_next = GRID[k : k + 1], GRID[k + 1 : k + 2]
            a, b, s = DDIM(1.0).coefficients(t, t_next)
            read = x if inputs else x.detach()
            v = policy.velocity(read, t, None)
            v = v if k in events else v.detach()
            z = normal(rollout.seeds[i : i + 1], (2,), stream=k + 1).double()
            clean, x = x - t * v, a * x + b * v + s * z
        end = x if events[-1] == 4 else clean
        one = torch.autograd.grad(bowl(end).sum(), policy.theta)[0]
        found = torch.autograd.grad(live.need("reward/r0")[i, 0], policy.theta, retain_graph=True)[0]
        torch.testing.assert_close(found, one, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(live.need("reward/r0")[i, 0], bowl(end)[0], rtol=1e-12, atol=1e-12)
    assert float(live.logp.abs().max()) < 1e-28


def test_the_first_step_of_align_prop_is_normal_and_stays_inside() -> None:
    made: Any = composition.build("align_prop")
    policy = one_dimension()
    policy.grid = torch.linspace(1, 0, 51, dtype=torch.float64)
    rollout = sampled(policy, made.sampler, 300, (first,))
    assert rollout.trace.t.shape == (300, 49)
    rows = made.estimator.probe(rollout, policy, rollout.seeds)
    cut = (rows.number[:, 0]).double()
    assert int(cut.min()) >= 1 and int(cut.max()) <= 49
    assert float(cut.mean()) == pytest.approx(42, abs=1) and float(cut.std()) == pytest.approx(4.7, abs=0.6)


def test_divergences_are_those_of_the_recorded_steps() -> None:
    """Of the same steps, by the estimator of densities; and the gradient runs through the state too."""
    policy = network()
    with torch.no_grad():
        policy.theta += 0.05
    group = torch.zeros(4, dtype=torch.long)
    draw = Draw.of(seeds(0, "pathwise", count=4), group, 0, 0)
    dense = FlowSampler(steps=5, dynamics=FlowSDE(0.7), window=EveryStep(drop=0))
    recorded = dense(policy, TinyCondition(group), draw)
    known, _ = answer(policy, Transitions(kl="exact"), recorded, ("reference",))
    rollout = sampled(policy, replace(dense, window=LastSteps(noise=True)))
    live, _ = answer(policy, Replay(), rollout, ("reference",))
    for name in ("kl/reference", "prediction/reference"):
        torch.testing.assert_close(live.need(name).double(), known.need(name).double(), rtol=1e-6, atol=1e-12)
    assert float(live.need("kl/reference").detach().min()) > 0
    plain, _ = answer(policy, Replay(), sampled(policy, FlowSampler(steps=5, window=LastSteps())), ("reference",))
    with pytest.raises(IncompatibleError, match="kl/reference"):
        plain.need("kl/reference")  # no density, no divergence
    assert plain.need("prediction/reference").requires_grad


@pytest.mark.parametrize("micro_batch", [1, 3, 100])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_rewards_and_penalties_add_up_in_any_micro_batch(micro_batch: int, checkpoint: bool) -> None:
    """Two rewards and a KL on the toy, against autograd of the whole batch."""
    algorithm = small("rocm", 5, weight=0.3, checkpoint=checkpoint)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    disturb(policy, 0.02)
    it.rollout = replace(it.rollout, judge=Total((lambda x: -x.square().sum(dim=1), lambda x: x[:, 0].tanh())))
    found = gradients(algorithm, it, micro_batch=micro_batch)[0]
    rows = algorithm.estimator.probe(it.rollout, policy, it.rollout.seeds)
    live = algorithm.estimator(policy, rows, it.rollout.condition, ("reference",))
    loss = (-(live.need("reward/r0") + live.need("reward/r1")) + 0.3 * live.need("kl/reference")).mean()
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(loss, policy.parameters())])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5 * float(wanted.norm()))


def test_a_checkpointed_replay_keeps_no_activations_of_the_network() -> None:
    """Bytes that autograd saves in the forward: of all steps, or next to nothing."""
    policy = network()
    rollout = sampled(policy, FlowSampler(steps=5, window=LastSteps()), 64)

    def saved(checkpoint: bool) -> int:
        estimator = Replay(checkpoint=checkpoint)
        rows = estimator.probe(rollout, policy, rollout.seeds)
        total = [0]

        def pack(tensor: Tensor) -> Tensor:
            total[0] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            estimator(policy, rows, rollout.condition)
        return total[0]

    assert saved(True) < 0.5 * saved(False)


def test_a_replay_that_does_not_arrive_shows_in_the_check_of_the_ratio() -> None:
    algorithm = small("draft", 6, last=3)
    policy = start(algorithm)
    it = roll(algorithm, policy)

    def deviation() -> float:
        recorder = Recorder(policy.parameters())
        arguments = (it.rollout, it.scores, it.advantage, UpdateSettings())
        return improve(policy, recorder, algorithm, *arguments)["ratio/first_max_deviation"]

    assert deviation() < 1e-9
    disturb(policy, 0.3)  # other weights than those that sampled
    assert deviation() > 1e-3


def test_what_cannot_be_replayed_is_refused() -> None:
    policy = network()
    for sampler, sentence in (
        (FlowSampler(steps=5, window=LastSteps(), solver="dpmpp_2m"), "set euler"),
        (
            FlowSampler(steps=5, window=LastSteps(noise=True), dynamics=CPS(0.5), decode_clean=True),
            "decode_clean=false",
        ),
    ):
        with pytest.raises(IncompatibleError, match=sentence):
            sampled(policy, sampler)
    rollout = sampled(policy, FlowSampler(steps=5, dynamics=CPS(0.5), window=EveryStep(drop=1)))
    with pytest.raises(IncompatibleError, match="the last step is not recorded"):
        answer(policy, Replay(), rollout)
    rollout = sampled(policy, FlowSampler(steps=5, window=LastSteps()))
    with pytest.raises(IncompatibleError, match="no judge"):
        answer(policy, Replay(), replace(rollout, judge=None))
    with pytest.raises(IncompatibleError, match="records states alone"):
        answer(policy, Transitions(), rollout)
    for wrong, sentence in (
        (lambda: Replay(trained=2), "set inputs=false"),
        (lambda: Replay(first="random", inputs=False, trained=2), "first=recorded"),
        (lambda: Replay(around=0.5), "first=random"),
        (lambda: Replay(stop=0), "leaves no step"),
        (lambda: LastSteps(0), "records nothing"),
        (lambda: Ascent(scale=0.0), "scale=0.0"),
        (lambda: FDivergence(alpha=1.0), "strictly between"),
        (lambda: RelativeRenoise(low=0.9, high=0.5), "the lower one first"),
        (lambda: RelativeRenoise(good="nice"), "no place for the prompt"),
        (lambda: Adjoint(early=0, late=0), "at least one"),
    ):
        with pytest.raises(ValueError, match=sentence):
            wrong()


# ------------------------------------------------------------------------------------------------------- fresh noise
def test_draft_lv_is_the_mean_over_its_noises() -> None:
    policy = network()
    rollout = sampled(policy, FlowSampler(steps=5))
    estimator = Renoise(draws=3)
    live, rows = answer(policy, estimator, rollout)
    assert rows.t.unique().tolist() == [0.1]
    total = torch.zeros((), dtype=torch.float64)
    for j in range(3):
        x = 0.9 * rollout.final + 0.1 * rows.noise[:, j].double()
        total = total + bowl(x - 0.1 * policy.velocity(x, torch.full((4,), 0.1), None)).mean() / 3
    torch.testing.assert_close(live.need("reward/r0").mean(), total, rtol=1e-5, atol=1e-6)
    wanted = torch.autograd.grad(total, policy.theta)[0]
    torch.testing.assert_close(slope(policy, estimator, rollout), wanted, rtol=1e-4, atol=1e-7)


def test_srpo_recovers_the_sample_where_the_velocity_is_right_and_errs_both_ways_elsewhere() -> None:
    """``x0^ - x0 = -+ d / (1 - t') (v - u)``: at t' = .7 and d = .05, a sixth of the error."""
    clean, held = torch.tensor([[0.3, -1.0]] * 4).double(), {}

    def right(theta: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return held["noise"] - held["clean"] + theta[:2]

    policy: Any = Field(right, torch.zeros(2, dtype=torch.float64), GRID)
    rollout, plain = replace(rollout_of(clean), judge=Total((first,))), (0.0, 0.0)
    estimator = RelativeRenoise(low=0.6, high=0.8, width=0.05, denoise=plain, invert=plain, good="12{}", bad="1{}")
    rows = estimator.probe(rollout, policy, rollout.seeds)
    rows = replace(rows, t=torch.full((4, 2), 0.7).double(), start=torch.tensor([[0.75, 0.65]]).double().expand(4, 2))
    held |= {"noise": rows.noise.flatten(0, 1).double(), "clean": clean.repeat_interleave(2, dim=0)}
    live = estimator(policy, rows, rollout.condition)
    assert float(live.logp.detach().abs().max()) < 1e-12  # recovered
    # the words "12{}" and "1{}" weigh 4 and 3 times: (1 + k) first - second is +-1 times the reward, k being 0
    torch.testing.assert_close(
        live.need("reward/r0").detach(), torch.tensor([[0.3, -0.3]] * 4).double(), rtol=1e-6, atol=1e-7
    )
    for branch in (0, 1):
        pull = torch.autograd.grad(live.need("reward/r0")[0, branch], policy.theta, retain_graph=True)[0]
        assert pull.tolist() == pytest.approx([-1 / 6, 0], abs=1e-6)  # opposite errors, texts exchanged: they add


def rollout_of(clean: Tensor) -> Any:
    group = torch.zeros(len(clean), dtype=torch.long)
    draw = Draw.of(seeds(0, "pathwise", count=len(clean)), group, 0, 0)
    return Rollout.of(draw, TinyCondition(group), clean, times=GRID)


def test_times_and_emphasis_of_srpo() -> None:
    estimator: Any = composition.build("srpo").estimator
    rollout = replace(rollout_of(torch.zeros(200, 2)), judge=Total((first,)))
    rows = estimator.probe(rollout, network(), rollout.seeds)
    assert torch.equal(rows.t[:, 0], rows.t[:, 1]) and bool((rows.start[:, 0] > rows.t[:, 0]).all())
    assert bool((rows.start[:, 1] < rows.t[:, 1]).all()) and rows.down[0].tolist() == [True, False]
    assert 0.75 < float(rows.t.min()) < 0.77 and 0.94 < float(rows.t.max()) < 0.964
    place = (0.964 - rows.t[:, 0]) / (0.964 - 0.75)
    torch.testing.assert_close(rows.emphasis[:, 0], 0.1 + place * 0.15)
    torch.testing.assert_close(rows.emphasis[:, 1], 0.3 - place * 0.29)


# ------------------------------------------------------------------------------------------------------------ adjoint
SHIFTS = [
    (DDIM(1.0), "next", {10: 0.1195, 40: 0.1712, 400: 0.1966}),
    (FlowSDE(2**0.5), "next", {10: 0.2035, 40: 0.2002, 400: 0.2000}),
    (FlowSDE(0.7), "next", {10: 0.1746, 40: 0.1903, 400: 0.198}),
    (DDIM(1.0), "same", {10: 0.0833, 40: 0.1582, 400: 0.1951}),
]


def tilted(dynamics: Dynamics, pairing: Any, steps: int) -> tuple[float, float]:
    """How far the end of Gaussian samples moves where every step's mean is at the optimum of the regression, and what
    .8 times the end's variance is; ``same`` and ``next`` as the estimator pairs them."""
    policy: Any = Field(
        lambda theta, x, t: drift(x, t) + 0 * theta.sum(), torch.zeros(1, dtype=torch.float64), None, (1,)
    )
    sampler = FlowSampler(steps=steps, dynamics=dynamics, window=LastSteps(noise=True))
    rollout = sampled(policy, sampler, 1, (first,))
    every: dict[str, Tensor] = {}
    for name in ("next", "same"):
        rows = Adjoint(scale=0.8, pairing=name, early=steps, late=steps).probe(rollout, policy, rollout.seeds)
        every[name] = rows.adjoint[0, :, 0].double()
    s = dynamics.coefficients(rows.t, rows.t_next)[2][0]
    after = every["next"] / -0.8  # what a change of the mean moves the end by
    shift = (-(s**2) * every[pairing] * after).sum()
    a, b, _ = dynamics.coefficients(*(rollout.times[i : i + 1] for i in (0, 1)))
    begun = float(after[0] * (a + b * slope_of(rollout.times[:1])))
    return float(shift), 0.8 * float((s**2 * after**2).sum() + begun**2)


def slope_of(t: Tensor) -> Tensor:
    return (t - (1 - t) * C2) / ((1 - t) ** 2 * C2 + t**2)


def drift(x: Tensor, t: Tensor) -> Tensor:
    pull = slope_of(t)
    return pull * x - MEAN - pull * (1 - t) * MEAN


@pytest.mark.slow
@pytest.mark.parametrize(("dynamics", "pairing", "numbers"), SHIFTS, ids=["ddim", "memoryless", "sde", "coded"])
def test_the_end_shift_of_adjoint_matching(dynamics: Dynamics, pairing: str, numbers: dict[int, float]) -> None:
    """On N(.5, .25) with a linear reward the tilted mean is .8 x .25 = .2 away, in the limit of many steps."""
    for steps, wanted in numbers.items():
        shift, variance = tilted(dynamics, pairing, steps)
        assert shift == pytest.approx(wanted, abs=6e-5 if steps > 10 else 1.1e-4)
        if pairing == "next" and isinstance(dynamics, FlowSDE) and dynamics.noise_level < 1:
            assert steps > 10 or shift / variance == pytest.approx(0.759 / 0.8, abs=1e-3)  # keeps memory of its noise
        elif pairing == "next":
            assert shift == pytest.approx(variance, rel=0.02)  # forgets it: the shift is the whole variance's


def test_the_minimum_of_adjoint_matching_is_reached_by_its_gradient() -> None:
    """At the optimum of every step the error is 0 and so is the gradient; at the reference it is s a."""
    steps = 5
    policy = one_dimension()
    rollout = sampled(
        policy, FlowSampler(steps=steps, dynamics=FlowSDE(2**0.5), window=LastSteps(noise=True)), 3, (first,)
    )
    estimator = Adjoint(scale=0.8, early=steps, late=steps)
    rows = estimator.probe(rollout, policy, rollout.seeds)
    _, b, s = FlowSDE(2**0.5).coefficients(rows.t, rows.t_next)
    live = estimator(policy, rows, rollout.condition)
    torch.testing.assert_close(-live.logp.detach(), (s * rows.adjoint[..., 0]) ** 2, rtol=1e-6, atol=1e-9)
    with torch.no_grad():  # a linear drift: the adjoint is the same for every sample
        policy.theta.copy_((-(s**2) * rows.adjoint[..., 0] / b)[0])
    at_best = estimator(policy, rows, rollout.condition)
    assert float(at_best.logp.detach().abs().max()) < 1e-12
    (pull,) = torch.autograd.grad(at_best.logp.sum(), policy.theta)
    assert float(pull.abs().max()) < 1e-6


def test_adjoint_matching_draws_steps_of_both_parts() -> None:
    policy = one_dimension()
    policy.grid = torch.linspace(1, 0, 51, dtype=torch.float64)
    made: Any = composition.build("adjoint_matching")
    rollout = sampled(policy, made.sampler, 40, (first,))
    rows = Adjoint(chunk=40).probe(rollout, policy, rollout.seeds)
    assert rows.shape == (40, 4) and bool((rows.event[:, 1] < 30).all()) and bool((rows.event[:, 2] >= 30).all())
    assert bool((rows.event.diff(dim=1) > 0).all()) and len(rows.event.unique()) > 30
    with pytest.raises(IncompatibleError, match="every step recorded"):
        Adjoint().probe(
            sampled(policy, FlowSampler(steps=50, window=LastSteps(7)), 2, (first,)), policy, rollout.seeds[:2]
        )


# -------------------------------------------------------------------------------------------------------- divergences
def test_f_divergences_are_those_of_two_normal_densities() -> None:
    made: Any = FDivergence
    batch: Any = None
    x = torch.linspace(-12, 14, 400_001, dtype=torch.float64)
    for delta in (0.05, 0.7, 2.0):
        log_p, log_q = -0.5 * x**2, -0.5 * (x - delta) ** 2
        p, q = (log.exp() / math.sqrt(2 * math.pi) for log in (log_p, log_q))
        middle, width = (p + q) / 2, float(x[1] - x[0])
        wanted = {
            "kl": (p * (log_p - log_q)).sum(),
            "hellinger": (1 - (p * q).sqrt().sum() * width) / width,
            "chi2": ((p - q) ** 2 / q).sum(),
            "alpha": (1 - (p**0.3 * q**0.7).sum() * width) / 0.21 / width,
            "js": (0.5 * p * (p / middle).log() + 0.5 * q * (q / middle).log()).sum(),
        }
        kl = torch.tensor([[delta**2 / 2]], dtype=torch.float64, requires_grad=True)
        for kind, total in wanted.items():
            term = made(kind=kind, alpha=0.3)
            found = term(Likelihood(torch.zeros(1, 1), {"kl/reference": kl}), batch)
            assert float(found.detach()) == pytest.approx(float(total) * width, rel=1e-6), (kind, delta)
            assert float(torch.autograd.grad(found.sum(), kl)[0]) > 0
    js = FDivergence(kind="js")
    at = js(Likelihood(torch.zeros(1), {"kl/reference": torch.tensor([0.7**2 / 2, 0.0]).double()}), batch)
    assert at.tolist() == pytest.approx([0.0578, 0.0], abs=5e-5)


def test_without_its_divergence_rocm_is_draft_over_all_steps() -> None:
    held, free = composition.build("rocm"), composition.build({"use": "rocm", "weight": 0.0})
    draft = composition.build({"use": "draft", "last": None})
    assert free.regularizers == () and held.regularizers[0].weight == 0.1
    assert (free.estimator, free.objective, free.aggregation) == (draft.estimator, draft.objective, draft.aggregation)


# ---------------------------------------------------------------------------------------------------------- objective
def test_ascent_adds_rewards_and_leaves_good_ones_alone() -> None:
    values = torch.tensor([[0.5, 1.0, 3.0]]).double().requires_grad_()
    live = Likelihood(torch.zeros(1, 3), {"reward/a": values, "reward/b": -0.5 * values, "kl/reference": values})
    batch: Any = None
    assert Ascent()(live, batch).tolist() == [[-0.25, -0.5, -1.5]]
    capped = Ascent(cap=0.6, scale=2.0)(live, batch)
    assert capped.tolist() == [[pytest.approx(0.7), pytest.approx(0.2), 0.0]]
    assert torch.autograd.grad(capped.sum(), values)[0].tolist() == [[-1.0, -1.0, 0.0]]
    with pytest.raises(IncompatibleError, match="reward/<name>"):
        Ascent()(Likelihood(values), batch)

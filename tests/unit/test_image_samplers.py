"""Samplers of continuous policies by hand on a constant velocity, their grids, and windows of stochastic steps."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import CPS, DDIM, FlowSDE, dpm_solver_2m
from flowrl.math.random import derive, normal, seeds
from flowrl.models.tiny_flow import TinyCondition
from flowrl.samplers.chunks import joined, sample, take
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import EveryStep, RandomWindow, SlidingWindow
from flowrl.types import Draw, IncompatibleError, Rollout, Steps


class Field:
    """A velocity ``t x + 1``, on even times; notes what it is asked."""

    latent_shape = (2,)
    device = torch.device("cpu")

    def __init__(self, times: Tensor | None = None, first_trained: float = 0.0, discrete: bool = False) -> None:
        self.given, self.first_trained, self.discrete = times, first_trained, discrete
        self.guidance: list[float | None] = []

    def times(self, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64) if self.given is None else self.given

    def snap(self, t: Tensor) -> Tensor:
        t = (t * 10).round() / 10 if self.discrete else t
        return t.clamp(min=self.first_trained)

    def initial(self, noise: Tensor, times: Tensor) -> Tensor:
        return noise

    def velocity(self, x: Tensor, t: Tensor, condition, *, guidance=None, cfg_grad="cond") -> Tensor:
        self.guidance.append(guidance)
        return t.to(x)[:, None] * x + 1


def draw(count: int = 3, iteration: int = 0, group: int = 1) -> Draw:
    return Draw.of(seeds(0, "s", count=count), torch.arange(count) // group, iteration, 11 + iteration)


def run(sampler: FlowSampler, policy: Field, how: Draw | None = None) -> Rollout:
    how = how or draw()
    return sampler(policy, TinyCondition(torch.zeros(len(how)).long()), how)  # type: ignore[arg-type]


def start(how: Draw) -> Tensor:
    return normal(how.seeds, (2,), stream=0)


def test_euler_steps_by_hand() -> None:
    rollout = run(FlowSampler(steps=2), Field())
    x = start(draw())
    x = x - 0.5 * (x + 1)
    x = x - 0.5 * (0.5 * x + 1)
    assert torch.allclose(rollout.final, x) and rollout.trace is None and rollout.forwards == 6
    assert rollout.times is not None and rollout.times.tolist() == [1, 0.5, 0]


def test_solver_steps_know_the_one_before() -> None:
    """Four steps of DPM-Solver++: the first is of first order, so is the second (before it t = 1), and the last."""
    rollout = run(FlowSampler(steps=4, solver="dpmpp_2m"), Field())
    times = torch.linspace(1, 0, 5).double()
    x, cleans = start(draw()), []
    for k in range(4):
        t = float(times[k])
        cleans.append(x - t * (t * x + 1))
        earlier = cleans[k - 1] if k > 0 else None
        x = dpm_solver_2m(x, cleans[k], earlier, times[k], times[k + 1], times[max(k - 1, 0)])
    assert torch.allclose(rollout.final, x, atol=1e-6)
    third = dpm_solver_2m(x, cleans[2], cleans[1], times[2], times[3], times[1])
    first_order = dpm_solver_2m(x, cleans[2], None, times[2], times[3], times[1])
    assert float((third - first_order).abs().max()) > 0.01  # or the test would not notice the order


def test_a_stochastic_step_ends_the_memory_of_the_solver() -> None:
    sampler = FlowSampler(steps=5, solver="dpmpp_2m", dynamics=DDIM(1.0), window=SlidingWindow(size=2, every=1))
    how = draw(iteration=1)  # steps 1 and 2
    rollout = run(sampler, Field(), how)
    assert isinstance(rollout.trace, Steps) and rollout.trace.t[0].tolist() == pytest.approx([0.8, 0.6])
    times = torch.linspace(1, 0, 6).double()
    x = rollout.trace.x_next[:, -1]
    clean = x - 0.4 * (0.4 * x + 1)
    after = dpm_solver_2m(x, clean, None, times[3], times[4], times[2])  # first order: no prediction just before
    assert torch.allclose(rollout.final, after - 0.2 * (0.2 * after + 1), atol=1e-6)


def test_stochastic_steps_are_recorded_with_their_noise() -> None:
    sampler = FlowSampler(steps=4, dynamics=CPS(0.5), window=EveryStep(), record_mean=True, guidance=2.0)
    policy, how = Field(), draw()
    rollout = run(sampler, policy, how)
    trace = rollout.trace
    assert isinstance(trace, Steps) and trace.mean is not None and trace.guidance == 2.0 and trace.dynamics == CPS(0.5)
    assert trace.t.tolist() == [[1, 0.75, 0.5]] * 3 and trace.t_next.tolist() == [[0.75, 0.5, 0.25]] * 3
    assert trace.squared.shape == (3, 3) and torch.equal(trace.x[:, 1:], trace.x_next[:, :-1])
    assert torch.equal(trace.x[:, 0], start(how)) and set(policy.guidance) == {2.0}
    for k in range(3):
        z = normal(how.seeds, (2,), stream=k + 1)  # step k draws from stream k + 1
        s = CPS(0.5).coefficients(trace.t[0, k], trace.t_next[0, k])[2]
        assert torch.allclose(trace.x_next[:, k], trace.mean[:, k] + s.float() * z, atol=1e-6)
        assert torch.allclose(trace.squared[:, k], (z.double() ** 2).sum(dim=1), rtol=1e-4)
    last = trace.x_next[:, -1]
    a, b, s = CPS(0.5).coefficients(torch.tensor(0.25), torch.tensor(0.0))
    assert torch.allclose(rollout.final, a.float() * last + b.float() * (0.25 * last + 1), atol=1e-6) and float(s) == 0
    assert run(replace(sampler, record_mean=False), Field()).trace.mean is None  # type: ignore[union-attr]


def test_the_last_clean_prediction_may_be_the_sample() -> None:
    sampler = FlowSampler(steps=2, dynamics=CPS(0.5), window=EveryStep(), decode_clean=True)
    rollout = run(sampler, Field())
    assert isinstance(rollout.trace, Steps)
    before = rollout.trace.x_next[:, -1]
    assert torch.allclose(rollout.final, before - 0.5 * (0.5 * before + 1), atol=1e-6)


def test_a_group_may_start_from_the_same_noise() -> None:
    how = draw(4, group=2)
    apart = run(FlowSampler(steps=1), Field(), how).final
    rollout = run(FlowSampler(steps=1, share_noise=True), Field(), how).final
    assert torch.equal(rollout[0], rollout[1]) and torch.equal(rollout[2], rollout[3])
    assert not torch.equal(rollout[0], rollout[2]) and not torch.equal(apart[0], apart[1])
    key = torch.tensor([derive(how.shared_seed, "group", 1)])
    assert torch.allclose(rollout[2], (lambda x: x - (x + 1))(normal(key, (2,), stream=0))[0])


def test_times_may_be_shifted() -> None:
    grid = FlowSampler(steps=4, shift=3.0).grid(Field())  # type: ignore[arg-type]
    assert grid.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0]) and grid.dtype == torch.float64
    assert FlowSampler(steps=4, shift=1.0).grid(Field()).tolist() == [1, 0.75, 0.5, 0.25, 0]  # type: ignore[arg-type]
    with pytest.raises(IncompatibleError, match="discrete times"):
        FlowSampler(steps=3, shift=3.0).grid(Field(discrete=True))  # type: ignore[arg-type]
    FlowSampler(steps=4, shift=1e-3)
    for shift in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"shift={shift}"):
            FlowSampler(shift=shift)


def test_a_sample_may_end_at_the_first_trained_time() -> None:
    """There it is x / sqrt((1 - t)^2 + t^2) in the model's scale; at t = .1 that is x / sqrt(.82)."""
    policy = Field(first_trained=0.1)
    sampler = FlowSampler(steps=2, end="first_trained")
    assert sampler.grid(policy).tolist() == pytest.approx([1, 0.5, 0.1])  # type: ignore[arg-type]
    rollout = run(sampler, policy)
    x = start(draw())
    x = x - 0.5 * (x + 1)
    x = x - 0.4 * (0.5 * x + 1)
    assert torch.allclose(rollout.final, x / math.sqrt(0.82), atol=1e-6)
    close = Field(torch.tensor([1.0, 0.1, 0.0], dtype=torch.float64), first_trained=0.1)
    assert sampler.grid(close).tolist() == [1, 0.1, 0]  # type: ignore[arg-type] # the last step starts there already
    plain = run(sampler, Field())  # trained down to 0: nothing changes
    assert torch.equal(plain.final, run(FlowSampler(steps=2), Field()).final)


def test_which_steps_may_be_recorded() -> None:
    """CPS has noise in all steps but the last; a window that drops none of them but the noiseless."""
    times = torch.linspace(1, 0, 6).double()
    every = FlowSampler(steps=5, dynamics=CPS(0.5), window=EveryStep(drop=None))
    assert every.recordable(times) == range(4) and every.recorded == 5
    assert every.step_ranges(draw(), times).recorded == range(4) and every.step_ranges(draw()).recorded == range(5)
    assert replace(every, window=EveryStep(drop=3)).recordable(times) == range(2)
    none = FlowSampler(steps=5)
    assert none.recordable(times) == range(0) and none.recorded == 0 and none.forwards == 5
    assert none.step_ranges(draw()).stochastic == range(0)
    with pytest.raises(ValueError, match="none has noise enough"):
        replace(every, dynamics=CPS(0.0)).recordable(times)
    fast = FlowSampler(steps=10, dynamics=FlowSDE(), window=RandomWindow())
    assert fast.recorded == 3 and fast.recordable(torch.linspace(1, 0, 11).double()) == range(5)


def test_a_recorded_step_has_noise() -> None:
    with pytest.raises(IncompatibleError, match="no noise, so no density"):
        run(FlowSampler(steps=2, dynamics=CPS(0.5), window=EveryStep(drop=0)), Field())


def test_held_out_samples_are_without_noise() -> None:
    sampler = FlowSampler(steps=8, dynamics=CPS(), window=EveryStep(), guidance=4.0, share_noise=True, shift=3.0)
    assert sampler.heldout(None, None, None) == FlowSampler(steps=8, guidance=4.0)
    assert sampler.heldout(3, 1.5, None) == FlowSampler(steps=3, guidance=1.5)
    with pytest.raises(ValueError, match="no sampling temperature"):
        sampler.heldout(None, None, 0.5)


# windows


def starts(window, steps: int, iterations: int) -> list[int]:
    found = [window(steps, draw(iteration=i)) for i in range(iterations)]
    assert all(r.stochastic == r.recorded and len(r.recorded) == window.size for r in found)
    return [r.recorded.start for r in found]


def test_all_steps_but_the_last_ones() -> None:
    assert EveryStep()(5, draw()).recorded == range(4) and EveryStep()(5, draw()).stochastic == range(5)
    assert EveryStep(drop=4)(5, draw()).recorded == range(1)
    assert EveryStep(drop=None)(5, draw(), 3).recorded == range(3)
    for window, noisy, why in ((EveryStep(drop=5), None, "5 are dropped"), (EveryStep(drop=None), 0, "noise enough")):
        with pytest.raises(ValueError, match=why):
            window(5, draw(), noisy)


def test_a_random_window_lies_in_the_first_part() -> None:
    assert set(starts(RandomWindow(), 10, 60)) == {0, 1, 2}  # three of the first five
    assert set(starts(RandomWindow(size=1, stop=0.35), 10, 60)) == {0, 1, 2}  # one of the first int(3.5)
    assert RandomWindow().recordable(10) == range(5) and set(starts(RandomWindow(size=5), 10, 9)) == {0}
    for size in (0, 6):
        with pytest.raises(ValueError, match=f"size={size} does not fit into the first 5 of 10 steps"):
            RandomWindow(size=size)(10, draw())


def test_a_sliding_window_comes_back() -> None:
    """MixGRPO: four steps, one further every 25 iterations."""
    default = SlidingWindow()
    assert [default(10, draw(iteration=i)).recorded.start for i in (0, 24, 25, 49, 50, 149, 150)] == [
        0,
        0,
        1,
        1,
        2,
        5,
        0,
    ]
    assert starts(SlidingWindow(size=3, stride=2, every=1), 10, 5) == [0, 2, 4, 6, 0]
    assert starts(SlidingWindow(size=3, stride=0, every=1), 10, 3) == [0, 1, 2]  # it moves by one at least
    assert starts(SlidingWindow(size=9, every=1), 10, 3) == [0, 0, 0]  # all but the last step, which is never in it
    assert set(starts(SlidingWindow(size=3, order="random"), 6, 60)) == {0, 1, 2}
    assert SlidingWindow().recordable(10) == range(9) and SlidingWindow().recordable(1) == range(1)
    for size in (0, 10):
        with pytest.raises(ValueError, match=f"a window of size={size} needs between 1 and"):
            SlidingWindow(size=size)(10, draw())
    SlidingWindow(size=1)(10, draw())


# pieces of a rollout


def test_a_rollout_in_pieces_is_the_whole() -> None:
    sampler, how = FlowSampler(steps=3, dynamics=CPS(0.5), window=EveryStep()), draw(5)
    condition = TinyCondition(torch.arange(5))
    whole = sampler(Field(), condition, how)  # type: ignore[arg-type]
    for rows in (1, 2, 5, 9):
        parts = sample(sampler, Field(), condition, how, rows)
        assert torch.equal(parts.final, whole.final) and parts.forwards == 15 and torch.equal(parts.group, how.group)
        assert isinstance(parts.trace, Steps) and isinstance(whole.trace, Steps)
        assert torch.equal(parts.trace.x_next, whole.trace.x_next) and parts.trace.dynamics == CPS(0.5)
        assert len(parts.condition) == 5
    with pytest.raises(ValueError, match="at least one row, not 0"):
        sample(sampler, Field(), condition, how, 0)
    plain = sample(FlowSampler(steps=1), Field(), condition, how, 2)
    assert plain.trace is None and len(plain.final) == 5


def test_a_sampler_of_other_rows_takes_all_at_once() -> None:
    """One that returns every sample twice."""

    def twice(policy, condition, how: Draw) -> Rollout:
        rows = torch.arange(len(how)).repeat(2)
        return FlowSampler(steps=1)(policy, condition.take(rows), how.take(rows))

    how, condition = draw(4), TinyCondition(torch.arange(4))
    assert len(sample(twice, Field(), condition, how, 4).final) == 8  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sample all 4 at once"):
        sample(twice, Field(), condition, how, 3)  # type: ignore[arg-type]


def test_some_samples_of_a_rollout() -> None:
    how, condition = draw(4), TinyCondition(torch.arange(4))
    rollout = FlowSampler(steps=3, dynamics=CPS(0.5), window=EveryStep())(Field(), condition, how)  # type: ignore[arg-type]
    some = take(rollout, torch.tensor([2, 0]))
    assert isinstance(some.condition, TinyCondition) and some.condition.index.tolist() == [2, 0]
    assert torch.equal(some.final, rollout.final[[2, 0]]) and some.group.tolist() == [2, 0] and some.forwards == 12
    assert isinstance(some.trace, Steps) and isinstance(rollout.trace, Steps)
    assert torch.equal(some.trace.squared, rollout.trace.squared[[2, 0]]) and some.trace.dynamics == CPS(0.5)
    again = joined([take(rollout, torch.tensor([k])) for k in range(4)], condition, how.group)
    assert torch.equal(again.final, rollout.final) and again.forwards == 48
    assert take(replace(rollout, trace=None), torch.tensor([1])).trace is None


def storages(rollout: Rollout) -> int:
    """Bytes of the different storages that a rollout's steps and samples lie in."""
    trace = rollout.trace
    assert isinstance(trace, Steps)
    every = [trace.states, trace.x, trace.x_next, rollout.final]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in every}.values())


def test_recorded_states_are_stored_once() -> None:
    """[N, D + 1, ...] and no more, through pieces, rows taken and joined again, and in what is trained on."""
    sampler, how = FlowSampler(steps=3, dynamics=CPS(0.5), window=EveryStep()), draw(6)
    condition = TinyCondition(torch.arange(6))
    rollout = sample(sampler, Field(), condition, how, 2)  # type: ignore[arg-type]
    size = rollout.final.untyped_storage().nbytes()
    parts = [take(rollout, torch.tensor(rows)) for rows in ([0, 1, 2], [3, 4, 5])]
    for made, share in ((rollout, 1.0), (joined(parts, condition, how.group), 1.0), (parts[0], 0.5)):
        assert isinstance(made.trace, Steps) and made.trace.states.shape[:2] == (int(6 * share), 3)
        assert storages(made) == int(share * (3 * size + size))
        assert made.trace.x.data_ptr() == made.trace.states.data_ptr()
    for fraction in (1.0, 0.7):
        rows = Transitions(fraction=fraction).probe(rollout, Field(), how.seeds)  # type: ignore[arg-type]
        block = rows.block(torch.tensor([4, 1]), slice(0, 2))
        assert rows.steps.states is block.steps.states is rollout.trace.states  # type: ignore[union-attr]
        assert block.x.shape[:2] == (2, rows.shape[1]) and torch.equal(block.x, rows.x[[4, 1], :2])
        assert torch.equal(block.x_next, rows.x_next[[4, 1], :2])


def test_pieces_are_let_go_as_they_are_put_together() -> None:
    """The most that is held at any time: one rollout and one piece, where a list of pieces would be two rollouts."""
    sampler, count = FlowSampler(steps=3, dynamics=CPS(0.5), window=EveryStep()), 8
    alive: list[weakref.ref] = []
    held: list[int] = []

    def watched(policy, condition, how: Draw) -> Rollout:
        made = sampler(policy, condition, how)
        held.append(sum(ref() is not None for ref in alive))  # earlier pieces, but the last one's name
        alive.append(weakref.ref(made.trace.states))  # type: ignore[union-attr]
        return made

    sample(watched, Field(), TinyCondition(torch.arange(count)), draw(count), 1)  # type: ignore[arg-type]
    assert held == [0] * count

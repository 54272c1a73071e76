"""Control policies in episodes: credit with time limits, likelihoods per decision, environments that misbehave."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flowrl.composition import build
from flowrl.environments import open_environment
from flowrl.errors import UserError
from flowrl.estimators.episodes import PerDecision
from flowrl.estimators.gaussian import GaussianActions
from flowrl.estimators.matching import Matching
from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import DDIM, Floored
from flowrl.math.random import seeds
from flowrl.models.control.load import load_control, new_network, save_control
from flowrl.models.control.policy import ControlConfig, ControlPolicy
from flowrl.parts.episodes import DecisionRewards, EpisodeGAE, StepClip, gae
from flowrl.samplers.chunks import sample
from flowrl.samplers.demonstrations import Demonstrations
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.gaussian import GaussianSampler
from flowrl.samplers.windows import EveryStep
from flowrl.step import UpdateSettings, improve
from flowrl.types import Draw, Episodes, Prompt, Rollout, Scores
from flowrl.worlds.avoid.demonstrations import demonstrations
from flowrl.worlds.avoid.layout import WAYS, way_name
from flowrl.worlds.avoid.prompts import HELD_OUT, prompts
from tests.contract.toy_environment import toy_policy
from tests.contract.toys import Recorder, gradients, roll, small, start

TOY = "tests.contract.toy_environment:make"


def drawn(count: int = 6, columns: Any = None) -> Draw:
    asked = [Prompt("p", 0, columns or {})] * count
    return Draw.of(seeds(1, "episodes", count=count), torch.zeros(count, dtype=torch.long), 0, 0, asked)


def rolled(sampler: Any, policy: ControlPolicy | None = None, rows: int = 100) -> tuple[ControlPolicy, Rollout]:
    policy = policy or toy_policy()
    draw = drawn()
    episodes = EpisodeSampler(sampler=sampler, environment=TOY, decisions=3)
    return policy, sample(episodes, policy, policy.condition(draw.prompts), draw, rows)


NOISY = FlowSampler(steps=3, dynamics=Floored(DDIM(1.0), 0.1), window=EveryStep(drop=0), guidance=1.0)


# ------------------------------------------------------------------------------------------------------------- credit
def test_time_limits_bootstrap_from_the_last_observation_and_ends_do_not() -> None:
    """Rewards 1, 1 and values 1, 2; the limit cuts where the value is 5 (gamma .9, lambda .5): delta_1 = 1 + 4.5 - 2,
    delta_0 = 1 + 1.8 - 1. As an end, delta_1 = -1. Another row, of one decision and no limit in it."""
    reward, value = torch.tensor([[1.0, 1.0]] * 2).double(), torch.tensor([[1.0, 2.0, 5.0]] * 2).double()
    alive = torch.tensor([[True, True], [True, False]])
    found = gae(reward, value, alive, torch.tensor([True, True]), 0.9, 0.5)
    torch.testing.assert_close(found, torch.tensor([[3.375, 3.5], [1.8, 0.0]]).double())
    ended = gae(reward, value, alive, torch.tensor([False, False]), 0.9, 0.5)
    torch.testing.assert_close(ended, torch.tensor([[1.35, -1.0], [0.0, 0.0]]).double())


def test_every_step_of_a_decision_has_its_advantage_discounted_by_noise() -> None:
    """Three denoising steps: .81, .9 and 1 of the decision's advantage, and one return for all (DPPO)."""
    policy, rollout = rolled(NOISY)
    algorithm = build({"use": "dppo", "steps": 3})
    table = table_of(policy, rollout, PerDecision(estimator=Transitions(reduction="sum")))
    part = EpisodeGAE(whiten=False, gamma_denoise=0.9)
    found = part(table)
    assert algorithm.token_advantage[0].gamma_denoise == 0.99
    per = found.advantage.view(6, 4, 3)
    torch.testing.assert_close(per[..., 0], 0.81 * per[..., 2])
    torch.testing.assert_close(per[..., 1], 0.9 * per[..., 2])
    assert found.old is not None
    returns = found.old.extra["returns"].view(6, 4, 3)
    assert torch.equal(returns[..., 0], returns[..., 2]) and bool((returns[:, 3] == 0).all())
    value, trace = found.old.extra["value"].view(6, 4, 3)[..., 0], rollout.trace
    assert isinstance(trace, Episodes) and rollout.feedback is not None
    wanted = gae(rollout.feedback.nan_to_num(0), value, trace.alive, trace.truncated, 0.99, 0.95)
    torch.testing.assert_close(per[:, :3, 2], wanted)


def table_of(policy: Any, rollout: Rollout, estimator: Any) -> Any:
    """What `improve` hands to a token advantage, with the environment's rewards as advantages."""
    from flowrl.step import spread
    from flowrl.types import Table

    rows = estimator.probe(rollout, policy, rollout.seeds)
    with torch.no_grad():
        old = estimator(policy, rows, rollout.condition)
    assert rollout.feedback is not None
    wide = spread(rollout.feedback.nan_to_num(0.0), rows)
    even = torch.ones(rows.shape).double()
    return Table(rows, rollout.group, rollout.source, rollout.feedback, wide, rows.counted, even, old)


def test_clips_of_steps_grow_to_the_last_and_one_step_has_the_last() -> None:
    schedule = StepClip(least=1e-3, most=0.01, growth=3.0).of_step(torch.arange(3), 3)
    torch.testing.assert_close(schedule, torch.tensor([0.001, 0.00264, 0.01]).double(), atol=5e-6, rtol=0)
    assert StepClip().of_step(torch.zeros(1, dtype=torch.long), 1).tolist() == [0.01]
    with pytest.raises(ValueError, match=r"least=0\.1 and most=0\.01"):
        StepClip(least=0.1)


def test_other_rewards_are_paid_at_the_end_of_an_episode() -> None:
    nothing = torch.nan
    feedback = torch.tensor([[1.0, 2.0, nothing], [4.0, nothing, nothing]]).double()
    group = torch.zeros(2, dtype=torch.long)
    rewards = torch.tensor([[3.0, 10.0], [4.0, 20.0]]).double()
    names, valid = ("episode_return", "style"), torch.tensor([True, True])
    scores = Scores(rewards, torch.tensor([1.0, 0.5]).double(), names, group, group, valid, feedback=feedback)
    assert DecisionRewards()(scores, {}).tolist() == [[1, 7, 0], [14, 0, 0]]
    torch.testing.assert_close(DecisionRewards()(scores, {}).sum(dim=1), scores.total)
    with pytest.raises(Exception, match=r"advantage.reward=other .* the rewards are episode_return, style"):
        DecisionRewards("other")(scores, {})


# --------------------------------------------------------------------------------------------------------- likelihoods
def test_ppo_of_a_gaussian_is_cleanrls_loss() -> None:
    """A Gaussian decision's loss and gradient equal PPO's formula written out, over the decisions that were made."""
    algorithm = replace(small("ppo_gaussian"), token_advantage=(EpisodeGAE(whiten=False),))
    policy = start(algorithm)
    it = roll(algorithm, policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01)
    found = gradients(algorithm, it)[0]
    trace = it.rollout.trace
    assert isinstance(trace, Episodes)
    rows, events = trace.alive.nonzero(as_tuple=True)
    table = table_of(policy, it.rollout, algorithm.estimator)
    advantage = EpisodeGAE(whiten=False)(table).advantage[rows, events]
    returns = EpisodeGAE(whiten=False)(table).old.extra["returns"][rows, events]
    seen = trace.observed[rows, events]
    mean, log_std = policy.gaussian(policy.condition([]).seeing(seen))
    normal = torch.distributions.Normal(mean.double(), log_std.double().exp())
    logp = normal.log_prob(trace.actions[rows, events].double()).flatten(1).sum(dim=1)
    ratio = (logp - logp.detach()).exp()
    clipped = ratio.clamp(0.8, 1.2)
    loss = torch.maximum(-advantage * ratio, -advantage * clipped).mean()
    loss = loss + 0.5 * 0.5 * (policy.value(seen).double() - returns).square().mean()
    wanted = torch.autograd.grad(loss, policy.parameters(), allow_unused=True)
    pairs = zip(wanted, policy.parameters(), strict=True)
    flat = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
    torch.testing.assert_close(found, flat, rtol=1e-4, atol=1e-6 * float(flat.norm()))


def test_a_flow_of_one_step_from_zero_acts_by_its_gaussian_mean() -> None:
    policy = toy_policy()
    seen = torch.randn(5, 1, 2)
    mean, _ = policy.gaussian(policy.condition([]).seeing(seen))
    torch.testing.assert_close(policy.in_own_units(mean), policy.chunk(seen, steps=1))


def test_fpos_ratio_is_one_and_its_gradient_the_advantages_matching_error() -> None:
    """At the old policy exp(l_old - l) is 1, and the gradient is that of the advantage-weighted mean error (T2), with
    one number for all draws of a decision or one for each."""
    for average in (True, False):
        estimator = PerDecision(estimator=Matching(draws=4, weight="noise"), average=average)
        policy, rollout = rolled(FlowSampler(steps=5, guidance=1.0))
        algorithm = replace(
            build({"use": "fpo", "family": "control"}), estimator=estimator, token_advantage=(), regularizers=()
        )
        trace = rollout.trace
        assert isinstance(trace, Episodes)
        advantage = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        ok, group = torch.ones(6, dtype=torch.bool), rollout.group
        scores = Scores(torch.zeros(6, 1).double(), torch.ones(1).double(), ("r",), group, group, ok)
        recorder = Recorder(policy.parameters())
        settings = UpdateSettings(max_grad_norm=1e9, epochs=2, micro_batch=5)
        metrics = improve(policy, recorder, algorithm, rollout, scores, advantage, settings)
        assert metrics["ratio/first_max_deviation"] == 0
        rows = estimator.probe(rollout, policy, rollout.seeds)
        error = -estimator(policy, rows, rollout.condition).logp.view(6, 4, -1).mean(dim=2)[:, :3]
        loss = (advantage * error * trace.alive).sum() / trace.alive.sum()
        wanted = torch.autograd.grad(loss, policy.parameters(), allow_unused=True)
        pairs = zip(wanted, policy.parameters(), strict=True)
        flat = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
        torch.testing.assert_close(recorder.gradients[0], flat, rtol=1e-4, atol=1e-6 * float(flat.norm()))


def test_noise_errors_are_velocity_errors_times_one_minus_t_squared() -> None:
    policy, rollout = rolled(FlowSampler(steps=5, guidance=1.0))
    found = {}
    for weight in ("uniform", "noise"):
        estimator = PerDecision(estimator=Matching(draws=3, weight=weight))  # pyright: ignore[reportArgumentType]
        rows = estimator.probe(rollout, policy, rollout.seeds)
        assert rows.inner is not None
        found[weight] = estimator(policy, rows, rollout.condition).logp[rows.alive]
    t: Tensor = rows.inner.t.flatten()  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(found["noise"], found["uniform"] * (1 - t) ** 2)


def test_a_replay_of_recorded_steps_is_what_the_sampler_recorded() -> None:
    policy, rollout = rolled(NOISY)
    estimator = PerDecision(estimator=Transitions(reduction="sum"))
    rows = estimator.probe(rollout, policy, rollout.seeds)
    told = estimator.recorded_logp(rollout, rows)
    assert told is not None and bool((rows.alive.sum(dim=1) >= 3).all())
    again = estimator(policy, rows, rollout.condition).logp
    torch.testing.assert_close(again, told.logp, rtol=1e-4, atol=1e-4)
    s = NOISY.dynamics.coefficients(torch.tensor([0.5]), torch.tensor([0.0]))[2]
    assert float(s) == pytest.approx(0.1)  # also in the last step, in sampling and density alike


@pytest.mark.parametrize("estimator", [Transitions(reduction="sum"), Matching(draws=2), GaussianActions()])
def test_a_block_of_events_holds_their_numbers(estimator: Any) -> None:
    sampler = GaussianSampler() if isinstance(estimator, GaussianActions) else NOISY
    policy, rollout = rolled(sampler)
    part = PerDecision(estimator=estimator)
    rows = part.probe(rollout, policy, rollout.seeds)
    whole = part(policy, rows, rollout.condition)
    some = torch.tensor([4, 1])
    for first in range(4):
        block = rows.block(some, slice(first * rows.per, (first + 1) * rows.per))
        found = part(policy, block, rollout.condition.take(some))
        for name, value in {"logp": found.logp, "value": found.need("value")}.items():
            wanted = whole.logp if name == "logp" else whole.need(name)
            cut = wanted[some][:, first * rows.per : (first + 1) * rows.per]
            torch.testing.assert_close(value, cut, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ episodes
def test_an_episode_follows_from_its_seed_whatever_the_batch() -> None:
    """Row by row or all at once: the same episodes but for rounding, recorded alike (T12, T18)."""
    _, whole = rolled(NOISY)
    _, single = rolled(NOISY, rows=1)
    assert isinstance(whole.trace, Episodes) and isinstance(single.trace, Episodes)
    assert torch.equal(whole.trace.alive, single.trace.alive)
    torch.testing.assert_close(whole.trace.actions, single.trace.actions, rtol=0, atol=1e-5)
    assert whole.feedback is not None and single.feedback is not None
    torch.testing.assert_close(whole.feedback, single.feedback, rtol=0, atol=1e-5, equal_nan=True)


COUNTING = """
import numpy as np

class World:
    observation_size, action_size = 2, 2
    stepped = []

    def __init__(self, count):
        self.time = np.zeros(count)

    def reset(self, seeds, prompts):
        self.ends = np.array([prompt.columns["ends"] for prompt in prompts])[: len(seeds)] + np.arange(len(seeds))
        return np.zeros((len(seeds), 2))

    def step(self, actions, rows):
        World.stepped.append(rows.tolist())
        self.time[rows] += 1
        ended = self.time[rows] >= self.ends[rows]
        known = {{"success": (self.time[rows] == 2) * 1.0, "mode": self.time[rows]}}
        return np.full((len(rows), 2), {observed}), {reward}, ended, np.zeros(len(rows)), known

def make(count):
    World.stepped.clear()
    return World(count)
"""


def world(where: Path, observed: str = "0.0", reward: str = "np.ones(len(rows))") -> str:
    (where / "world.py").write_text(COUNTING.format(observed=observed, reward=reward))
    return f"{where / 'world.py'}:make"


def chunky(chunk: int) -> ControlPolicy:
    config = ControlConfig(observation=2, action=2, chunk=chunk, width=8, depth=1)
    return ControlPolicy(config, new_network(config), None, None, torch.device("cpu"))


def test_a_row_that_ends_inside_a_chunk_is_not_stepped_again(tmp_path: Path) -> None:
    """Rows end after 2, 3 and 4 of the chunk's 3 actions: rewards 2, 3 and 3 + 1 (T19)."""
    sampler = EpisodeSampler(sampler=FlowSampler(steps=1), environment=world(tmp_path), decisions=4)
    policy, draw = chunky(3), drawn(3, {"ends": 2})
    rollout = sampler(policy, policy.condition(draw.prompts), draw)
    nan = torch.nan
    wanted = torch.tensor([[2.0, nan, nan, nan], [3.0, nan, nan, nan], [3.0, 1.0, nan, nan]]).double()
    assert rollout.feedback is not None
    torch.testing.assert_close(rollout.feedback, wanted, equal_nan=True)
    stepped = __import__("sys").modules
    found = next(m for name, m in stepped.items() if name.startswith("flowrl_environment_world"))
    assert found.World.stepped == [[0, 1, 2], [0, 1, 2], [1, 2], [2]]
    assert rollout.final[:, 2].tolist() == [0, 0, 0]  # ended, not cut


def test_an_episode_that_goes_on_is_cut_after_its_decisions(tmp_path: Path) -> None:
    sampler = EpisodeSampler(sampler=FlowSampler(steps=1), environment=world(tmp_path), decisions=2)
    policy, draw = chunky(1), drawn(2, {"ends": 2})
    rollout = sampler(policy, policy.condition(draw.prompts), draw)
    assert isinstance(rollout.trace, Episodes) and rollout.trace.truncated.tolist() == [False, True]
    assert rollout.final[:, 3:].tolist() == [[1, 2], [1, 2]]  # what the last step says, also where it is cut


def test_success_is_that_of_the_end(tmp_path: Path) -> None:
    """Not of any time: the second row had arrived after two steps, and has gone on to a third."""
    sampler = EpisodeSampler(sampler=FlowSampler(steps=1), environment=world(tmp_path), decisions=3)
    policy, draw = chunky(1), drawn(2, {"ends": 2})
    rollout = sampler(policy, policy.condition(draw.prompts), draw)
    assert rollout.final[:, 2:].tolist() == [[0, 1, 2], [0, 0, 3]]


HOSTILE = {
    "NaN": ("np.nan", "np.ones(len(rows))", "NaN or infinite, in row 0"),
    "shape": ("0.0", "np.ones(7)", r"an answer has the shape \[7\], and \[2\] is asked for"),
    "raises": ("1 / 0", "np.ones(len(rows))", "step fails: ZeroDivisionError"),
    "leaves": (
        "__import__('os')._exit(7)",
        "np.ones(len(rows))",
        r"step fails: ExitCalledError: it called os._exit\(7\)",
    ),
    "exits": ("exit(1)", "np.ones(len(rows))", "step fails: SystemExit"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_environment_follows_the_declared_policy(kind: str, tmp_path: Path) -> None:
    observed, reward, message = HOSTILE[kind]
    place, policy, draw = world(tmp_path, observed, reward), chunky(1), drawn(2, {"ends": 5})
    sampler = EpisodeSampler(sampler=FlowSampler(steps=1), environment=place, decisions=2)
    with pytest.raises(UserError, match=message):
        sampler(policy, policy.condition(draw.prompts), draw)
    with nullcontext() if kind == "NaN" else pytest.warns(UserWarning, match=message):
        rollout = replace(sampler, on_error="drop")(policy, policy.condition(draw.prompts), draw)
    assert rollout.feedback is not None and bool(rollout.feedback.isnan().all())
    assert isinstance(rollout.trace, Episodes) and not bool(rollout.trace.alive.any())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("avoids", "none of the worlds avoid, two_walls; others are gym:NAME and path.py:make; did you mean 'avoid'"),
        ("nothere.py:make", "environment file nothere.py does not exist"),
    ],
)
def test_environments_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_environment(name, 2)


def test_gymnasiums_environments_are_reset_by_seed_and_cut_by_their_limit() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    environment = open_environment("gym:Pendulum-v1", 2)
    first, failed = environment.reset(torch.tensor([3, 4]), [Prompt("", 0)] * 2)
    again, _ = environment.reset(torch.tensor([4, 3]), [Prompt("", 0)] * 2)
    assert torch.equal(first, again.flip(0)) and not bool(failed.any()) and not torch.equal(first[0], first[1])
    alone = gymnasium.make("Pendulum-v1")
    alone.reset(seed=3)
    for number in range(200):
        action = torch.full((2, 1), 9.0)  # beyond the action space: clipped
        found = environment.step(action, torch.tensor([1, 0]))
        _, reward, ended, cut, _ = alone.step(np.array([2.0], dtype=np.float32))
        assert float(found.reward[0]) == pytest.approx(reward) and not ended
        assert bool(found.truncated[0]) == cut == (number == 199) and not bool(found.terminated.any())
    with pytest.raises(UserError, match="gym:Blackjack-v1 has observations of Tuple"):
        open_environment("gym:Blackjack-v1", 1)


def test_a_model_of_another_environment_is_refused() -> None:
    sampler = EpisodeSampler(sampler=FlowSampler(steps=1), environment="avoid", decisions=1)
    policy, draw = toy_policy(), drawn(2)
    with pytest.raises(UserError, match="environment=avoid has observations of 8 numbers, and the model's have 2"):
        sampler(policy, policy.condition(draw.prompts), draw)


# --------------------------------------------------------------------------------------------------------------- avoid
def test_avoid_has_24_ways_six_of_them_held_out() -> None:
    train, test = ({row["way"] for row in prompts(split)} for split in ("train", "test"))
    assert len(train) == 18 and test == set(HELD_OUT) and train | test == {way_name(way) for way in WAYS}


def test_demonstrations_replayed_cross_by_their_ways() -> None:
    """The shipped actions lead to the shipped next places but for the noise, and the last one crosses the line."""
    observed, action, length = demonstrations()
    assert len(length) == 72 and observed.shape == (length.sum(), 8) and action.shape == (length.sum(), 2)
    last = observed[np.cumsum(length) - 1]
    assert float(last[:, 1].min()) > 2.0 and float(np.abs(action).max()) <= 1
    calm = np.abs(np.diff(observed[: length[0], 2:4], axis=0) - 0.4 * (action - observed[:, 2:4])[: length[0] - 1])
    assert 0.05 < calm.std() / math.sqrt(1 - 2 / math.pi) < 0.2  # pushed by noise of deviation .1


def test_the_cloned_base_crosses_sometimes_and_its_mean_more_often() -> None:
    policy = load_control("avoid")
    rows = [Prompt("p", i, {"way": row["way"]}) for i, row in enumerate(prompts("test"))] * 12
    draw = Draw.of(seeds(3, "base", count=72), torch.arange(72), 0, 0, rows)
    found = {}
    for name, sampler in {"flow": FlowSampler(steps=10), "mean": GaussianSampler(noise=False)}.items():
        made = EpisodeSampler(sampler=sampler)(policy, policy.condition(rows), draw)
        found[name] = float(made.final[:, 3].mean())
        assert torch.equal(made.final[:, 0], made.final[:, 3])  # the reward is success
    assert 0.15 < found["flow"] < 0.45 < 0.55 < found["mean"]


def test_a_policy_is_written_and_read_and_acts_as_others_call_it(tmp_path: Path) -> None:
    policy = load_control("avoid")
    save_control(policy.config, policy.network, tmp_path / "p")
    again = load_control(tmp_path / "p")
    seen = torch.randn(3, 8)
    first = [again.select_action(seen) for _ in range(5)]
    chunks = policy.chunk(seen[:, None])
    assert all(torch.equal(first[i], chunks[:, i]) for i in range(4)) and torch.equal(first[4], chunks[:, 0])
    action, state = again.predict(seen[0].numpy())
    assert state is None and np.allclose(action, chunks[0, 0].numpy(), atol=1e-5)
    (tmp_path / "p" / "config.json").write_text('{"family": "control", "observation": 8, "action": 2, "widht": 3}')
    with pytest.raises(UserError, match=r"there is no key 'widht'; did you mean 'width'"):
        load_control(tmp_path / "p")


def test_evaluation_reads_what_came_of_episodes() -> None:
    """`flowrl eval --suite control` scores the lines that tell of episodes."""
    from flowrl.evaluation.decoding import Decoding, sampler_of_model
    from flowrl.evaluation.generation import generate
    from flowrl.evaluation.suites import find
    from flowrl.evaluation.target import Target

    assert isinstance(sampler_of_model("control", None, Decoding(steps=7)), EpisodeSampler)
    suite = find(["control"], Target("avoid", "model", medium="completions"))[0]
    assert len(suite.prompts) == 6 and {prompt.columns["way"] for prompt in suite.prompts} == set(HELD_OUT)
    policy = toy_policy()
    episodes = EpisodeSampler(sampler=FlowSampler(steps=3), environment=TOY, decisions=3)
    made = generate(policy, episodes, "live", drawn())
    assert made.tokens == (2,) * 6 and made.samples.completions is not None
    found = suite.score(made.samples).measures
    again = sample(episodes, policy, policy.condition([Prompt("p", 0)] * 6), drawn(), 9).final
    assert torch.equal(found["success"], again[:, 3]) and torch.equal(found["episode_decisions"], again[:, 1])
    assert torch.allclose(found["episode_return"], again[:, 0], rtol=1e-5)
    assert torch.equal(found["mode"].nan_to_num(-1.0), again[:, 4])


def test_the_entropy_of_ways_is_of_successes() -> None:
    """Ways 3, 3, 5 and, of failures, 7, 8: shares 2/3 and 1/3."""
    from flowrl.evaluation.suite import Collective
    from flowrl.evaluation.suites import find
    from flowrl.evaluation.target import Target

    suite = find(["control"], Target("avoid", "model", medium="completions"))[0]
    assert isinstance(suite, Collective)
    mode, success = np.array([[3.0, 7.0, np.nan], [3.0, 5.0, 8.0]]), np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    found = suite.conclude({"success": success, "mode": mode, "tokens": mode})
    assert list(found) == ["success", "mode_entropy"]
    wanted = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert found["mode_entropy"][0, 0] == pytest.approx(wanted, abs=1e-12)
    assert np.isnan(found["mode_entropy"]).sum() == 5
    untold = suite.conclude({"success": success * np.nan, "mode": mode})["mode_entropy"][0, 0]  # 2, 1, 1 and 1 of 5
    assert untold == pytest.approx(-(0.4 * math.log(0.4) + 0.6 * math.log(0.2)), abs=1e-12)


def test_a_temperature_scales_what_a_decision_starts_from() -> None:
    """At 0 the deployed policy from z = 0; at 1 as without; a Gaussian has its mean alone."""
    policy, draw = toy_policy(), drawn()
    deployed = EpisodeSampler(sampler=FlowSampler(steps=8, guidance=1.0), environment=TOY, decisions=3)
    found = {}
    for temperature in (None, 1.0, 0.0):
        sampler = deployed.heldout(None, None, temperature).heldout(None, None, None)
        found[temperature] = sample(sampler, policy, policy.condition(draw.prompts), draw, 9).trace
    noisy, same, still = found[None], found[1.0], found[0.0]
    assert isinstance(noisy, Episodes) and isinstance(same, Episodes) and isinstance(still, Episodes)
    assert torch.equal(noisy.actions, same.actions)
    first = policy.chunk(still.observed[:, 0], steps=8)
    assert torch.allclose(policy.in_own_units(still.actions[:, 0]), first, atol=1e-6)
    assert not torch.allclose(policy.in_own_units(noisy.actions[:, 0]), first, atol=0.1)
    mean = EpisodeSampler(sampler=GaussianSampler(), environment=TOY)
    assert mean.heldout(None, None, 0.0) == mean.heldout(None, None, None)
    with pytest.raises(ValueError, match=r"temperature=0\.5: a Gaussian policy acts by its mean"):
        mean.heldout(None, None, 0.5)


def test_control_is_evaluated_with_enough_episodes_and_from_zero_as_well(tmp_path: Path, capsys: Any) -> None:
    from flowrl.evaluation.runner import GridPoint, _case, evaluate
    from flowrl.evaluation.suites import find
    from flowrl.evaluation.table import show
    from flowrl.evaluation.target import Target

    suite = find(["control"], Target("avoid", "model", medium="completions"))[0]
    assert _case(suite, GridPoint("", None, 4), None, None).point.samples == 43  # 258 of 6 prompts
    assert _case(suite, GridPoint("", None, 4), 2, None).point.samples == 128
    assert _case(suite, GridPoint("", None, 9), None, 9).point.samples == 9
    results = evaluate("avoid", "control", tmp_path, samples=2, limit=3)
    assert list(results["suites"]) == ["control", "control@z=0"]
    measures = results["suites"]["control@z=0"]["arms"]["model"]["measures"]
    assert list(measures) == ["success", "episode_decisions", "episode_return", "mode_entropy"]
    assert measures["success"]["samples"]["value"] == measures["episode_return"]["samples"]["value"]
    assert len(measures["success"]["wilson"]) == 2
    for name in ("control", "control@z=0"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.size == (316, 281)
    assert len(list(tmp_path.glob("model/*/episode.gif"))) == 2
    show(results)
    told = capsys.readouterr().out
    assert told.count("Wilson's interval of success") == 2 and "pass@" not in told and "control@z=0: 3" in told
    asked = evaluate("avoid", "control", tmp_path / "b", samples=1, limit=1, temperature=0.0)
    show(asked)
    assert list(asked["suites"]) == ["control"]


def test_demonstrations_are_read_with_their_history_and_what_followed() -> None:
    """Three steps, history 2 and chunks of 2: the first observation and the last action are repeated at the ends."""
    config = ControlConfig(observation=1, action=1, chunk=2, history=2, width=8, depth=1)
    network = new_network(config)
    network.actions.std.fill_(2.0)
    policy = ControlPolicy(config, network, None, None, torch.device("cpu"))
    columns = {"observed": [[1.0], [2.0], [3.0]], "action": [[10.0], [20.0], [30.0]]}
    sampler, draw = Demonstrations(length=4), drawn(1, columns)
    assert sampler.prepared(draw.prompts, "data") == list(draw.prompts)
    trace = sampler(policy, policy.condition(draw.prompts), draw).trace
    assert isinstance(trace, Episodes) and trace.alive.tolist() == [[True, True, True, False]]
    assert trace.observed[0, :3, :, 0].tolist() == [[1, 1], [1, 2], [2, 3]]
    assert trace.actions[0, :3, :, 0].tolist() == [[5, 10], [10, 15], [15, 15]]  # standardised
    long = {**columns, "action": [[1.0]] * 4}
    for broken, message in (({}, "KeyError"), (long, r"shapes are \[3, 1\] and \[4, 1\]")):
        with pytest.raises(UserError, match=r"data, prompt 1: an episode has the columns .*" + message):
            sampler.prepared(drawn(1, broken).prompts, "data")

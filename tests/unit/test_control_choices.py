"""Policies that choose among n actions, environments of gymnasium with choices, and policies that learned nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import flowrl
from flowrl.config import Config
from flowrl.data import load_prompts
from flowrl.environments import open_environment
from flowrl.errors import UserError
from flowrl.estimators.actions import ActionRows
from flowrl.estimators.categorical import CategoricalActions
from flowrl.math.masking import draw_choices
from flowrl.math.random import seeds
from flowrl.models.control.export import export
from flowrl.models.control.load import load_control, read_config, save_control
from flowrl.models.control.new import config_for, untrained
from flowrl.models.control.policy import ControlConfig, ControlPolicy
from flowrl.models.family import family_of
from flowrl.runtime.timing import PhaseTimer
from flowrl.samplers.categorical import CategoricalSampler
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.gaussian import GaussianSampler
from flowrl.session import open_session
from flowrl.startup.preflight import check_run
from flowrl.train import iterate
from flowrl.types import Draw, Episodes, IncompatibleError, Prompt

CONFIG = ControlConfig(kind="categorical", observation=3, action=4, chunk=2, width=16, depth=1)


def policy_of(config: ControlConfig = CONFIG, seed: int = 0, odds: float = 30.0) -> ControlPolicy:
    """Untrained, with odds that are far from even."""
    network = untrained(config, seed)
    with torch.no_grad():
        network.body[-1].weight.mul_(odds)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return ControlPolicy(config, network, None, None, torch.device("cpu"))


def drawn(count: int) -> Draw:
    return Draw.of(
        seeds(2, "choices", count=count), torch.zeros(count, dtype=torch.long), 0, 0, [Prompt("p", 0)] * count
    )


# ------------------------------------------------------------------------------------------------------------- choices
def test_choices_are_drawn_with_their_probabilities_and_follow_from_their_seed() -> None:
    """20000 draws of two actions of a chunk: shares within 4 standard errors; any row alone is the same."""
    policy, count = policy_of(), 20_000
    seen = torch.randn(1, 1, 3, generator=torch.Generator().manual_seed(0)).expand(count, 1, 3)
    condition, draw = policy.condition([]).seeing(seen), drawn(count)
    with torch.no_grad():
        probability = policy.choices(condition)[0].double().exp()
    found = CategoricalSampler()(policy, condition, draw).final
    assert torch.equal(found.sum(dim=2), torch.ones(count, 2)) and set(found.unique().tolist()) == {0, 1}
    error = (probability * (1 - probability) / count).sqrt()
    assert bool(((found.double().mean(dim=0) - probability).abs() < 4 * error).all())
    both = torch.einsum("na,nb->ab", found[:, 0].double(), found[:, 1].double()) / count  # independent of each other
    wanted = probability[0, :, None] * probability[1]
    assert bool(((both - wanted).abs() < 4 * (wanted * (1 - wanted) / count).sqrt()).all())
    some = torch.tensor([7, 123])
    part = Draw.of(draw.seeds[some], draw.group[some], 0, 0, [Prompt("p", 0)] * 2)
    assert torch.equal(CategoricalSampler()(policy, condition.take(some), part).final, found[some])


def test_evaluation_takes_the_likeliest_choices() -> None:
    policy, draw = policy_of(), drawn(5)
    condition = policy.condition([]).seeing(torch.randn(5, 1, 3))
    sampler = CategoricalSampler().heldout(None, None, None)
    wanted = policy.choices(condition).argmax(dim=2)
    assert torch.equal(sampler(policy, condition, draw).final.argmax(dim=2), wanted)
    with pytest.raises(ValueError, match="acts by its likeliest choice: it has no steps"):
        sampler.heldout(4, None, None)
    episodes = EpisodeSampler(sampler=CategoricalSampler())
    assert episodes.heldout(None, None, 0.0) == episodes.heldout(None, None, None)
    with pytest.raises(ValueError, match=r"temperature=0\.5: choices are the likeliest ones"):
        episodes.heldout(None, None, 0.5)


def test_likelihood_and_entropy_are_those_of_all_chunks() -> None:
    """Of all 16 chunks of two choices among four the probabilities sum to 1, and the entropy is their own; the gradient
    of the log-probability has mean 0 under them."""
    policy = policy_of()
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    action = torch.nn.functional.one_hot(every, 4).float()
    condition = policy.condition([]).seeing(torch.randn(1, 1, 3).expand(16, 1, 3))
    found = CategoricalActions()(policy, ActionRows(action[:, None]), condition)
    p = found.logp[:, 0].exp()
    assert float(p.detach().sum()) == pytest.approx(1, abs=1e-6)
    assert float(found.need("entropy").detach()[0]) == pytest.approx(float(-(p * p.log()).detach().sum()), abs=1e-6)
    found.need("entropy").sum().backward(retain_graph=True)
    parameters: list[Any] = policy.parameters()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in parameters)
    score = torch.autograd.grad((p.detach() * found.logp[:, 0]).sum(), parameters)
    assert max(float(g.abs().max()) for g in score) < 1e-6


def test_a_policy_of_choices_is_asked_for_nothing_else() -> None:
    policy = policy_of()
    condition = policy.condition([]).seeing(torch.randn(2, 1, 3))
    with pytest.raises(IncompatibleError, match="has no mean; use ppo_categorical"):
        policy.gaussian(condition)
    with pytest.raises(IncompatibleError, match="categorical, without a velocity; use ppo_categorical"):
        policy.velocity(torch.zeros(2, 2, 4), torch.ones(2), condition)
    with pytest.raises(IncompatibleError, match="this policy is flow and has no choices"):
        load_control("two_walls").choices(condition)


def test_choices_are_written_and_read_and_called_by_their_number(tmp_path: Path) -> None:
    policy = policy_of()
    assert export(policy, tmp_path / "p", "merged") == 0
    again = load_control(tmp_path / "p")
    assert again.config == CONFIG
    seen = torch.randn(5, 3)
    wanted = policy.chunk(seen[:, None]).argmax(dim=2)
    first = [again.select_action(seen) for _ in range(3)]
    assert all(torch.equal(first[i], wanted[:, i]) for i in range(2)) and torch.equal(first[2], wanted[:, 0])
    action, _ = again.predict(seen.numpy())
    assert np.array_equal(action, wanted[:, 0].numpy()) and again.predict(seen[0].numpy())[0] == wanted[0, 0]
    hot = policy_of(odds=1.0)
    acted = [int(hot.predict(seen[0].numpy(), deterministic=False)[0]) for _ in range(40)]
    assert set(acted) == {0, 1, 2, 3}  # near even odds: missed by one of a hundred thousand runs


# ----------------------------------------------------------------------------------------------------------- gymnasium
def test_choices_of_gymnasium_are_executed_and_nothing_resets_by_itself() -> None:
    """An episode of CartPole is that of gymnasium's own object, action by action, and ends where that ends: the mode in
    which its vector environments reset nothing (T13)."""
    gymnasium = pytest.importorskip("gymnasium")
    environment, alone = open_environment("gym:CartPole-v1", 3), gymnasium.make("CartPole-v1")
    assert environment.discrete and (environment.observation_size, environment.action_size) == (4, 2)
    policy = load_control("new:gym:CartPole-v1")
    sampler = EpisodeSampler(sampler=CategoricalSampler(), environment="gym:CartPole-v1", decisions=60)
    draw = drawn(3)
    trace, final = (rollout := sampler(policy, policy.condition(draw.prompts), draw)).trace, rollout.final
    assert isinstance(trace, Episodes) and not torch.equal(trace.alive[0], trace.alive[1])
    for row in range(3):
        seen, ended, cut, made = alone.reset(seed=int(draw.seeds[row]))[0], False, False, int(trace.alive[row].sum())
        for event in range(made):
            assert torch.equal(trace.observed[row, event, 0], torch.from_numpy(seen))
            seen, paid, ended, cut, _ = alone.step(int(trace.actions[row, event, 0].argmax()))
            assert ended == (event == made - 1) and paid == 1 and not cut
        assert torch.equal(trace.observed[row, made, 0], torch.from_numpy(seen))  # the last one, not the next first
        assert final[row, :3].tolist() == [made, made, 0]


def test_gymnasiums_vector_environment_without_resets_answers_the_same() -> None:
    """Of ``AutoresetMode.DISABLED``: reset row by row with seeds, the same observations, rewards and ends."""
    gymnasium = pytest.importorskip("gymnasium")
    mode = gymnasium.vector.AutoresetMode.DISABLED
    theirs = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("Acrobot-v1")] * 2, autoreset_mode=mode)
    ours = open_environment("gym:Acrobot-v1", 2)
    first, _ = ours.reset(torch.tensor([3, 4]), [Prompt("", 0)] * 2)
    assert np.array_equal(theirs.reset(seed=[3, 4])[0], first.numpy())
    for step in range(20):
        number = torch.tensor([step % 3, (2 * step) % 3])
        found = ours.step(torch.nn.functional.one_hot(number, 3).float(), torch.arange(2))
        seen, reward, ended, cut, _ = theirs.step(number.numpy())
        assert np.array_equal(seen, found.observed.numpy()) and np.array_equal(reward, found.reward.numpy())
        assert not ended.any() and not cut.any() and not bool((found.terminated | found.truncated).any())


@pytest.mark.parametrize("sampler", [CategoricalSampler(), GaussianSampler()])
def test_actions_of_a_row_alone_are_those_of_a_batch(sampler: Any) -> None:
    """T12: rounding, of the order of 1e-8, is all that a batch changes."""
    config = replace(CONFIG, kind="categorical" if isinstance(sampler, CategoricalSampler) else "gaussian")
    policy, draw = policy_of(config, odds=1.0), drawn(64)
    condition = policy.condition([]).seeing(torch.randn(64, 1, 3, generator=torch.Generator().manual_seed(1)))

    def asked(rows: Tensor) -> Tensor:
        some = condition.take(rows)
        return policy.choices(some) if config.kind == "categorical" else policy.gaussian(some)[0]

    with torch.no_grad():
        whole = asked(torch.arange(64))
        single = torch.cat([asked(torch.tensor([row])) for row in range(64)])
    assert float((whole - single).abs().max()) <= 3e-8 * float(whole.abs().max()) + 1e-7
    rows = [Draw.of(draw.seeds[n : n + 1], draw.group[:1], 0, 0, [Prompt("p", 0)]) for n in range(64)]
    made = sampler(policy, condition, draw).final
    alone = torch.cat([sampler(policy, condition.take(torch.tensor([n])), one).final for n, one in enumerate(rows)])
    assert float((made - alone).abs().max()) < 1e-6


# ----------------------------------------------------------------------------------------------------------- untrained
def test_an_untrained_policy_is_made_for_an_environment() -> None:
    pytest.importorskip("gymnasium")
    assert family_of("new:gym:CartPole-v1") == "control"
    choosing: Any = flowrl.load_policy("new:gym:CartPole-v1")
    assert (choosing.config.kind, choosing.config.observation, choosing.config.action) == ("categorical", 4, 2)
    odds = choosing.choices(choosing.condition([]).seeing(torch.randn(50, 1, 4))).detach().exp()
    assert float((odds - 0.5).abs().max()) < 0.02 and choosing.check_parity() < 1e-5
    again = load_control("new:gym:CartPole-v1")
    assert all(torch.equal(a, b) for a, b in zip(choosing.parameters(), again.parameters(), strict=True))
    normal = load_control("new:gym:Pendulum-v1")
    mean, log_std = normal.gaussian(normal.condition([]).seeing(torch.randn(50, 1, 3)))
    assert normal.config.kind == "gaussian" and float(mean.detach().abs().max()) < 0.05 and not bool(log_std.any())
    assert config_for("gym:Pendulum-v1", kind="flow", chunk=4).chunk == 4
    with pytest.raises(UserError, match="gym:Pendulum-v1 does not say that its actions are choices"):
        config_for("gym:Pendulum-v1", kind="categorical")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.path": "new:avoids"}, "environment 'avoids' is none of the worlds"),
        ({"model.path": "new:gym:NoSuch-v1"}, None),
        ({"algorithm": "flow_grpo"}, "new:gym:CartPole-v1 is an untrained policy that acts, and this algorithm trains"),
    ],
)
def test_a_run_from_an_untrained_policy_is_checked(changes: dict[str, Any], message: str | None) -> None:
    pytest.importorskip("gymnasium")
    values: dict[str, Any] = {
        "name": "x",
        "model.path": "new:gym:CartPole-v1",
        "algorithm": "ppo_categorical",
        "data": {"train": "gym:CartPole-v1", "test": "gym:CartPole-v1", "prompts": 1, "group": 4},
        "rewards": ["episode_return"],
        "train": {"iterations": 1},
        "eval": {"every": 0},
        **changes,
    }
    model = {"path": values.pop("model.path")}
    if message is None:
        with pytest.raises(UserError, match="environment gym:NoSuch-v1 cannot be made"):
            load_control(model["path"])
        return
    with pytest.raises(UserError, match=message):
        check_run(Config.of({**values, "model": model}))


def test_an_environment_is_a_prompt_without_variants() -> None:
    assert [prompt.text for prompt in load_prompts("gym:CartPole-v1").prompts] == ["CartPole-v1"]


def test_a_flow_chooses_by_the_largest_of_its_numbers() -> None:
    """Any policy with as many numbers as there are choices acts in an environment of choices."""
    pytest.importorskip("gymnasium")
    config = config_for("gym:CartPole-v1", kind="flow")
    policy = ControlPolicy(config, untrained(config), None, None, torch.device("cpu"))
    draw = drawn(4)
    sampler = EpisodeSampler(sampler=FlowSampler(steps=2, guidance=1.0), environment="gym:CartPole-v1", decisions=80)
    final = sampler(policy, policy.condition(draw.prompts), draw).final
    assert bool((final[:, 0] == final[:, 1]).all()) and float(final[:, 0].min()) > 5


def test_no_seeds_draw_the_likeliest() -> None:
    logp = torch.tensor([[[0.1, 0.7, 0.2]]]).log()
    assert draw_choices(logp, None, 0).tolist() == [[[0, 1, 0]]]


def test_an_untrained_policy_is_written_by_a_command(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from flowrl.models.control.untrained import main

    pytest.importorskip("gymnasium")
    words = [
        "untrained",
        "gym:Pendulum-v1",
        "--kind",
        "flow",
        "--chunk",
        "3",
        "--seed",
        "2",
        "--out",
        str(tmp_path / "p"),
    ]
    monkeypatch.setattr("sys.argv", words)
    main()
    assert "flow, 3 numbers observed, 1 of an action" in capsys.readouterr().out
    policy = load_control(tmp_path / "p")
    assert (policy.config.kind, policy.config.chunk, policy.config.width) == ("flow", 3, 64)
    wanted = untrained(policy.config, 2).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in policy.network.state_dict().items())
    save_control(policy.config, policy.network, tmp_path / "q")
    assert read_config(tmp_path / "q") == policy.config


@pytest.mark.slow
def test_a_poor_clone_learns_to_balance(tmp_path: Path) -> None:
    """T16 in small: InvertedPendulum from 10 episodes of a weak controller, DPPO as a user runs it, 24 thousand steps
    (937 to 992 of three seeds; 61 before)."""
    for package in ("mujoco", "imageio"):  # gymnasium imports both
        pytest.importorskip(package)
    from benchmarks.inverted_pendulum import FILE, deployed, write_base

    assert "10 episodes, " in write_base(tmp_path / "base")
    session = open_session(check_run(Config.load(FILE, [f"model.path={tmp_path / 'base'}", f"out={tmp_path}"])))
    before, steps = deployed(session), 0.0
    while steps < 24_000:
        steps += 16 * float(iterate(session, PhaseTimer())[0]["episode/decisions"])
    assert before < 200 and deployed(session) > before + 300

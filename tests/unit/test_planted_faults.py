"""Every self-check catches a fault that was planted for it, keeps quiet in the same run without it, and leaves a run
bit for bit what it was."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from flowrl.checks import CHECKS, Facts, Spoken, explain, find, judge, measure, verdicts
from flowrl.cli.doctor import doctor
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.parts.regularizers import KL
from flowrl.records.directory import RunDirectory
from flowrl.runtime.display import Display
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import Session
from flowrl.train import iterate, train
from flowrl.types import Batch, Likelihood, Table
from flowrl.update_checks import covered, due
from tests.training import config_of
from tests.unit.test_ranks_iterations import on
from tests.unit.test_rounds import SET, session_of

REWARDS = """
import torch

def bright(images, **columns): return images.mean(dim=(1, 2, 3))
def noisy(images, **columns): return images.mean(dim=(1, 2, 3)) + torch.rand(len(images))
def full(images, **columns): return (images.mean(dim=(1, 2, 3)) > -9).float()
def most(images, **columns): return (images.mean(dim=(1, 2, 3)) + 9).clamp(max=1.0)
def large(images, **columns): return 1e6 * images.mean(dim=(1, 2, 3))
def by_prompt(images, prompts, **columns): return torch.tensor([float(hash(p[1:]) % 7) for p in prompts])
def same(completions, **columns): return [1.0 for _ in completions]
def sums(completions, **columns): return [sum(map(int, text)) + len(text) / 10 for text in completions]
"""


def honest(where: Path, family: str = "diffusion", reward: str = "", **changes: Any) -> Session:
    """A toy run that penalises the KL to its reference, without a fault."""
    session = session_of(["open"] * SET, where, family, 1)
    (where / "rewards.py").write_text(REWARDS)
    name = reward or {"diffusion": "bright", "causal": "sums"}[family]
    values: dict[str, Any] = {
        "rewards": [f"{where / 'rewards.py'}:{name}"],
        "train": {"iterations": 5, "ema": None, "updates": 2},
        "optimizer": {"lr": 0.01},
        **changes,
    }
    if family == "diffusion":
        values.setdefault("algorithm", {"use": "flow_grpo", "kl": 0.04, "sampler": {"steps": 4}})
    else:
        values.setdefault("algorithm", {"use": "grpo", "kl": 0.04, "length": 3})
    again = session_of(["open"] * SET, where, family, 1, **values)
    session.rewards.close()
    return again


def checked(session: Session, iterations: int = 2) -> dict[str, bool]:
    """Whether each check that was measured in these iterations was healthy in all of them."""
    healthy: dict[str, bool] = {}
    for _ in range(iterations):
        metrics, batch, _ = iterate(session, PhaseTimer())
        metrics |= measure(session, batch, PhaseTimer())
        for verdict in judge(session, metrics):
            healthy[verdict.check.name] = verdict.healthy and healthy.get(verdict.check.name, True)
    return healthy


def ill(session: Session, iterations: int = 2) -> set[str]:
    return {name for name, healthy in checked(session, iterations).items() if not healthy}


FAMILIES = ("diffusion", "causal")
OF_CONTROL = {"action_spread", "drift"}  # `tests/unit/test_control_iterations.py`
OF_IMAGES, OF_TEXTS = {"velocity_ratio", "step_coverage"}, {"sampler_mean", "sampler_max", "sampler_k1", "sampler_k3"}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_honest_run_is_healthy_in_every_check(family: str, tmp_path: Path) -> None:
    found = checked(honest(tmp_path, family))
    assert all(found.values()), found
    names = {check.name for check in CHECKS}
    assert found.keys() == names - OF_CONTROL - {"diffusion": OF_TEXTS, "causal": OF_IMAGES}[family]


def waves(like: Tensor) -> Tensor:
    return torch.arange(like.numel()).float().sin().view(like.shape)


def adapters_on_nothing(session: Session) -> None:
    idle = [nn.Parameter(torch.ones(2)) for _ in range(9)]
    session.optimizer = torch.optim.AdamW([*session.policy.parameters(), *idle], lr=0.01)


def dropout(session: Session) -> None:
    policy: Any = session.policy
    policy.network = nn.Sequential(policy.network, nn.Dropout(0.5))
    with torch.no_grad():
        policy.last.bias += 1.0


def wrong_reference(session: Session) -> None:
    with session.policy.using("reference"), torch.no_grad():
        for parameter in session.policy.parameters():
            parameter += 0.3 * waves(parameter)


def burnt(session: Session) -> None:
    with torch.no_grad():
        session.policy.last.bias += 5.0


@dataclass(frozen=True)
class OneStep:
    """A loss weight that trains one step alone."""

    def __call__(self, table: Table) -> Tensor:
        kept = torch.zeros_like(table.loss_weight)
        kept[:, 0] = 1.0
        return kept


@dataclass(frozen=True)
class Detached(KL):
    """A penalty that is reported and pulls at nothing."""

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return super().__call__(likelihood, batch).detach() + 0.0 * likelihood.logp


def with_parts(**parts: Any) -> Callable[[Session], None]:
    def plant(session: Session) -> None:
        session.algorithm = replace(session.algorithm, **parts)

    return plant


def decoding(answer: Callable[[Any], Any]) -> Callable[[Session], None]:
    def plant(session: Session) -> None:
        policy: Any = session.policy
        decode = policy.decode
        policy.decode = lambda final: answer(decode(final))

    return plant


def rate(value: float) -> Callable[[Session], None]:
    def plant(session: Session) -> None:
        object.__setattr__(session.config.optimizer, "lr", value)

    return plant


def stale_weights(session: Session) -> None:
    """The sampler goes on with weights of before; as an engine that was not sent the new ones."""
    policy: Any = session.policy
    policy.update_ema("stale", 0.0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += waves(parameter)
    ask = session.sample_and_decode
    session.sample_and_decode = lambda draw, sampler, weights, *rest: ask(draw, sampler, "stale", *rest)


PLANTED: dict[str, tuple[str, str, Callable[[Session], None] | None, set[str]]] = {
    "LoRA on nothing": ("diffusion", "", adapters_on_nothing, {"gradient_reach"}),
    "dropout": ("diffusion", "", dropout, {"replay_deviation", "outside_clip", "start_distance"}),
    "wrong reference": ("diffusion", "", wrong_reference, {"start_distance"}),
    "wrong reference of texts": ("causal", "", wrong_reference, {"start_distance"}),
    "velocities that grew": ("diffusion", "", burnt, {"velocity_ratio"}),
    "one sigma per update": ("diffusion", "", with_parts(loss_weight=OneStep()), {"step_coverage"}),
    "detached penalty": ("diffusion", "", with_parts(regularizers=(Detached(),)), {"attached_penalties"}),
    "detached penalty of texts": ("causal", "", with_parts(regularizers=(Detached(),)), {"attached_penalties"}),
    "penalty without measure": ("diffusion", "", with_parts(regularizers=(KL(1e7),)), {"objective_share"}),
    "noisy decoder": ("diffusion", "", decoding(lambda x: x + 0.1 * torch.rand(x.shape)), {"decode_repeat"}),
    "decoder that forgets": ("causal", "", decoding(lambda x: [f"{random.randrange(9999)}" for _ in x]),
                             {"decode_repeat"}),
    "noisy reward": ("diffusion", "noisy", None, {"reward_repeat"}),
    "saturated reward": ("diffusion", "full", None, {"reward_saturation", "reward_spread", "flat_groups"}),
    "reward clipped at its end": ("diffusion", "most", None, {"reward_saturation"}),
    "reward of a large scale": ("diffusion", "large", None, {"reward_spread"}),
    "reward of the prompt alone": ("diffusion", "by_prompt", None, {"flat_groups"}),
    "too large a step": ("diffusion", "", rate(30.0), {"update_to_weight"}),
    "a step lost in rounding": ("diffusion", "", rate(1e-13), {"update_to_weight"}),
    "engine with stale weights": ("causal", "", stale_weights,
                                  {"sampler_mean", "sampler_max", "sampler_k1", "sampler_k3"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_caught(fault: str, tmp_path: Path) -> None:
    family, reward, plant, caught = PLANTED[fault]
    session = honest(tmp_path, family, reward)
    if plant is not None:
        plant(session)
    assert caught <= ill(session)


def test_flat_groups_alone_are_said_of_flat_groups(tmp_path: Path) -> None:
    """No sample has a gradient, which is no fault of what is trained."""
    assert ill(honest(tmp_path, "causal", "same")) == {"flat_groups", "reward_saturation", "reward_spread"}
    assert "gradient_reach" not in checked(honest(tmp_path, reward="full", algorithm={
        "use": "flow_grpo", "kl": 0.0, "sampler": {"steps": 4}}))  # fmt: skip


def test_nothing_to_train_is_caught(tmp_path: Path) -> None:
    session = honest(tmp_path)
    _, batch, _ = iterate(session, PhaseTimer())
    for parameter in session.policy.parameters():
        parameter.requires_grad_(False)
    found = measure(session, batch, PhaseTimer())
    assert {v.check.name for v in verdicts(found, Facts()) if not v.healthy} == {"trainable"}


def test_every_check_has_a_planted_fault() -> None:
    caught = set().union(*(names for *_, names in PLANTED.values())) | {"trainable"} | OF_CONTROL
    assert caught == {check.name for check in CHECKS}


def weights(session: Session) -> Tensor:
    return torch.cat([value.flatten().double() for _, value in sorted(session.policy.weights.state().items())])


def generators() -> tuple[Any, ...]:
    return random.getstate(), repr(np.random.get_state(legacy=False)), torch.get_rng_state().tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_is_bit_for_bit_the_same_with_and_without(family: str, tmp_path: Path) -> None:
    ends = []
    for every in (0, 1):
        session = honest(tmp_path, family, monitor={"samples": 0, "checks": every})
        told = []
        for _ in range(3):
            states = generators()
            metrics, batch, _ = iterate(session, PhaseTimer())
            metrics |= measure(session, batch, PhaseTimer())
            assert states == generators()
            assert any(key.startswith("check/") for key in metrics) == bool(every)
            told.append({k: v for k, v in metrics.items() if not k.startswith("check/") and k != "reward/seconds"})
        ends.append((told, weights(session), vars(session.progress)))
    assert ends[0][0] == ends[1][0] and torch.equal(ends[0][1], ends[1][1]) and ends[0][2] == ends[1][2]


@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_find_what_one_finds(family: str, tmp_path: Path) -> None:
    def both(session: Session) -> list[dict[str, float]]:
        told = []
        for _ in range(2):
            metrics, batch, _ = iterate(session, PhaseTimer())
            metrics |= measure(session, batch, PhaseTimer())
            told.append({k: v for k, v in metrics.items() if k.startswith("check/")})
        return told

    wanted = both(honest(tmp_path, family))
    found = on([honest(tmp_path, family) for _ in range(2)], both)
    assert repr(found[0]) == repr(found[1])
    for step, expected in zip(found[0], wanted, strict=True):
        assert step == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_verdicts_are_written_and_forgotten_with_their_steps(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (1, 2):
        run.log({"step": step}, checks=[v.row(step) for v in verdicts({"check/trainable": 5.0}, Facts())])
    run.rewind(1)
    (line,) = run.checks_path.read_text().splitlines()
    assert json.loads(line) == {"step": 1, "check": "trainable", "metric": "check/trainable", "value": 5.0, "low": 1,
                                "high": None, "healthy": True}  # fmt: skip


def test_the_doctor_explains(capsys: pytest.CaptureFixture[str]) -> None:
    doctor(explain=True)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [check.name for check in CHECKS]
    doctor(Path("update_to_weight"), explain=True)
    assert "optimizer.lr" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_says_and_writes_what_it_found(tmp_path: Path) -> None:
    values = config_of("flow_grpo", "shapes", train__iterations=2, train__ema=None, eval__weights="live",
                       optimizer__lr=3.0, algorithm__sampler={"steps": 4}, out=str(tmp_path / "run"))  # fmt: skip
    said = io.StringIO()
    train(Config.of(values), display=Display("tiny", 2, console=Console(file=said, width=10_000)))
    assert " self-checks healthy" in said.getvalue() and "self-check update_to_weight is" in said.getvalue()
    lines = [json.loads(line) for line in (tmp_path / "run/checks.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {1, 2} and not all(line["healthy"] for line in lines)


def test_when_it_is_looked() -> None:
    assert [i for i in range(16) if due(4, i)] == [0, 1, 3, 7, 9, 11, 15] and not any(due(0, i) for i in range(9))


def test_a_time_is_missed_only_where_chance_cannot() -> None:
    """Of four samples of two groups with three steps each; the second batch trains two of them."""
    times, every = torch.tensor([[1.0, 0.6, 0.3]]).expand(4, 3), torch.ones(4, 3).bool()
    group, two = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 3])
    assert covered(times, every, group, two, every[:2]) == 1
    assert covered(times, every, group, two, torch.tensor([[True, False, True]] * 2)) == pytest.approx(2 / 3)
    drawn = torch.tensor([[1.0, 0.6], [1.0, 0.3], [1.0, 0.2], [1.0, 0.1]])  # only 1.0 is in every group
    assert covered(drawn, every[:, :2], group, two, torch.tensor([[True, False]] * 2)) == 1
    assert covered(drawn, every[:, :2], group, two, torch.tensor([[False, True]] * 2)) == 0
    assert covered(drawn, every[:, :2], group, two, torch.zeros(2, 2).bool()) is None


def test_what_is_outside_is_said_once_and_healthy_ones_are_counted() -> None:
    spoken = Spoken()
    metrics = {"check/trainable": 5.0, "check/update_to_weight": 3.0, "ratio/first_outside_clip": 0.5}
    first = spoken.notes(verdicts(metrics, Facts()))
    assert first[0] == "1 self-check healthy" and len(first) == 2  # what ratio_check says is not said twice
    assert first[1].startswith("self-check update_to_weight is 3 (healthy: 1e-09 to 0.3): one step replaces")
    assert first[1].endswith("(flowrl doctor --explain update_to_weight)")
    assert spoken.notes(verdicts(metrics, Facts())) == []
    assert spoken.notes(verdicts(metrics | {"check/update_to_weight": 0.01}, Facts())) == []
    assert len(spoken.notes(verdicts(metrics, Facts()))) == 1
    assert [v.row(7)["high"] for v in verdicts({"check/trainable": 5.0}, Facts())] == [None]


def test_every_check_has_a_page_and_a_name_of_its_own() -> None:
    assert len({check.name for check in CHECKS}) == len({check.metric for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert find(check.name) is find(check.metric) is check
        page = explain(check)
        assert check.metric in page and check.fix in page and "healthy" in page
    assert "0 to 0.001; 0 to 0.1 in half precision" in explain(find("replay_deviation"))
    with pytest.raises(UserError, match="did you mean 'trainable'"):
        find("trainble")


def test_stale_samples_are_not_expected_to_agree() -> None:
    metrics = {"ratio/first_max_deviation": 0.5}
    assert not verdicts(metrics, Facts())[0].healthy and verdicts(metrics, Facts(stale=True)) == []

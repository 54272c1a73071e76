"""Whole iterations on several processes, as threads on toy worlds: rounds, idle processes, rewards, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.heldout import Evaluated, evaluate_heldout
from flowrl.monitor import check_heldout
from flowrl.rounds import ScoredRollout
from flowrl.runtime.timing import PhaseTimer
from flowrl.score import gathered
from flowrl.session import Session
from flowrl.train import iterate
from flowrl.types import Samples
from tests.threads import ThreadRanks, in_threads
from tests.unit.test_rounds import GROUP, SET, WANTED, alternating, session_of

Answer = TypeVar("Answer")
REWARDS = """
import torch

CALLS = []

def texts(completions, prompts, kind, **columns):
    CALLS.append(len(prompts))
    return [judge(k, sum(map(int, text)) + len(text) / 10) for k, text in zip(kind, completions)]

def best_of_group(completions, prompts, group, **columns):
    values = torch.tensor([float(sum(map(int, text))) for text in completions])
    group = torch.as_tensor(group)
    return torch.stack([value - values[group == number].mean() for value, number in zip(values, group)])

def judge(kind, value):
    if kind == "fatal":
        raise RuntimeError("this reward does not like the prompt")
    return {"flat": 1.0, "open": value, "broken": float("nan")}[kind]
"""


VARYING = ("reward/seconds", "reward/texts/failures")
"""Which depend on the time, and on how many samples a call holds."""


def on(sessions: list[Session], work: Callable[[Session], Answer]) -> list[Answer]:
    """``work`` with the session of each rank."""

    def run(ranks: ThreadRanks) -> Answer:
        session = sessions[ranks.rank]
        session.ranks = ranks
        return work(session)

    return in_threads(len(sessions), run)


def weights(session: Session) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in session.policy.parameters()])


def few(session: Session, iterations: int = 3) -> tuple[list[dict[str, float]], Tensor, ScoredRollout]:
    """Metrics of every iteration, the weights after them, and what the last one learned from."""
    every, made = [], None
    for _ in range(iterations):
        metrics, made, _ = iterate(session, PhaseTimer())
        every.append({key: value for key, value in metrics.items() if key not in VARYING})
    assert made is not None
    return every, weights(session), made


def compare(size: int, make: Callable[[], Session], iterations: int = 3) -> list[ScoredRollout]:
    """Assert that so many processes end where one does, all of them alike; what each learned from last."""
    wanted, theta, alone = few(make(), iterations)
    answers = on([make() for _ in range(size)], lambda session: few(session, iterations))
    for metrics, found, made in answers:
        assert found.tolist() == pytest.approx(theta.tolist(), rel=1e-4, abs=1e-6)
        for step, expected in zip(metrics, wanted, strict=True):
            assert step == pytest.approx(expected, rel=1e-4, abs=1e-6, nan_ok=True)
        torch.testing.assert_close(made.scores.rewards, alone.scores.rewards, rtol=1e-4, atol=1e-4, equal_nan=True)
        assert torch.equal(made.seeds, alone.seeds) and torch.equal(made.scores.group, alone.scores.group)
        assert [prompt.id for prompt in made.prompts] == [prompt.id for prompt in alone.prompts]
        held = made.share.here >= 0
        assert torch.equal(made.rollout.seeds[held], made.seeds[made.share.here[held]])
        assert torch.equal(made.rollout.group[held], made.scores.group[made.share.here[held]])
    for metrics, found, _ in answers[1:]:
        assert repr(metrics) == repr(answers[0][0]) and torch.equal(found, answers[0][1])
    made = [made for _, _, made in answers]
    assert sorted(n for each in made for n in each.share.here.tolist() if n >= 0) == list(range(len(alone.seeds)))
    return made


@pytest.mark.parametrize("family", ["causal", "diffusion"])
@pytest.mark.parametrize("size", [2, 3])
def test_iterations_are_those_of_one_process(size: int, family: str, tmp_path: Path) -> None:
    """Two groups on one rank, one on another, where there are four groups and three ranks."""
    made = compare(size, lambda: session_of(["open"] * SET, tmp_path, family, rounds=1))
    held = [len(each.samples) // GROUP for each in made]
    assert held == {2: [2, 2], 3: [2, 1, 1]}[size]


@pytest.mark.parametrize("family", ["causal", "diffusion"])
@pytest.mark.parametrize(
    ("size", "kinds"), [(2, alternating(3)), (3, alternating(4)), (4, ["flat", "open"] * (SET // 2))]
)
def test_groups_that_are_replaced_are_those_of_one_process(
    size: int, kinds: list[str], family: str, tmp_path: Path
) -> None:
    compare(size, lambda: session_of(kinds, tmp_path, family))


def test_a_process_may_keep_no_group_at_all(tmp_path: Path) -> None:
    """Where all that stays is elsewhere, a spare sample of no consequence stands in its place."""
    made = compare(4, lambda: session_of(alternating(SET), tmp_path, rounds=2), iterations=1)
    assert any(each.share.here.tolist() == [-1] for each in made)


def test_no_group_that_takes_part_is_no_error(tmp_path: Path) -> None:
    made = compare(2, lambda: session_of(["flat"] * SET, tmp_path, rounds=2), iterations=1)
    assert all(len(each.samples) == WANTED * GROUP // 2 for each in made)


def spec(tmp_path: Path, function: str, **options: Any) -> list[dict[str, Any]]:
    (tmp_path / "own.py").write_text(REWARDS)
    return [{"use": f"{tmp_path / 'own.py'}:{function}", **options}]


def test_fewer_groups_than_processes_are_split_where_no_reward_compares(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"data": {"prompts": 2, "group": GROUP, "test": None}}
    made = compare(4, lambda: session_of(["open"] * SET, tmp_path, rounds=1, **changes))
    assert [each.share.here.tolist() for each in made] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_a_reward_that_compares_sees_whole_groups_and_a_process_may_be_idle(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "data": {"prompts": 2, "group": GROUP, "test": None},
        "rewards": spec(tmp_path, "best_of_group"),
    }
    made = compare(3, lambda: session_of(["open"] * SET, tmp_path, rounds=1, **changes))
    assert [each.share.here.tolist() for each in made] == [list(range(6)), list(range(6, 12)), [-1]]


def test_idle_processes_ask_no_reward(tmp_path: Path) -> None:
    """One group of two samples on three processes: two calls of one sample each."""
    log = tmp_path / "asked"
    (tmp_path / "noting.py").write_text(
        f"def scores(completions, **columns):\n    open({str(log)!r}, 'a').write(str(len(completions)))\n"
        "    return [float(len(text)) for text in completions]\n"
    )
    rewards = [{"use": f"{tmp_path / 'noting.py'}:scores"}]
    changes: dict[str, Any] = {"data": {"prompts": 1, "group": 2, "test": None}, "rewards": rewards}
    sessions = [session_of(["open"] * SET, tmp_path, rounds=1, **changes) for _ in range(3)]
    made = on(sessions, lambda session: iterate(session, PhaseTimer())[0]["reward/mean"])
    assert made[0] == made[1] == made[2] and log.read_text() == "11"


@pytest.mark.parametrize("function", ["texts", "best_of_group"])
@pytest.mark.parametrize("size", [2, 4])
def test_an_evaluation_is_that_of_one_process(size: int, function: str, tmp_path: Path) -> None:
    """Three prompts of two samples: on four processes single samples, or, where a reward compares, an idle process."""
    changes: dict[str, Any] = {
        "rewards": spec(tmp_path, function),
        "eval": {"every": 0, "weights": "live", "prompts": 3, "samples": 2},
        "monitor": {"samples": 6},
    }

    def make() -> Session:
        session = session_of(["open"] * SET, tmp_path, rounds=1, **changes)
        session.heldout = session.prompts
        return session

    def evaluate(session: Session) -> tuple[Evaluated, dict[str, float], Samples]:
        found = evaluate_heldout(session, PhaseTimer())
        shown = gathered(found.samples, found.share, torch.tensor([5, 0, 2]), found.prompts)
        return found, check_heldout(session, found.samples, found.scores, found.share), shown

    alone, watched, shown = evaluate(make())
    answers = on([make() for _ in range(size)], evaluate)
    for found, seen, pictures in answers:
        assert found.metrics == alone.metrics and torch.equal(found.scores.rewards, alone.scores.rewards)
        assert seen == pytest.approx(watched, nan_ok=True) and seen.keys() == watched.keys()
        assert pictures.completions == shown.completions and pictures.prompts == shown.prompts
    held = [len(found.samples) for found, _, _ in answers]
    assert held == ({2: [4, 2], 4: [2, 2, 2, 0]} if function == "best_of_group" else {2: [4, 2], 4: [2, 2, 1, 1]})[size]


@pytest.mark.parametrize("action", ["raise", "drop_group"])
def test_a_reward_that_fails_on_one_process(action: str, tmp_path: Path) -> None:
    """The second prompt of the draw is on the first of two ranks: ended by all, or left out by all."""
    probe = session_of(["open"] * SET, tmp_path, rounds=1)
    bad = probe.prompts.draw(0, WANTED, 0, 0)[1].id
    kinds = ["fatal" if number == bad else "open" for number in range(SET)]

    def make() -> Session:
        return session_of(kinds, tmp_path, rounds=1, rewards=spec(tmp_path, "texts", on_error=action))

    if action == "drop_group":
        made = compare(2, make, iterations=1)
        assert int((~made[0].scores.valid).sum()) == GROUP
        return

    def said(session: Session) -> str:
        with pytest.raises(Exception, match="does not like the prompt") as caught:
            iterate(session, PhaseTimer())
        return type(caught.value).__name__

    names = on([make(), make()], said)
    assert names[0] == "RewardError" and names[1] != "RewardError"


def test_a_sample_that_could_not_be_scored_stops_all_with_one_sentence(tmp_path: Path) -> None:
    """What is decided from all scores is decided alike everywhere, with the same words."""
    probe = session_of(["open"] * SET, tmp_path, rounds=1)
    bad = probe.prompts.draw(0, WANTED, 0, 0)[3].id
    kinds = ["broken" if number == bad else "open" for number in range(SET)]

    def make() -> Session:
        return session_of(kinds, tmp_path, rounds=1, rewards=spec(tmp_path, "texts"))

    def said(session: Session) -> str:
        with pytest.raises(UserError, match="could not score 6 of 24 samples") as caught:
            iterate(session, PhaseTimer())
        return str(caught.value)

    assert len(set(on([make(), make(), make()], said))) == 1

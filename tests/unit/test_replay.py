"""Learning again from samples of earlier iterations: which come back, as what, and what a run keeps of them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl.composition import build
from flowrl.config import Config
from flowrl.data import PromptSet
from flowrl.errors import UserError
from flowrl.models.tiny_flow import TinyFlow
from flowrl.models.tiny_text import TinyText
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.comparisons import AllSources
from flowrl.records import checkpoint, replays
from flowrl.records.replays import Ring, names_in
from flowrl.replay import keep_samples, with_old_samples
from flowrl.rounds import sample_and_score
from flowrl.runtime.timing import PhaseTimer
from flowrl.samplers.replayed import OldGroups, SamePrompt
from flowrl.score import load_rewards
from flowrl.session import Session
from flowrl.startup.preflight import check_run
from flowrl.step import improve
from flowrl.train import iterate, train
from flowrl.types import REPLAY, PastSamples, Prompt, Scores, TokenTrace
from tests.contract.toys import MODES
from tests.threads import in_threads

GROUP, SET = 4, 6
PATH = {"views": {"use": "trajectory", "limit": 3}, "per": "cell", "tempered": True, "trust_rollout": True}
KINDS: dict[str, dict[str, Any]] = {
    "causal": {"use": "repo", "length": 3, "samples": 3, "kept": 6, "least": 4},
    "masked": {
        "use": "just_grpo",
        "length": 3,
        "estimator": {"use": "masked_views", **PATH},
        "sampler": {"use": "masked_sampler", "length": 3, "steps": 3, "block": 3, "keep_scores": True},
        "replay": {"use": "old_groups", "groups": 2},
        "regularizers": [],
    },
    "diffusion": {
        "use": "flow_grpo",
        "kl": 0.0,
        "sampler": {"steps": 4},
        "replay": {"use": "same_prompt", "samples": 2, "kept": 4, "least": 4, "choose": "random", "alone": False},
    },
}
REWARD = """
import torch

CALLS = []

def texts(completions, prompts, **columns):
    CALLS.append(len(prompts))
    return [float(sum(map(int, text))) + len(text) / 10 for text in completions]

def images(images, prompts, **columns):
    CALLS.append(len(prompts))
    return images.mean(dim=(1, 2, 3))
"""


def session_of(kind: str, where: Path, **changes: Any) -> Session:
    """A toy run of the kind, whose files are in ``where``."""
    (where / "mine.py").write_text(REWARD)
    values = {
        "name": "toy",
        "out": str(where / "run"),
        "model": {"path": "shapes"},
        "algorithm": KINDS[kind],
        "data": {"prompts": 3, "group": GROUP, "test": None},
        "rewards": [f"{where / 'mine.py'}:{'images' if kind == 'diffusion' else 'texts'}"],
        "train": {"iterations": 9, "updates": 2, "ema": None},
        "eval": {"every": 0, "weights": "live"},
        "monitor": {"samples": 0},
        **changes,
    }
    config, names = Config.of(values), [f"p{i}" for i in range(SET)]
    policy: Any = (
        TinyFlow(MODES, prompts=names)
        if kind == "diffusion"
        else TinyText(3, 3, names, causal=kind == "causal", end=0, scale=0.5)
    )
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.02)
    algorithm, prompts = build(config.algorithm), PromptSet(tuple(Prompt(name, i) for i, name in enumerate(names)))
    rewards = load_rewards(config.rewards)
    return Session(config, policy, algorithm, prompts, None, rewards, optimizer, ring=Ring(config.directory))


def weights(session: Session) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in session.policy.parameters()])


def run(session: Session, iterations: int) -> list[dict[str, float]]:
    metrics = [iterate(session, PhaseTimer())[0] for _ in range(iterations)]
    return [{key: value for key, value in line.items() if key != "reward/seconds"} for line in metrics]


def past(*each: tuple[int, int, int, float]) -> PastSamples:
    """Of (iteration, group, prompt, reward)."""
    columns = [torch.tensor(column) for column in zip(*each, strict=True)]
    return PastSamples(columns[0], columns[1], columns[2], columns[3].double())


def present(*prompts: int) -> Scores:
    """Scores of a group of two for every prompt."""
    group = torch.arange(len(prompts)).repeat_interleave(2)
    ids = torch.tensor(prompts).repeat_interleave(2)
    return Scores(torch.zeros(len(ids), 1), torch.ones(1), ("r",), group, ids, torch.ones(len(ids), dtype=torch.bool))


# ------------------------------------------------------------------------------------------------ which come back
RECORD = past(*[(i, 0, 7, reward) for i, reward in enumerate((0.9, 0.1, 0.5, 0.5, 0.2))], (5, 0, 3, 1.0))


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"kept": 5}, [0, 2]),  # of equals the older
        ({"kept": 4}, [2, 3]),  # the best of all is too old
        ({"kept": 5, "choose": "latest"}, [3, 4]),
        ({"kept": 7, "least": 6}, []),
    ],
)
def test_samples_of_the_same_prompt(options: dict[str, Any], rows: list[int]) -> None:
    part = SamePrompt(**{"samples": 2, "least": 3, **options})
    found, group = part(RECORD, present(7, 3, 8, 7), 0)
    assert found.tolist() == rows * 2  # prompt 3 has one alone, and 8 none
    assert group.tolist() == [number for number in range(2) for _ in rows]
    joined = replace(part, alone=False)(RECORD, present(7, 3, 8, 7), 0)[1]
    assert joined.tolist() == [number for number in (0, 3) for _ in rows]


def test_random_samples_follow_from_the_seed_and_are_all_possible() -> None:
    part = SamePrompt(samples=2, kept=5, least=2, choose="random")
    drawn = {tuple(part(RECORD, present(7), seed)[0].tolist()) for seed in range(60)}
    assert len(drawn) == 10 and all(a < b for a, b in drawn)
    assert torch.equal(part(RECORD, present(7), 3)[0], part(RECORD, present(7), 3)[0])


def test_whole_groups_of_the_latest_iterations() -> None:
    known = past(*[(i, g, 10 * i + g, 0.0) for i in range(3) for g in (0, 1) for _ in range(2)])
    seen = set()
    for seed in range(40):
        rows, group = OldGroups(groups=2, iterations=2)(known, present(0), seed)
        assert group.tolist() == [0, 0, 1, 1]
        ids = known.prompt_ids[rows].tolist()
        assert ids[0] == ids[1] < ids[2] == ids[3]
        seen |= set(ids)
    assert seen == {10, 11, 20, 21}  # of the last two
    assert not len(OldGroups()(PastSamples(*[torch.zeros(0)] * 4), present(0), 0)[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": 0}, "samples=0 puts nothing back"),
        ({"kept": 4}, "kept=4 of a prompt are fewer than samples=8 or least=16"),
        ({"capacity": 3}, "capacity=3 samples are kept, and 16 are asked for"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SamePrompt(**options)


# ------------------------------------------------------------------------------------------- as what they come back
@pytest.mark.parametrize("kind", KINDS)
def test_old_samples_are_what_they_were_with_the_likelihood_of_then(kind: str, tmp_path: Path) -> None:
    session = session_of(kind, tmp_path)
    made: dict[int, Any] = {}
    for iteration in range(4):
        batch = sample_and_score(session, PhaseTimer())
        learned = with_old_samples(session, batch)
        advantage = learned.advantage(session.algorithm, session.memory)
        count, old = len(batch.scores.group), learned.rollout.source == REPLAY
        assert bool(old.any()) == (iteration > (0 if kind == "masked" else 1))
        estimator = session.algorithm.estimator
        rows = estimator.probe(learned.rollout, session.policy, learned.rollout.seeds)
        known = estimator.recorded_logp(learned.rollout, rows)
        assert known is not None
        with torch.no_grad():
            live = estimator(session.policy, rows, learned.rollout.condition).logp
        counted = torch.ones_like(live, dtype=torch.bool) if rows.counted is None else rows.counted
        off = torch.where(counted, live - known.logp, 0.0).abs().amax(dim=1)
        assert float(off[~old].max()) < 1e-5
        for row in old.nonzero()[:, 0].tolist():
            seed = int(learned.rollout.seeds[row])
            then = made[seed]
            assert torch.equal(known.logp[row], then["logp"]) and torch.equal(learned.rollout.final[row], then["final"])
            assert float(learned.scores.total[row]) == then["reward"]
            assert int(learned.scores.prompt_ids[row]) == then["prompt"]
            assert float(off[row]) > 1e-4, "the policy has moved since"
        for row in range(count):
            facts = {"logp": known.logp[row], "final": batch.rollout.final[row]}
            facts |= {"reward": float(batch.scores.total[row]), "prompt": int(batch.scores.prompt_ids[row])}
            made[int(batch.rollout.seeds[row])] = facts
        settings = session.update_settings()
        improve(
            session.policy, session.optimizer, session.algorithm, learned.rollout, learned.scores, advantage, settings
        )
        session.advance(2, count, 0)
        keep_samples(session, batch, iteration)


def test_rewards_are_not_asked_again(tmp_path: Path) -> None:
    session = session_of("causal", tmp_path)
    lines = run(session, 4)
    assert [line["replay/samples"] for line in lines] == [0.0, 0.0, 9.0, 9.0] and lines[-1]["replay/age"] >= 1
    (mine,) = [
        module for module in sys.modules.values() if getattr(module, "__file__", "") == str(tmp_path / "mine.py")
    ]
    assert sum(mine.CALLS) == session.progress.samples == 4 * 3 * GROUP


def test_the_loss_is_that_of_repo(tmp_path: Path) -> None:
    """New and old completions are each normalised by themselves; both losses are means over tokens, then all rows."""
    session = session_of("causal", tmp_path, train={"iterations": 9, "ema": None})
    run(session, 3)
    batch = sample_and_score(session, PhaseTimer())
    learned = with_old_samples(session, batch)
    advantage = learned.advantage(session.algorithm, session.memory)
    rollout, trace = learned.rollout, learned.rollout.trace
    assert isinstance(trace, TokenTrace) and trace.logp is not None
    old = rollout.source == REPLAY
    wanted = torch.zeros(len(old), dtype=torch.float64)
    for key in learned.scores.group.unique():
        rows = learned.scores.group == key
        assert len(rollout.source[rows].unique()) == 1, "groups of their own"
        reward = learned.scores.total[rows]
        if float(reward.max()) > float(reward.min()):
            wanted[rows] = (reward - reward.mean()) / (reward.std(correction=1) + 1e-4)
    assert torch.allclose(advantage.double(), wanted, atol=1e-9) and bool((wanted[old] != 0).any())
    policy: Any = session.policy
    parameters = list(policy.parameters())
    live = policy.score(rollout.condition, trace.tokens, trace.mask, trace.tokens).logp
    ratio = (live.double() - trace.logp.double()).exp()
    each = -torch.minimum(ratio * wanted[:, None], ratio.clamp(0.8, 1.2) * wanted[:, None])
    loss = (torch.where(trace.mask, each, 0.0).sum(dim=1) / trace.mask.sum(dim=1)).mean()
    gradient = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    before = weights(session)
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    settings = replace(session.update_settings(), max_grad_norm=1e9)
    found = improve(policy, optimizer, session.algorithm, rollout, learned.scores, advantage, settings)
    step = before - weights(session)
    assert torch.allclose(step, torch.cat([g.flatten() for g in gradient]), atol=1e-6)
    assert found["ratio/first_max_deviation"] < 1e-5 < abs(found["replay/ratio"] - 1)


def test_in_the_group_of_their_prompt_they_move_no_baseline_unless_taken_in(tmp_path: Path) -> None:
    session = session_of("diffusion", tmp_path)
    run(session, 3)
    batch = sample_and_score(session, PhaseTimer())
    learned = with_old_samples(session, batch)
    count = len(batch.scores.group)
    plain = GroupCentred(clip=None)
    alone, among = plain(batch.scores, {}), plain(learned.scores, {})
    assert torch.equal(alone, among[:count]) and learned.scores.own.tolist()[count:] == [False] * 6
    mixed = AllSources(plain)(learned.scores, {})
    rows = learned.scores.group == 0
    reward = learned.scores.total[rows]
    assert int(rows.sum()) == GROUP + 2
    assert torch.allclose(mixed[rows], (reward - reward.mean()) / (reward.std() + 1e-8))


def test_learning_from_nothing_old_is_learning_without(tmp_path: Path) -> None:
    def ended(replay: bool) -> Tensor:
        (where := tmp_path / str(replay)).mkdir()
        session = session_of("causal", where)
        if not replay:
            session.algorithm = replace(session.algorithm, replay=None)
        run(session, 2)  # of six prompts, three an iteration: none is seen twice
        return weights(session)

    assert torch.equal(ended(True), ended(False))


# ------------------------------------------------------------------------------------------------ what a run keeps
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    def saved(session: Session) -> None:
        tensors, values = session.state()
        run_at = session.config.directory
        checkpoint.save(run_at / "checkpoints", session.progress.iteration, tensors, values, {}, {}, keep=1, best=None)

    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    straight = session_of(kind, tmp_path / "whole")
    wanted = run(straight, 6)
    first = session_of(kind, tmp_path / "cut")
    run(first, 3)
    saved(first)
    run(first, 2)  # which the process that dies has not saved
    (first.config.directory / "replays" / ".tmp-iteration_000005.safetensors").write_bytes(b"half")
    held = checkpoint.load(first.config.directory / "checkpoints" / "step_000003")
    text = json.dumps(held.values["memory"])
    assert "iteration_000002.safetensors" in text and len(text) < 400, "names alone"
    again = session_of(kind, tmp_path / "cut")
    again.restore(held.tensors, held.values)
    assert run(again, 3) == wanted[3:]
    assert torch.equal(weights(again), weights(straight))
    assert not list((first.config.directory / "replays").glob(".tmp-*"))


def test_a_ring_is_bounded_and_keeps_what_a_checkpoint_names(tmp_path: Path) -> None:
    session = session_of("causal", tmp_path, algorithm={**KINDS["causal"], "replay": {"capacity": 2 * 3 * GROUP}})
    folder = session.config.directory / "replays"
    run(session, 3)
    assert (
        names_in(session.memory) == sorted(path.name for path in folder.iterdir()) and len(list(folder.iterdir())) == 2
    )
    tensors, values = session.state()
    values = json.loads(json.dumps(values))
    checkpoint.save(session.config.directory / "checkpoints", 3, tensors, values, {}, {})
    run(session, 3)
    kept = {path.name for path in folder.iterdir()}
    assert kept == {*names_in(values["memory"]), *names_in(session.memory)} and len(kept) == 4
    again = session_of("causal", tmp_path, algorithm={**KINDS["causal"], "replay": {"capacity": 2 * 3 * GROUP}})
    found = checkpoint.load(session.config.directory / "checkpoints" / "step_000003")
    again.restore(found.tensors, found.values)
    run(again, 3)
    assert torch.equal(weights(again), weights(session))


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    session = session_of("causal", tmp_path)
    run(session, 2)
    name = names_in(session.memory)[0]
    file, other = session.config.directory / "replays" / name, tmp_path / "other"
    replays.carry(session.config.directory, other, session.memory)
    assert (other / "replays" / name).read_bytes() == file.read_bytes()
    file.write_bytes(b"no tensors")
    session.ring = Ring(session.config.directory)
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        run(session, 1)
    file.unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        replays.carry(session.config.directory, other, session.memory)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_does(kind: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    alone = session_of(kind, tmp_path / "one")
    wanted = run(alone, 4)
    sessions = [session_of(kind, tmp_path / "two") for _ in range(2)]

    def work(ranks: Any) -> tuple[list[dict[str, float]], Tensor]:
        session = sessions[ranks.rank]
        session.ranks = ranks
        return run(session, 4), weights(session)

    (lines, theta), (_, other) = in_threads(2, work)
    assert torch.equal(theta, other) and torch.allclose(theta, weights(alone), atol=2e-5)
    assert [line["replay/samples"] for line in lines] == [line["replay/samples"] for line in wanted]
    assert lines[-1]["replay/ratio"] == pytest.approx(wanted[-1]["replay/ratio"], rel=1e-4)
    assert names_in(sessions[1].memory) == names_in(alone.memory)


# ---------------------------------------------------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        ({"use": "grpo", "replay": "same_prompt"}, "set algorithm.estimator.trust_rollout=true, or remove"),
        ({"use": "rloo", "replay": "old_groups"}, "nothing in this algorithm corrects"),
        ({"use": "repo", "sampler": {"greedy_first": True}}, "greedy_first"),
        ({"use": "repo", "replay": {"kept": 2}}, "kept=2 of a prompt"),
        ({"use": "repo", "replay": "same_promt"}, "same_promt"),
        ({"use": "repo", "token_advantage": ["truncated_importance"]}, "no token_advantage"),
    ],
)
def test_what_cannot_be_learned_from_again_is_refused(algorithm: dict[str, Any], said: str) -> None:
    values = {
        "name": "toy",
        "model": {"path": "countdown"},
        "algorithm": {"length": 14, **algorithm},
        "data": {"train": "countdown:train", "test": None, "prompts": 2, "group": 2},
        "rewards": ["countdown"],
        "train": {"iterations": 1},
        "eval": {"every": 0},
    }
    with pytest.raises(UserError, match=said):
        check_run(Config.of(values))


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def config(name: str) -> Config:
        return Config.of(
            {
                "name": name,
                "out": str(tmp_path / name),
                "model": {"path": "countdown", "lora": {"rank": 4, "alpha": 8}},
                "algorithm": {"use": "repo", "length": 14, "samples": 4, "kept": 8, "least": 4},
                "data": {"train": "countdown:train[:8]", "test": None, "prompts": 4, "group": 4},
                "rewards": ["countdown"],
                "train": {"iterations": 6, "threads": 1},
                "eval": {"every": 0},
                "checkpoint": {"every": 2},
                "monitor": {"samples": 0},
            }
        )

    train(config("whole"))
    train(config("cut"), until=4)
    train(config("cut"), resume="auto")
    ends = [checkpoint.load(tmp_path / name / "checkpoints" / "step_000006").tensors for name in ("whole", "cut")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    moved = config("moved")
    train(moved, resume=str(tmp_path / "cut" / "checkpoints" / "step_000004"))
    assert all(
        torch.equal(ends[0][key], value)
        for key, value in checkpoint.load(tmp_path / "moved" / "checkpoints" / "step_000006").tensors.items()
    )
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["replay/samples"] == 16

"""Dynamic sampling: how many rounds, of which prompts, and what is learned from them."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flowrl.cli import main
from flowrl.composition import build
from flowrl.config import Config
from flowrl.data import PromptSet
from flowrl.errors import UserError
from flowrl.math.groups import flat_groups
from flowrl.models.text.policy import TextPolicy
from flowrl.models.tiny_flow import TinyFlow
from flowrl.models.tiny_text import TinyText
from flowrl.parts.decision_record import DecisionRecord
from flowrl.rounds import ScoredRollout, missing_groups, recording, sample_and_score, token_facts
from flowrl.runtime.timing import PhaseTimer
from flowrl.score import load_rewards
from flowrl.session import Session
from flowrl.startup.workload import workload
from flowrl.step import UpdateSettings, improve
from flowrl.train import iterate, train
from flowrl.types import Draw, Likelihood, Prompt, Share, TokenTrace
from tests import pipelines
from tests.contract.toys import MODES, Recorder
from tests.launching import settled

WANTED, GROUP, SET = 4, 6, 24
REWARDS = """
import torch

def texts(completions, prompts, kind, **columns):
    return [judge(k, sum(map(int, text)) + len(text) / 10) for k, text in zip(kind, completions)]

def images(images, prompts, kind, **columns):
    return torch.tensor([judge(k, float(x)) for k, x in zip(kind, images.mean(dim=(1, 2, 3)))])

def judge(kind, value):
    return {"flat": 1.0, "open": value, "broken": float("nan")}[kind]
"""
FAMILIES = ("causal", "diffusion")


def session_of(kinds: list[str], where: Path, family: str = "causal", rounds: int = 10, **changes: Any) -> Session:
    """A toy run whose prompts' groups are known to be flat, open or not to be scored."""
    (where / "mine.py").write_text(REWARDS)
    function = "texts" if family == "causal" else "images"
    spec: dict[str, Any] = {"use": "replace_flat_groups", "rounds": rounds}
    algorithm: dict[str, Any] = {"use": "dapo", "length": 3, "selection": spec}
    if family == "diffusion":
        algorithm = {"use": "flow_grpo", "kl": 0.0, "selection": spec, "sampler": {"steps": 4}}
    values = {
        "name": "toy",
        "model": {"path": "shapes"},
        "algorithm": algorithm,
        "data": {"prompts": WANTED, "group": GROUP, "test": None},
        "rewards": [{"use": f"{where / 'mine.py'}:{function}", "on_error": "drop_group"}],
        "train": {"iterations": 5, "ema": None, "sample_batch": 10},
        "eval": {"every": 0, "weights": "live"},
        "monitor": {"samples": 0},
        **changes,
    }
    config = Config.of(values)
    names = [f"p{i}" for i in range(len(kinds))]
    prompts = PromptSet(tuple(Prompt(name, i, {"kind": kinds[i]}) for i, name in enumerate(names)))
    text = family == "causal"
    policy: Any = TinyText(3, 3, names, causal=True, end=0, scale=0.5) if text else TinyFlow(MODES, prompts=names)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.01)
    return Session(config, policy, build(config.algorithm), prompts, None, load_rewards(config.rewards), optimizer)


def alternating(flat: int) -> list[str]:
    """Every group but one in ``flat`` is flat."""
    return ["flat" if i % flat else "open" for i in range(SET)]


def ids(session: Session, number: int) -> list[int]:
    return [prompt.id for prompt in session.prompts.draw(session.progress.iteration, WANTED, 0, number)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("iteration", [0, 3])
def test_rounds_follow_until_enough_groups_are_not_flat(family: str, iteration: int, tmp_path: Path) -> None:
    session = session_of(kinds := alternating(3), tmp_path, family)
    session.progress.iteration = iteration
    drawn: list[int] = []
    rounds = 0
    while sum(kinds[i] == "open" for i in drawn) < WANTED:
        drawn += ids(session, rounds)
        rounds += 1
    made = sample_and_score(session, PhaseTimer())
    assert made.metrics["sampling/rounds"] == rounds > 1
    assert made.metrics["sampling/samples"] == len(made.drawn.group) == rounds * WANTED * GROUP
    assert made.metrics["sampling/groups"] == WANTED
    assert not missing_groups(session, made.metrics)
    assert made.drawn.prompt_ids[::GROUP].tolist() == drawn
    assert made.scores.prompt_ids[::GROUP].tolist() == [i for i in drawn if kinds[i] == "open"][:WANTED]  # surplus
    assert [prompt.id for prompt in made.samples.prompts] == made.scores.prompt_ids.tolist()
    assert made.rollout.group.tolist() == [g for g in range(WANTED) for _ in range(GROUP)]
    assert torch.equal(made.scores.group, made.rollout.group)
    assert len(set(made.rollout.seeds.tolist())) == WANTED * GROUP
    assert not flat_groups(made.scores.total, made.scores.group, made.scores.valid).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_update_is_that_of_the_same_groups_sampled_directly(family: str, tmp_path: Path) -> None:
    session = session_of(alternating(3), tmp_path, family)
    made = sample_and_score(session, PhaseTimer())
    assert made.metrics["sampling/rounds"] > 1
    draw = Draw.of(made.rollout.seeds, made.rollout.group, 0, 0, made.samples.prompts)
    with session.rewards.scoring(draw.group) as scoring:
        algorithm = session.algorithm
        direct, _ = session.sample_and_decode(draw, algorithm.sampler, "live", 7, PhaseTimer(), scoring)
        scores = scoring.finish()
    assert torch.equal(scores.total, made.scores.total)
    gradients = []
    for rollout, found in ((made.rollout, made.scores), (direct, scores)):
        recorder = Recorder(session.policy.parameters())
        advantage = algorithm.advantage(found, {})
        settings = UpdateSettings(updates=2, max_grad_norm=1e9)
        improve(session.policy, recorder, algorithm, rollout, found, advantage, settings)
        gradients.append(recorder.gradients)
    assert len(gradients[0]) == 2 and all(bool((g != 0).any()) for g in gradients[0])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_round_that_suffices_is_the_iteration_without_replacement(family: str, tmp_path: Path) -> None:
    made = []
    for selection in ("replace_flat_groups", "drop_flat_groups"):
        session = session_of(["open"] * SET, tmp_path, family)
        session.algorithm = replace(
            session.algorithm, selection=build({"use": "dapo", "selection": selection}).selection
        )
        metrics, gathered, _ = iterate(session, PhaseTimer())
        made.append((metrics, gathered, torch.cat([p.detach().flatten() for p in session.policy.parameters()])))
    (metrics, ours, weights), (plain, theirs, others) = made
    assert torch.equal(ours.rollout.seeds, theirs.rollout.seeds) and torch.equal(
        ours.rollout.final, theirs.rollout.final
    )
    assert torch.equal(weights, others)
    assert metrics["sampling/rounds"] == 1 and "sampling/rounds" not in plain
    same = settled(plain)
    assert {key: metrics[key] for key in same} == same


def test_rounds_are_bounded_and_the_update_learns_from_what_there_is(tmp_path: Path) -> None:
    kinds = ["open"] + ["flat"] * (SET - 1)  # 3 rounds of 4 prompts see it in some iterations only
    session = session_of(kinds, tmp_path, rounds=3)
    seen = []
    for _ in range(5):
        expected = {i for number in range(3) for i in ids(session, number)}
        metrics, made, _ = iterate(session, PhaseTimer())
        found = int(metrics["sampling/groups"])
        assert metrics["sampling/rounds"] == 3 and found == (0 in expected)
        assert (metrics["grad_norm"] > 0) == bool(found)
        assert len(made.rollout.seeds) == GROUP * (found or WANTED)
        assert metrics["zero_std_fraction"] == pytest.approx(1 - found / 12)
        [sentence] = missing_groups(session, metrics)
        assert f"learned from {found} groups instead of 4" in sentence and "3 rounds (72 samples)" in sentence
        seen.append(found)
    assert set(seen) == {0, 1}
    assert session.progress.samples == 5 * 3 * WANTED * GROUP  # all that were drawn, flat or not


def test_nothing_to_learn_from_changes_nothing(tmp_path: Path) -> None:
    session = session_of(["flat"] * SET, tmp_path, rounds=2)
    before = [p.detach().clone() for p in session.policy.parameters()]
    metrics, _, _ = iterate(session, PhaseTimer())
    assert metrics["loss"] == 0 and metrics["sampling/groups"] == 0 and metrics["zero_std_fraction"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, session.policy.parameters(), strict=True))


def test_metrics_are_of_all_samples_drawn(tmp_path: Path) -> None:
    """Else the reward of the groups that stay would be shown as the policy's."""
    session = session_of(alternating(3), tmp_path)
    calls = session.policy.network_calls
    metrics, made, _ = iterate(session, PhaseTimer())
    assert metrics["reward/mean"] == pytest.approx(float(made.drawn.total.mean()))
    assert metrics["reward/texts/mean"] != pytest.approx(float(made.scores.total.mean()))
    groups = metrics["sampling/samples"] / GROUP
    flat = sum(session.prompts.prompts[int(i)].columns["kind"] == "flat" for i in made.drawn.prompt_ids[::GROUP])
    assert metrics["zero_std_fraction"] == pytest.approx(flat / groups)
    assert 0 < metrics["completion/length"] <= 3
    assert session.progress.forwards == session.policy.network_calls - calls


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_that_could_not_be_scored_are_replaced(family: str, tmp_path: Path) -> None:
    """Even where a later round has nothing but such groups."""
    session = session_of(["open"] * SET, tmp_path, family)
    first, second = ids(session, 0), ids(session, 1)
    kinds = ["open"] * SET
    for place in (*first[:2], *second):
        kinds[place] = "broken"
    session = session_of(kinds, tmp_path, family)
    made = sample_and_score(session, PhaseTimer())
    assert made.metrics["sampling/rounds"] == 3
    assert made.scores.prompt_ids[::GROUP].tolist() == [*first[2:], *ids(session, 2)[:2]]
    assert bool(made.scores.valid.all()) and int((~made.drawn.valid).sum()) == 6 * GROUP
    with pytest.raises(UserError, match="drop_group left no sample"):
        sample_and_score(session_of(["broken"] * SET, tmp_path, family), PhaseTimer())


def storage(value: Tensor) -> int:
    return value.untyped_storage().nbytes() // value.element_size()


def test_what_does_not_stay_is_not_kept_alive(tmp_path: Path) -> None:
    made: ScoredRollout = sample_and_score(session_of(alternating(6), tmp_path, "diffusion"), PhaseTimer())
    assert made.metrics["sampling/rounds"] > 3
    assert made.samples.images is not None
    for tensor in (made.samples.images, made.rollout.final, made.rollout.trace.squared):  # pyright: ignore
        assert len(tensor) == WANTED * GROUP and storage(tensor) <= tensor.numel()


def test_later_rounds_take_other_prompts() -> None:
    prompts = PromptSet(tuple(Prompt(f"p{i}", i) for i in range(10)))
    for iteration in range(4):
        drawn = [p.id for number in range(5) for p in prompts.draw(iteration, 2, 3, number)]
        assert sorted(drawn) == list(range(10))
        assert sorted(p.id for p in prompts.draw(iteration, 2, 3, 5)) == sorted(drawn[:2])  # all were seen: again
        assert [p.id for p in prompts.draw(iteration, 2, 3, 6)] == drawn[2:4]
        assert prompts.draw(iteration, 2, 3, 0) == prompts.draw(iteration, 2, 3)
    orders = {tuple(p.id for n in range(1, 5) for p in prompts.draw(i, 2, 3, n)) for i in range(4)}
    assert len(orders) == 4


def run_values(where: Path, iterations: int) -> dict[str, Any]:
    return {
        "name": "resumed",
        "model": {"path": "sudoku", "full": True},
        "algorithm": {"use": "dapo", "length": 17, "selection": {"rounds": 3}},
        "data": {"train": "sudoku:train", "test": None, "prompts": 3, "group": 3},
        "rewards": [{"use": "sudoku", "options": {"mode": "strict"}}],
        "optimizer": {"lr": 0.001},
        "train": {"iterations": iterations, "updates": 2, "threads": 1, "ema": None},
        "eval": {"every": 0, "weights": "live"},
        "checkpoint": {"every": 1},
        "out": str(where),
    }


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    whole = train(Config.of(run_values(tmp_path / "whole", 3)))
    train(Config.of(run_values(tmp_path / "split", 1)))
    split = train(Config.of(run_values(tmp_path / "split", 3)), resume="auto")
    first, second = (load_file(run / "checkpoints/step_000003/state/state.safetensors") for run in (whole, split))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    stories = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, split)
    ]
    plain = [[settled(line) for line in story] for story in stories]
    assert plain[0] == plain[1]
    assert max(line["sampling/rounds"] for line in plain[0]) > 1
    assert plain[0][-1]["samples"] == sum(line["sampling/samples"] for line in plain[0])


def test_the_plan_says_what_rounds_may_cost(tmp_path: Path) -> None:
    config = Config.of(run_values(tmp_path, 5))
    lines = workload(config, build(config.algorithm)).lines()
    assert ("rounds of sampling", "1 to 3 an iteration, until 3 groups take part") in lines
    assert ("", "counted below as 1; the others make up to 90 samples in 1,530 forwards") in lines
    assert not any("rounds" in label for label, _ in workload(config, build({"use": "grpo", "length": 17})).lines())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("algorithm.selection={rounds: 0}", ("algorithm.selection", "rounds=0", "use at least 1")),
        ("algorithm.selection={rounds: many}", ("algorithm.selection.rounds", "'many'", "integer")),
        ("algorithm.selection={round: 3}", ("algorithm.selection.round", "did you mean", "selection.rounds'")),
        ("algorithm.selection=replace_flat", ("algorithm.selection", "'replace_flat'", "did you mean")),
        ("data.group=1", ("data.group=1", "at least 2")),
    ],
)
def test_bad_options_are_one_sentence(override: str, words: tuple[str, ...], monkeypatch, capsys) -> None:
    config = str(Path(__file__).parents[2] / "configs/qwen_dapo.yaml")
    monkeypatch.setattr(sys, "argv", ["flowrl", "train", config, override, "--dry-run"])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("model", "algorithm", "reward"),
    [
        ("shapes", {"use": "flow_grpo", "kl": 0.0, "sampler": {"steps": 4}}, "shapes"),
        ("sudoku", {"use": "trajectory_pg", "length": 16, "steps": 4, "block": 16}, "sudoku"),
    ],
)
def test_other_families_learn_from_several_rounds(
    model: str, algorithm: dict[str, Any], reward: str, tmp_path: Path
) -> None:
    """The likelihood of samples put together from rounds is that of the rounds: the ratio starts at 1."""
    values = run_values(tmp_path / "run", 2)
    values["model"] = {"path": model, "full": True}
    values["algorithm"] = {**algorithm, "selection": {"use": "replace_flat_groups", "rounds": 6}}
    values["data"] |= {"train": f"{model}:train"}
    values["rewards"] = [{"use": reward, "options": {"mode": "strict"}}]
    run = train(Config.of(values))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(line["sampling/rounds"] for line in lines) > 1
    assert all(line["ratio/first_max_deviation"] < 1e-4 and line["sampling/groups"] > 0 for line in lines)
    assert all(line["grad_norm"] > 0 for line in lines)


def test_a_pipeline_that_pads_prompts_together_is_refused(tmp_path: Path) -> None:
    folder = pipelines.save("qwen_image", tmp_path / "model")
    values = run_values(tmp_path / "run", 1)
    values["model"] = {"path": str(folder), "call": pipelines.CALLS["qwen_image"]}
    values["algorithm"] = {"use": "flow_grpo", "selection": "replace_flat_groups"}
    values["data"] |= {"train": "shapes:train"}
    values["rewards"] = ["jpeg_compressibility"]
    with pytest.raises(UserError, match=r"pads a prompt to the longest of its batch.*drop_flat_groups"):
        train(Config.of(values))


def test_the_tokens_of_saved_completions_are_told() -> None:
    """Those that count, of the chosen rows alone; nothing of a policy that is no language model."""
    policy: Any = object.__new__(TextPolicy)
    policy.codec = SimpleNamespace(token_text=lambda token: chr(token))
    tokens = torch.tensor([[97, 98, 99], [100, 101, 0], [102, 0, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])

    def told(policy: Any, record: Any = None, **more: Any) -> Any:
        rollout = SimpleNamespace(trace=TokenTrace(tokens, mask, 1.0, **more))
        made: Any = SimpleNamespace(rollout=rollout, share=Share.alone(3), record=record)
        return token_facts(policy, made, torch.tensor([1, 2]))

    assert told(policy, logp=torch.tensor([[-1.0, -2.0, -3.0], [-0.123456, -5.0, 0.0], [-6.0, 0.0, 0.0]])) == [
        {"tokens": {"text": ["d", "e"], "logp": [-0.1235, -5.0]}},
        {"tokens": {"text": ["f"], "logp": [-6.0]}},
    ]
    assert told(policy, order=torch.tensor([[0, 1, 2], [2, 0, 1], [0, 0, 0]]))[0] == {
        "tokens": {"text": ["d", "e"], "order": [2, 0]}
    }
    record = DecisionRecord(torch.tensor([1, 2]))
    record.begin(torch.tensor([[0.0] * 3, [0.5, -0.5, 0.0], [0.25] * 3]))
    record.note(torch.tensor([1]), slice(0, 3), Likelihood(torch.zeros(1, 3), {"entropy": torch.tensor([[1.0, 2, 3]])}))
    assert [each["tokens"] for each in told(policy, record)] == [
        {"text": ["d", "e"], "entropy": [1.0, 2.0], "advantage": [0.5, -0.5]},
        {"text": ["f"], "entropy": [None]},  # one advantage for all is that of the sample
    ]
    assert told(TinyText()) is None


def test_an_iteration_whose_samples_are_saved_records_its_tokens(tmp_path: Path) -> None:
    """Entropy as the update saw it, which is a distribution of three tokens', and the same update without it."""
    found = []
    for every in (1, 3):
        session = session_of(["open"] * SET, tmp_path, log={"samples": 4, "samples_every": every})
        metrics, batch, _ = iterate(session, PhaseTimer())
        found.append((metrics, batch, session.policy.parameters()))
    (metrics, batch, weights), (plain, unsaved, others) = found
    assert unsaved.record is None and batch.record is not None
    assert {k: v for k, v in metrics.items() if "seconds" not in k} == {
        k: v for k, v in plain.items() if "seconds" not in k
    }
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
    rows, entropy = batch.record.rows, batch.record.entropy()
    assert rows.tolist() == [0, 6, 12, 18] and entropy is not None
    told = entropy[batch.rollout.trace.mask[rows]]
    assert bool(((told > 0) & (told <= math.log(3) + 1e-6)).all())
    assert batch.record.advantage is not None and batch.record.advantage.shape == entropy.shape
    session.progress.iteration = 5 - 1
    assert recording(session, unsaved).record is not None  # the last is saved, whatever its number
    image = session_of(["open"] * SET, tmp_path, "diffusion", log={"samples": 4, "samples_every": 1})
    assert iterate(image, PhaseTimer())[1].record is None

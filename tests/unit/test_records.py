"""Samples of a data set: how they are read, what a config of them leaves out, and pictures made latents."""

from __future__ import annotations

import io
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowrl.config import Config
from flowrl.data import PromptSet, load_prompts
from flowrl.errors import UserError
from flowrl.heldout import evaluate_heldout
from flowrl.media import as_floats, picture, read_picture
from flowrl.rounds import sample_and_score
from flowrl.runtime.timing import PhaseTimer
from flowrl.samplers.recorded import OTHER
from flowrl.score import load_rewards
from flowrl.session import Session, open_session
from flowrl.startup.preflight import check_run
from flowrl.train import iterate
from flowrl.types import DATA, Draw, Prompt, Rollout, Samples, Scores, TokenTrace


def test_pictures_in_every_form(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    data = io.BytesIO()
    image.save(data, "PNG")
    wanted = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    forms: list[Any] = [
        str(tmp_path / "a.png"),
        data.getvalue(),
        {"bytes": data.getvalue(), "path": None},
        image,
        wanted,
    ]
    assert all(torch.equal(read_picture(form), wanted) for form in forms)
    clear = image.convert("RGBA")
    clear.putalpha(0)
    assert torch.equal(read_picture(clear), torch.ones(3, 4, 6))
    for wrong, problem in ((3, ValueError), (str(tmp_path / "b.png"), OSError), (b"no picture", OSError)):
        with pytest.raises(problem):
            read_picture(wrong)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


ENTRY = {"numbers": [1, 2, 3], "target": 6}
PAIRS = [
    {
        "prompt": f"1 2 {n}   =  6:",
        **ENTRY,
        "chosen": f"1+2+{n}",
        "rejected": f"{n}",
        "good": n % 2 == 0,
        "stars": n % 3,
    }
    for n in range(3, 9)
]


def config(path: str, algorithm: dict[str, Any], base: str = "countdown", **changes: Any) -> Config:
    values: dict[str, Any] = {
        "name": "records",
        "model": {"path": base, "lora": {"rank": 4, "alpha": 8}},
        "algorithm": algorithm,
        "data": {"train": path, "prompts": 3},
        "optimizer": {"lr": 1e-3, "max_grad_norm": 1e9},
        "train": {"iterations": 2, "micro_batch": 4, "sample_batch": 5, "threads": 1},
        "monitor": {"samples": 8},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values.setdefault(section, {})[name] = value
    return Config.of(values)


DPO = {"use": "dpo", "length": 14}


def test_what_a_config_of_records_leaves_out(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", PAIRS)
    run = check_run(config(path, DPO))
    assert (run.config.data.group, run.config.eval.every, run.test) == (2, 0, None)
    assert [reward.use for reward in run.config.rewards] == ["feedback"]
    run = check_run(config(path, {"use": "kto", "length": 14, "column": "chosen", "label": "good"}))
    assert run.config.data.group == 2 and run.train.prompts[0].columns[OTHER] == "1+2+8"
    scored = config(path, DPO, data__test="countdown:test").model_dump(exclude_unset=True) | {"rewards": ["countdown"]}
    run = check_run(Config.of(scored))
    assert run.config.eval.every == 10 and run.test is not None


@pytest.mark.parametrize(
    ("algorithm", "changes", "problem"),
    [
        (DPO, {"data__group": 4}, r"data\.group=4: the data set has 2 samples of a prompt"),
        (DPO, {"eval__every": 3}, r"eval\.every=3 evaluates .* no reward scores it"),
        ({**DPO, "columns": ["choosen", "rejected"]}, {}, r"entry 1: the column 'choosen' is missing.*'chosen'"),
        ({**DPO, "ratings": ["stars"]}, {}, r"ratings=\['stars'\] should name a column for each"),
        ({**DPO, "columns": []}, {}, r"columns=\(\) names no samples"),
        ({"use": "grpo", "length": 14}, {}, "rewards: missing; name at least one"),
        ({"use": "kto", "length": 14}, {}, "column 'completion' is missing"),
        ({**DPO, "family": "masked"}, {}, ""),
    ],
)
def test_what_does_not_fit_is_said_before_a_model_is_loaded(
    algorithm: dict[str, Any], changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "pairs.jsonl", PAIRS)
    if not problem:
        assert check_run(config(path, algorithm, "sudoku")).algorithm.family == "masked"
        return
    with pytest.raises(UserError, match=problem):
        check_run(config(path, algorithm, **changes))


def drawn(session: Session, count: int = 2) -> Rollout:
    prompts = [p for p in session.prompts.prompts[:count] for _ in range(session.config.data.group)]
    group = torch.arange(count).repeat_interleave(session.config.data.group)
    draw = Draw.of(torch.arange(len(group)), group, 0, 0, prompts)
    return session.algorithm.sampler(session.policy, session.policy.condition(prompts), draw)


def test_completions_become_the_tokens_that_the_model_would_have_said(tmp_path: Path) -> None:
    """The text, the end token, padding; messages in the place of texts; one that is too long is cut and has no end."""
    rows = [dict(row) for row in PAIRS]
    rows[1]["chosen"] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "4+2"}]
    rows[0]["rejected"] = "1+2+3+4+5+6+7"
    path = write(tmp_path / "a.jsonl", rows)
    session = open_session(check_run(config(path, {**DPO, "length": 8}, data__overlong="truncate")))
    made = drawn(session)
    trace = made.trace
    assert isinstance(trace, TokenTrace) and trace.ended is not None and made.feedback is not None
    assert session.policy.decode(made.final) == ["1+2+3", "1+2+3+4+"[:8], "4+2", "4"]
    assert trace.ended.tolist() == [True, False, True, True]
    assert trace.mask.sum(dim=1).tolist() == [6, 8, 4, 2]
    last = trace.tokens[torch.arange(4), trace.mask.sum(dim=1) - 1]
    assert torch.isin(last, torch.tensor(session.policy.end_tokens)).tolist() == [True, False, True, True]
    assert made.source.tolist() == [DATA] * 4 and made.feedback.tolist() == [1, 0, 1, 0]
    again = session.policy.encode(session.policy.decode(made.final[[0, 2]]), 8)
    assert torch.equal(again[0], trace.tokens[[0, 2]]) and torch.equal(again[1], trace.mask[[0, 2]])


def test_completions_that_are_too_long(tmp_path: Path) -> None:
    rows = [{**PAIRS[0], "rejected": "1+2+3+4+5+6+7"}, *PAIRS[1:]]
    path = write(tmp_path / "long.jsonl", rows)
    short = {**DPO, "length": 8}
    with pytest.raises(UserError, match=r"1 of 6 prompts have a completion of more than 8 tokens, the longest of 13"):
        open_session(check_run(config(path, short)))
    session = open_session(check_run(config(path, short, data__overlong="drop")))
    assert [prompt.id for prompt in session.prompts.prompts] == [1, 2, 3, 4, 5]
    assert any("1 of 6 prompts" in note and "left out" in note for note in session.notes)


@pytest.mark.parametrize("wrong", [3, [], {"content": "x"}])
def test_a_sample_that_is_no_text_is_named(wrong: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [{**PAIRS[0], "chosen": wrong}])
    with pytest.raises(UserError, match="entry 1: a completion should be a text or a list of messages"):
        drawn(open_session(check_run(config(path, DPO))), 1)


def test_ratings_choose_the_preferred_sample(tmp_path: Path) -> None:
    rows = [{**row, "a": row["stars"], "b": 1} for row in PAIRS]
    rows[5]["a"] = None
    path = write(tmp_path / "rated.jsonl", rows)
    session = open_session(check_run(config(path, {**DPO, "ratings": ["a", "b"]}, data__prompts=6)))
    made = drawn(session, 6)
    assert made.feedback is not None
    said = made.feedback.view(6, 2)
    assert said[:5].tolist() == [[0, 1], [1, 1], [2, 1], [0, 1], [1, 1]] and bool(said[5, 0].isnan())
    assert made.feedback is not None
    nothing = torch.zeros(12, 0).double()
    scores = Scores(nothing, nothing[0], (), made.group, made.group, torch.ones(12).bool(), feedback=made.feedback)
    advantage = session.algorithm.advantage(scores, {}).view(6, 2)
    assert advantage.tolist() == [[-1, 1], [0, 0], [1, -1], [-1, 1], [0, 0], [0, 0]]
    assert not session.algorithm.selection(scores, advantage.flatten())[[2, 3, 8, 9]].any()


LEARNERS = [
    ({"use": "sft", "length": 14, "columns": ["chosen"]}, "countdown"),
    ({"use": "kto", "length": 14, "column": "chosen", "label": "good"}, "countdown"),
    *(({"use": name, "length": 14}, "countdown") for name in ("dpo", "ipo", "simpo", "orpo", "cpo", "rpo")),
    *(({"use": name, "length": 14}, "countdown") for name in ("apo_zero", "apo_down")),
    ({"use": "dpo", "length": 16, "family": "masked", "draws": 2}, "sudoku"),
    ({"use": "sft", "length": 16, "family": "masked", "columns": ["chosen"]}, "sudoku"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "base"), LEARNERS, ids=[f"{a['use']}-{b}" for a, b in LEARNERS])
def test_two_iterations_of_every_preset(algorithm: dict[str, Any], base: str, tmp_path: Path) -> None:
    rows = PAIRS
    if base == "sudoku":
        prompts = load_prompts("sudoku:train[:6]").prompts
        rows = [{"prompt": p.text, **p.columns, "chosen": "1234341221434321", "rejected": "1"} for p in prompts]
    session = open_session(check_run(config(write(tmp_path / "rows.jsonl", rows), algorithm, base)))
    losses = [iterate(session, PhaseTimer())[0]["loss"] for _ in range(2)]
    assert all(map(math.isfinite, losses))
    assert session.progress.iteration == 2


@pytest.mark.slow
def test_a_folder_of_pictures_trains(tmp_path: Path) -> None:
    from flowrl.worlds.shapes.autoencoder import any_scene
    from flowrl.worlds.shapes.scenes import render

    folder = tmp_path / "pictures"
    folder.mkdir()
    scenes = [any_scene(random.Random(n)) for n in range(4)]
    for n, image in enumerate(render(scenes)):
        picture(image).save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text(f"picture {n}\n")
    values = config(str(folder), {"use": "sft", "family": "diffusion"}, "shapes")
    session = open_session(check_run(values))
    metrics, batch, _ = iterate(session, PhaseTimer())
    assert math.isfinite(metrics["loss"]) and batch.rollout.source.tolist() == [DATA] * 3
    assert batch.samples.images is not None
    shown = {p.text: image for p, image in zip(batch.samples.prompts, batch.samples.images, strict=True)}
    for name, image in shown.items():  # what comes back from the latents is the picture
        assert float((as_floats(image) - render(scenes)[int(name[-1])]).abs().mean()) < 0.05


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Path, pattern: str) -> Any:
        raise FileNotFoundError(2, "No such file or directory", f"{self}/1")

    monkeypatch.setattr(Path, "rglob", gone)
    with pytest.raises(UserError, match=r"not readable whole \(.*/1'\); give the pictures' own folder"):
        load_prompts(str(tmp_path))


def test_rows_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no picture"):
        load_prompts(str(tmp_path))
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"no caption; write it into a\.txt"):
        load_prompts(str(tmp_path))
    (tmp_path / "a.txt").write_text("a cat\n")
    [prompt] = load_prompts(str(tmp_path)).prompts
    assert (prompt.text, prompt.columns) == ("a cat", {"image": str(tmp_path / "a.png")})
    write(tmp_path / "metadata.jsonl", [{"file_name": "a.png", "text": "a dog", "label": 1}])
    [prompt] = load_prompts(str(tmp_path)).prompts
    assert (prompt.text, prompt.columns) == ("a dog", {"image": str(tmp_path / "a.png"), "label": 1})
    write(tmp_path / "metadata.jsonl", [{"text": "a dog"}])
    with pytest.raises(UserError, match="entry 1: has no file_name"):
        load_prompts(str(tmp_path))


def test_pictures_of_a_data_set_have_a_fingerprint(tmp_path: Path) -> None:
    """Not where they lie in memory."""
    from flowrl.startup.inputs import _prompts

    def of(color: str, data: bytes = b"1") -> str:
        columns = {"image": Image.new("RGB", (2, 2), color), "jpg": data}
        return _prompts(PromptSet((Prompt("a", 0, columns),)))

    assert of("red") == of("red") != of("blue") and of("red") != of("red", b"2")


def test_the_reward_feedback_is_what_is_said(tmp_path: Path) -> None:
    rewards = load_rewards(["feedback"])
    prompts = [Prompt("a", 0)] * 3
    samples = Samples(prompts, completions=["x"] * 3, feedback=torch.tensor([1.0, float("nan"), 0.5]).double())
    assert rewards(samples, torch.zeros(3).long()).total.tolist() == [1, 0, 0.5]
    turns = Samples(prompts, completions=["x"] * 3, feedback=torch.ones(3, 2).double())
    assert rewards(turns, torch.zeros(3).long()).total.tolist() == [2, 2, 2]
    with pytest.raises(Exception, match="nobody says anything of samples that the policy makes itself"):
        rewards(Samples(prompts, completions=["x"] * 3), torch.zeros(3).long())


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["dpo", "sft"])
def test_two_processes_end_where_one_does(preset: str, tmp_path: Path) -> None:
    from tests.training import Processes, Work, drift

    algorithm = {"use": preset, "length": 14, **({"columns": ["chosen"]} if preset == "sft" else {})}
    values = config(write(tmp_path / "pairs.jsonl", PAIRS), algorithm, data__prompts=5, train__updates=2)
    with Processes(2) as processes:
        [alone] = processes.train(1, values.model_dump(exclude_unset=True), Work(2))
        for found in processes.train(2, values.model_dump(exclude_unset=True), Work(2)):
            assert max(drift(found, alone)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["dpo", "sft"])
def test_records_of_the_base_teach_it(preset: str, tmp_path: Path) -> None:
    """Pairs of the base's own completions, the right ones preferred: held-out completions become better."""
    values = {
        "name": "base", "model": {"path": "countdown"}, "algorithm": {"use": "grpo", "length": 14},
        "data": {"train": "countdown:train[:192]", "test": "countdown:test", "prompts": 192, "group": 8},
        "rewards": ["countdown"], "train": {"iterations": 1, "threads": 1}, "eval": {"prompts": 300, "weights": "live"},
    }  # fmt: skip
    session = open_session(check_run(Config.of(values)))
    before = evaluate_heldout(session, PhaseTimer()).metrics["eval/reward/mean"]
    made = sample_and_score(session, PhaseTimer())
    texts, total = made.samples.completions, made.scores.total.view(192, 8)
    assert texts is not None
    rows = []
    for number, scores in enumerate(total):
        best, worst = int(scores.argmax()), int(scores.argmin())
        if scores[best] > scores[worst]:
            prompt = made.prompts[8 * number]
            said = {"chosen": texts[8 * number + best], "rejected": texts[8 * number + worst]}
            rows.append({"prompt": prompt.text, **prompt.columns, **said})
    algorithm = {"use": preset, "length": 14, **({"columns": ["chosen"]} if preset == "sft" else {})}
    values |= {"algorithm": algorithm, "optimizer": {"lr": 1e-3}}
    values["data"] = {"train": write(tmp_path / "rows.jsonl", rows), "test": "countdown:test", "prompts": 32}
    values["train"] = {"iterations": 20, "threads": 1}
    session = open_session(check_run(Config.of(values)))
    for _ in range(20):
        iterate(session, PhaseTimer())
    after = evaluate_heldout(session, PhaseTimer()).metrics["eval/reward/mean"]
    assert after > before + 0.03, (before, after)

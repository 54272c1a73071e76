"""Evaluation and sampling of language models: pass@k, grids, resumable completions, and suites judged by hand."""

import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from flowrl import cli
from flowrl.commands.doctor import check_config
from flowrl.commands.sample import SampleOptions, sample
from flowrl.config import Config
from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.evaluation import evaluate, show
from flowrl.evaluation.decoding import Decoding, deterministic, grid, sampler_of_model, sampler_of_run
from flowrl.evaluation.results import VariantScores, summarise
from flowrl.evaluation.samples import SampleSource, complete_samples
from flowrl.evaluation.statistics import pass_at
from flowrl.evaluation.suites import find
from flowrl.evaluation.target import Target
from flowrl.evaluation.targets import Request, find_target
from flowrl.models.tiny_text import TinyText
from flowrl.records import checkpoint
from flowrl.records.sample_files import read_completion, write_completion, write_text
from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.masked import MaskedSampler
from flowrl.startup.policies import open_policy
from flowrl.types import Prompt, Samples
from flowrl.worlds import sudoku
from flowrl.worlds.sudoku.verifier import verify
from tests import components_text

PROMPTS = [Prompt(text, index, {"tag": "a"}) for index, text in enumerate(("one", "two", "three"))]
TEXT = Target("fake", "model", medium="completions")

# --- statistics ------------------------------------------------------------------------------------------------------


def chance(known: list[float], k: int) -> float:
    """Share of the subsets of size ``k`` that hold a success."""
    subsets = list(itertools.combinations(known, k))
    return sum(any(subset) for subset in subsets) / len(subsets)


def test_pass_at_k_is_the_share_of_subsets_with_a_success():
    nan = math.nan
    values = np.array([[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1], [nan, 1, 0, nan, 0]])
    for k in range(1, 6):
        found = pass_at(values, k)[:, 0]
        for row, value in zip(values, found, strict=True):
            known = [v for v in row if not math.isnan(v)]
            assert (math.isnan(value) and k > len(known)) or value == pytest.approx(chance(known, k))


def test_pass_at_k_of_few_samples_is_unbiased():
    rng = np.random.default_rng(0)
    p, k = 0.3, 3
    values = (rng.random((40_000, 5)) < p).astype(float)
    assert pass_at(values, k).mean() == pytest.approx(1 - (1 - p) ** k, abs=0.006)


def test_results_hold_pass_at_powers_of_two_and_its_paired_difference():
    def judged(correct):
        values = np.asarray(correct, dtype=float)
        return VariantScores({"correct": values, "score": values / 2}, np.ones_like(values), [])

    base, tuned = judged([[0, 0, 1], [0, 0, 0]]), judged([[1, 0, 1], [0, 0, 1]])
    out = summarise({"base": base, "tuned": tuned}, ["a", "a"], ["a"], 50, 0)
    found = {k: v["value"] for k, v in out["arms"]["tuned"]["measures"]["correct"]["pass_at"].items()}
    assert found == pytest.approx({"1": 0.5, "2": (1 + 2 / 3) / 2, "3": 1.0})
    change = {k: v["value"] for k, v in out["difference"]["correct"]["pass_at"].items()}
    assert change == pytest.approx({"1": 1 / 3, "2": (1 / 3 + 2 / 3) / 2, "3": 0.5})
    assert "pass_at" not in out["arms"]["tuned"]["measures"]["score"]


# --- samplers --------------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_named_by_what_varies():
    found = grid(length=[64, 128], steps=[32], temperature=[0.0, 0.5], guidance=1.5)
    labels = [f"length={length},temperature={t}" for length in (64, 128) for t in ("0", "0.5")]
    assert list(found) == labels
    assert found[labels[1]] == Decoding(steps=32, guidance=1.5, length=64, temperature=0.5)
    assert grid(steps=7) == {"": Decoding(steps=7)} and grid() == {"": Decoding()}
    assert len(grid(steps=[4, 4])) == 1


def test_samplers_of_bare_models():
    assert sampler_of_model("masked", 16, Decoding()) == MaskedSampler(length=16, steps=8, block=None, temperature=0)
    assert sampler_of_model("masked", None, Decoding()) == MaskedSampler(length=128, steps=64, block=32, temperature=0)
    longer = sampler_of_model("masked", None, Decoding(length=512, temperature=0.5))
    assert longer == MaskedSampler(length=512, steps=256, block=32, temperature=0.5)
    assert sampler_of_model("masked", None, Decoding(length=16, steps=2)) == MaskedSampler(
        length=16, steps=2, block=16, temperature=0
    )
    assert sampler_of_model("causal", None, Decoding(length=40)) == CausalSampler(length=40, temperature=0.0)
    for wish, words in (
        (("masked", Decoding(length=50)), "length=50 is not a multiple of block=32"),
        (("masked", Decoding(steps=2)), "steps=2 leaves no step"),
        (("causal", Decoding(steps=4)), "autoregressive models have no steps"),
        (("diffusion", Decoding(length=4)), "image models have no length"),
        (("diffusion", Decoding(temperature=1.0)), "no sampling temperature"),
    ):
        with pytest.raises(UserError, match=words):
            sampler_of_model(wish[0], None, wish[1])


def test_greedy_samplers_are_known():
    assert deterministic(CausalSampler(temperature=0)) and not deterministic(CausalSampler())
    assert deterministic(MaskedSampler(temperature=0))
    assert not deterministic(MaskedSampler(temperature=0, order="random"))


def run_config(**changes) -> Config:
    values = {
        "name": "tiny",
        "model": {"path": "sudoku", "lora": {"rank": 2, "alpha": 4}},
        "algorithm": {"use": "diffu_grpo", "length": 16, "steps": 8, "block": 16},
        "data": {"train": "sudoku:train", "test": "sudoku:test"},
        "rewards": ["sudoku", {"use": "sudoku", "name": "strict", "weight": 0, "options": {"mode": "strict"}}],
        "train": {"iterations": 1},
        "eval": {"sampling_steps": 4, "temperature": 0.5, "weights": "live"},
    }
    return Config.of(values | changes)


def test_a_run_is_sampled_as_in_its_own_evaluation_unless_told_otherwise():
    config, order = run_config(), "low_confidence"  # d1's
    assert sampler_of_run(config, Decoding()) == MaskedSampler(
        length=16, steps=4, block=16, temperature=0.5, order=order
    )
    changed = sampler_of_run(config, Decoding(length=32, temperature=0))
    assert changed == MaskedSampler(
        length=32, steps=8, block=16, temperature=0, order=order
    )  # four tokens a step, as before
    assert sampler_of_run(config, Decoding(steps=16)).forwards == 16


# --- completions on disk ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " a\n\n\tb ", 'ü "quoted" \\n 日本 \u2028', "\x00\x1b"])
def test_completions_are_kept_exactly(tmp_path, text):
    write_completion(tmp_path / "a/0000.json", text, 7)
    assert read_completion(tmp_path / "a/0000.json") == (text, 7)


def test_a_damaged_completion_is_named(tmp_path):
    (tmp_path / "0000.json").write_text('{"completion": "a"')
    with pytest.raises(UserError, match=r"0000\.json is not a readable completion"):
        read_completion(tmp_path / "0000.json")


class Opener:
    """Loads a toy model and counts how often; dies after ``calls`` batches if told so."""

    def __init__(self, calls: int | None = None):
        self.count, self.calls, self.made = 0, calls, 0

    def __call__(self):
        self.count += 1
        policy = TinyText(3, 3, [prompt.text for prompt in PROMPTS], end=2)
        decode = policy.decode

        def counted(final):
            if self.calls is not None and self.made >= self.calls:
                raise KeyboardInterrupt
            self.made += 1
            return decode(final)

        policy.decode = counted
        return policy


def make(folder, opener, chosen=(0, 1, 2), samples=4, temperature=1.0):
    sampler = MaskedSampler(length=3, steps=3, block=None, temperature=temperature)
    source = SampleSource(opener, sampler, 7, {"model": "tiny"}, medium="completions")
    entries = complete_samples(source, PROMPTS, chosen, samples, folder)
    return {str(path.relative_to(folder)): read_completion(path) for entry in entries for path in entry.files}


def test_completions_do_not_depend_on_batch_or_company(tmp_path, monkeypatch):
    together = make(tmp_path / "a", Opener())
    monkeypatch.setattr("flowrl.evaluation.generation.BATCH_COMPLETIONS", 1)
    assert make(tmp_path / "b", Opener()) == together and len(set(together.values())) > 4
    assert make(tmp_path / "c", Opener(), chosen=[1], samples=1) == {
        "00001/samples/0000.json": together["00001/samples/0000.json"]
    }


def test_tokens_are_counted_through_the_end(tmp_path):
    found = make(tmp_path, Opener(), samples=40).values()
    assert {tokens for text, tokens in found if len(text) < 3} == {1, 2, 3}
    assert all(tokens == (len(text) + 1 if len(text) < 3 else 3) for text, tokens in found)  # token 2 is the end


def test_a_killed_generation_goes_on_where_it_was(tmp_path, monkeypatch):
    whole = make(tmp_path / "whole", Opener())
    monkeypatch.setattr("flowrl.evaluation.generation.BATCH_COMPLETIONS", 5)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut", Opener(calls=1))
    assert len(list((tmp_path / "cut").glob("*/samples/*.json"))) == 5
    rest = Opener()
    assert make(tmp_path / "cut", rest) == whole and rest.made == 2  # 7 of 12, five at a time
    again = Opener()
    assert make(tmp_path / "cut", again) == whole and again.count == 0
    assert make(tmp_path / "cut", Opener(), temperature=0) != whole  # other settings: made again


# --- suites ----------------------------------------------------------------------------------------------------------


def judged_by(name: str, completions: list[str], data: Path | None = None):
    (suite,) = find([name], TEXT, data)
    prompts = list(suite.prompts)[: len(completions)]
    try:
        return suite, suite.score(Samples(prompts, completions=completions)).measures
    finally:
        suite.close()


def test_sudoku_counts_solutions_and_gives_parts_a_score():
    prompts = load_prompts("sudoku:test").prompts
    solutions = [str(prompt.columns["solution"]) for prompt in prompts]
    suite, measures = judged_by("sudoku", solutions)
    assert suite.size == 240 and suite.tags == ["8", "9", "10"] and suite.primary == "correct"
    assert measures["correct"].tolist() == [1.0] * 240
    wrong = solutions[0].translate(str.maketrans("12", "21"))
    _, measures = judged_by("sudoku", ["", wrong, solutions[2][:-1]])
    assert measures["correct"].tolist() == [0, 0, 0] and measures["score"].tolist()[0] == 0


def test_countdown_wants_the_numbers_and_the_target():
    rows = load_prompts("countdown:test").prompts
    numbers = [str(n) for n in rows[0].columns["numbers"]]
    suite, measures = judged_by("countdown", ["+".join(numbers), "1+1+1+1+1+1", "junk"])
    target = sum(map(int, numbers)) == rows[0].columns["target"]
    assert suite.tags == ["3", "4"] and measures["correct"].tolist() == [float(target), 0, 0]
    assert measures["score"].tolist()[0] == (1.0 if target else 0.1)


def problems(folder: Path, rows: list[dict]) -> Path:
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_gsm8k_from_a_file(tmp_path):
    rows = [
        {"question": "What is 20 - 2?", "answer": "20 - 2 = <<20-2=18>>18\n#### 18"},
        {"question": "How many?", "answer": "#### 1,200", "prompt": "Say 1200."},
    ]
    suite, measures = judged_by("gsm8k", ["So #### 18", "The answer is \\boxed{1200}."], problems(tmp_path, rows))
    assert suite.prompts[0].text.startswith("What is 20 - 2?\n\n") and "####" in suite.prompts[0].text
    assert suite.prompts[1].text == "Say 1200." and suite.size == 1319
    assert measures["correct"].tolist() == [1, 1]
    _, measures = judged_by("gsm8k", ["#### 17", "#### 1201"], tmp_path / "problems.jsonl")
    assert measures["correct"].tolist() == [0, 0]


def test_math500_from_a_file(tmp_path):
    row = {"problem": "Convert.", "answer": "\\left( 3, \\frac{\\pi}{2} \\right)", "level": 2, "solution": "..."}
    suite, measures = judged_by("math500", ["\\boxed{(3, \\frac{\\pi}{2})}"], problems(tmp_path, [row]))
    assert measures["correct"].tolist() == [1] and suite.tags == ["all"] and suite.prompts[0].columns["level"] == 2
    assert "\\boxed{}" in suite.prompts[0].text


def test_misfits_are_one_sentence(tmp_path):
    file = problems(tmp_path, [{"question": "?"}])
    image = Target("fake", "model")
    for call, words in (
        (
            lambda: find(["geneval"], TEXT),
            "geneval judges images, and 'fake'.*makes completions; choose one of cont",
        ),
        (lambda: find(["sudoku"], image), "sudoku judges completions, and 'fake'.*makes images; choose one of aes"),
        (lambda: find(["sudoko"], TEXT), "did you mean 'sudoku'"),
        (lambda: find(["rewards"], TEXT), "'fake' is not a run"),
        (lambda: find(["sudoku"], TEXT, file), "none of the suites reads one"),
        (lambda: find(["gsm8k", "math500"], TEXT, file), "gsm8k and math500 would both read it"),
        (lambda: find(["gsm8k"], TEXT, tmp_path / "no.jsonl"), "no file .*no.jsonl"),
        (lambda: find(["gsm8k"], TEXT, file), "problem 1: needs 'question' .* and 'answer', found 'question'"),
        (
            lambda: find_target("sudoku", Request(call={"x": 1}, family="masked")),
            "language model, which has no pipeline",
        ),
        (lambda: find_target("sudoku", Request(family="maskd")), "did you mean 'masked'"),
    ):
        with pytest.raises(UserError, match=words):
            call()


@pytest.mark.parametrize(
    ("option", "given", "words"),
    [("steps", "4,x", "found '4,x'"), ("length", "0", "1 or more"), ("temperature", "-1", "0 or more")],
)
def test_lists_of_numbers_are_checked(tmp_path, option, given, words):
    arguments = ["eval", "sudoku", "--suite", "sudoku", "--out", str(tmp_path), f"--{option}", given]
    with pytest.raises(UserError, match=words):
        cli.app(arguments, standalone_mode=False)


# --- a model, and a run before and after -----------------------------------------------------------------------------


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_world_model_at_several_decodings(tmp_path):
    options = {"limit": 6, "steps": [4, 16], "temperature": [0.0, 1.0], "family": "masked"}
    results = evaluate("sudoku", ["sudoku"], tmp_path, samples=2, **options)
    names = [f"sudoku@steps={steps},temperature={t}" for steps in (4, 16) for t in (0, 1)]
    assert list(results["suites"]) == names and results["manifest"]["steps"] == [4, 4, 16, 16]
    suite = results["suites"][names[3]]
    assert suite["sampling"]["length"] == sudoku.LENGTH and suite["samples_per_prompt"] == 2 and suite["partial"]
    lines = lines_of(tmp_path / "model" / names[3] / "results.jsonl")
    by_id = {prompt.text: prompt.columns for prompt in load_prompts("sudoku:test").prompts}
    right = [
        verify(line["completion"], by_id[line["prompt"]]["puzzle"], by_id[line["prompt"]]["solution"]).strict
        for line in lines
    ]
    measures = suite["arms"]["model"]["measures"]
    assert measures["correct"]["samples"]["value"] == pytest.approx(sum(right) / 12)
    assert measures["correct"]["pass_at"]["2"] == measures["correct"]["any_of_n"]
    assert measures["tokens"]["samples"]["value"] == pytest.approx(16, abs=1) and "characters" in measures
    assert results["suites"][names[0]]["samples_per_prompt"] == 1  # greedy
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("model/*/*/samples/*.json")}
    again = evaluate("sudoku", ["sudoku"], tmp_path, samples=2, **options)
    assert again == results and before == {path: path.stat().st_mtime_ns for path in before} and len(before) == 36
    console = Console(width=80, record=True, file=io.StringIO())
    show(results, console)
    text = console.export_text()
    assert "by decoding" in text and "steps=16" in text and "…" not in text


def test_an_autoregressive_model_at_two_lengths(tmp_path):
    model = str(components_text.save("llama", tmp_path / "llama"))
    suites = evaluate(model, ["countdown"], tmp_path / "out", limit=4, length=[3, 9], temperature=1.0)["suites"]
    assert list(suites) == ["countdown@length=3", "countdown@length=9"]
    tokens = [s["arms"]["model"]["measures"]["tokens"]["samples"]["value"] for s in suites.values()]
    assert 1 <= tokens[0] <= 3 < tokens[1] <= 9
    short, long = (
        [row["completion"] for row in lines_of(tmp_path / f"out/model/countdown@length={length}/results.jsonl")]
        for length in (3, 9)
    )
    assert len(short) == 16 and all(b.startswith(a) for a, b in zip(short, long, strict=True))  # equal seeds
    with pytest.raises(UserError, match="autoregressive models have no steps"):
        evaluate(model, ["countdown"], tmp_path / "out", steps=4)


def test_greedy_samples_are_not_made_twice(tmp_path):
    with pytest.raises(UserError, match="8 greedy completions of a prompt are all equal"):
        evaluate("sudoku", ["sudoku"], tmp_path, samples=8, family="masked")
    with pytest.raises(UserError, match="--count: 2 greedy"):
        sample("sudoku", ["1=", "2="], tmp_path, SampleOptions(count=2, family="masked"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on the Sudoku world whose checkpoint holds visibly changed weights."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    config = run_config()
    write_text(path / "config.yaml", config.to_yaml())
    policy = open_policy(config)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3
    tensors = {f"weights/{name}": value for name, value in policy.weights.state().items()}
    checkpoint.save(path / "checkpoints", 1, tensors, {}, {}, {"eval/reward/mean": 0.1}, best="eval/reward/mean")
    return path


def test_a_run_is_judged_before_and_after(run, tmp_path):
    results = evaluate(str(run), ["sudoku", "rewards"], tmp_path, samples=2, limit=6)
    rows = {arm: lines_of(tmp_path / arm / "sudoku/results.jsonl") for arm in ("base", "tuned")}
    assert [row["filename"] for row in rows["base"]] == [row["filename"] for row in rows["tuned"]]
    assert [row["completion"] for row in rows["base"]] != [row["completion"] for row in rows["tuned"]]
    found = results["suites"]["sudoku"]
    values = [found["arms"][arm]["measures"]["score"]["samples"]["value"] for arm in ("base", "tuned")]
    assert found["difference"]["score"]["samples"]["value"] == pytest.approx(values[1] - values[0])
    rewards = results["suites"]["rewards"]
    assert rewards["primary"] == "sudoku" and rewards["medium"] == "completions"
    strict = rewards["arms"]["tuned"]["measures"]["strict"]["samples"]["value"]
    assert strict == found["arms"]["tuned"]["measures"]["correct"]["samples"]["value"]
    assert (results["manifest"]["steps"], results["manifest"]["temperature"]) == (4, 0.5)  # the run's own
    options = {"steps": 4, "temperature": 0.5, "family": "masked"}
    alone = evaluate("sudoku", ["sudoku"], tmp_path / "alone", samples=2, limit=6, **options)
    assert alone["kind"] == "model"
    bare = lines_of(tmp_path / "alone/model/sudoku/results.jsonl")
    assert [row["completion"] for row in bare] == [row["completion"] for row in rows["base"]]  # equal seeds
    with pytest.raises(UserError, match="is a run of a masked model"):
        evaluate(str(run), ["sudoku"], tmp_path, family="causal")


# --- sampling and the doctor -----------------------------------------------------------------------------------------


def test_sampled_completions_are_printed_and_written(run, tmp_path, capsys):
    prompt = load_prompts("sudoku:test").prompts[0].text
    arguments = ["sample", str(run), "--prompt", prompt, "--prompt", "1234/..12/21../....=", "--count", "3"]
    cli.app([*arguments, "--out", str(tmp_path), "--temperature", "1"], standalone_mode=False)
    lines = lines_of(tmp_path / "completions.jsonl")
    assert [line["prompt"] for line in lines] == [prompt] * 3 + ["1234/..12/21../....="] * 3
    assert {"prompt", "completion", "seed", "tokens"} == lines[0].keys() and len({r["seed"] for r in lines}) == 6
    out = capsys.readouterr().out
    assert all(line["completion"] in out for line in lines) and "completions.jsonl" in out
    one = sample(str(run), [prompt], tmp_path / "one", SampleOptions(decoding=Decoding(temperature=1)))
    assert one.completions == lines[:1] and one.files == [tmp_path / "one/completions.jsonl"]


def test_the_doctor_tries_a_text_run():
    findings = {finding.name: finding for finding in check_config(run_config())}
    assert "stopped" not in findings, findings["stopped"].detail
    assert findings["parity"].state == "ok" and "single rows" in findings["parity"].detail
    assert "tokens" in findings["completion"].detail
    assert {"reward sudoku", "reward strict"} <= findings.keys()


def test_text_rewards_are_tested_on_a_text_world(capsys):
    cli.app(["test-reward", "sudoku", "--text"], standalone_mode=False)
    assert "8 scores" in capsys.readouterr().out


@pytest.mark.parametrize("overlong", ["error", "drop", "truncate"])
def test_a_runs_prompts_that_are_too_long_are_treated_as_its_data_says(overlong, tmp_path):
    """Entry 2 does not fit: refused before anything is made, left out of both arms and of the numbers, or shortened."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("3+4=\n12*(5-1)=\n7=\n")
    values = run_config().model_dump(mode="json") | {"algorithm": "grpo", "out": None}
    values["model"] = {"path": str(components_text.folder("llama")), "max_prompt": 5, "full": True}
    values["algorithm"] = {"use": "grpo", "sampler": {"length": 4}}
    values["data"] = {"train": str(prompts), "test": str(prompts), "overlong": overlong, "prompts": 1, "group": 4}
    values["eval"] = {"temperature": 0.7}
    values["rewards"] = [{"use": "length_penalty", "options": {"limit": 4, "buffer": 2}}]
    config = Config.of(values)
    write_text(tmp_path / "run/config.yaml", config.to_yaml())
    policy = open_policy(config)
    policy.update_ema("ema", 0.0)
    tensors = {f"weights/{name}": value for name, value in policy.weights.state().items()}
    checkpoint.save(tmp_path / "run/checkpoints", 1, tensors, {}, {}, {})
    arguments = (str(tmp_path / "run"), ["rewards"], tmp_path / "out")
    options = {"samples": 2, "checkpoint": "latest"}
    if overlong == "error":
        with pytest.raises(UserError, match=r"prompt entry 2, '12\*\(5-1\)='.*data\.overlong: drop or truncate"):
            evaluate(*arguments, **options)
        return
    found = evaluate(*arguments, **options)["suites"]["rewards"]
    kept = ["3+4=", "12*(5-1)=", "7="] if overlong == "truncate" else ["3+4=", "7="]
    assert found["prompts"] == len(kept) and found["partial"] == (overlong == "drop")
    for arm in ("base", "tuned"):
        lines = lines_of(tmp_path / "out" / arm / "rewards/results.jsonl")
        assert [line["prompt"] for line in lines] == [text for text in kept for _ in range(2)]
    assert evaluate(*arguments, **options)["suites"]["rewards"] == found  # what was made is kept

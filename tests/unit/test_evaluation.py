"""Evaluation: intervals against closed forms, layouts, and accuracies counted by hand."""

import io
import json
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from flowrl.config import Config, RewardConfig
from flowrl.errors import UserError
from flowrl.evaluation import evaluate, show
from flowrl.evaluation.results import VariantScores, summarise
from flowrl.evaluation.reward_suite import reward_suite
from flowrl.evaluation.runner import choose_prompts
from flowrl.evaluation.samples import SampleSource, complete_samples
from flowrl.evaluation.statistics import Resamples, bootstrap, paired_bootstrap, wilson, wins
from flowrl.evaluation.table import format_estimate
from flowrl.models import export_policy
from flowrl.models.adapters.read import DIFFUSERS_FILE as FILE
from flowrl.models.tiny_flow import TinyFlow
from flowrl.records import checkpoint
from flowrl.records.sample_files import is_image_folder, read_folder, read_images, sample_path, write_image, write_text
from flowrl.samplers.flow import FlowSampler
from flowrl.startup.policies import open_policy, policy_of_run
from flowrl.types import Prompt, Samples
from flowrl.worlds.images.scenes import Scene, Thing
from flowrl.worlds.shapes import prompts as world_prompts
from flowrl.worlds.shapes.scenes import random_scene, render

# --- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "successes, trials, low, high",
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_interval_matches_published_values(successes, trials, low, high):
    assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_wilson_of_nothing_is_unknown():
    assert all(math.isnan(end) for end in wilson(0, 0))


def test_bootstrap_interval_is_the_normal_one_for_many_prompts():
    values = np.random.default_rng(0).normal(2.0, 3.0, size=400)
    estimate = bootstrap(values)
    half = 1.96 * values.std() / math.sqrt(400)  # the bootstrap's own variance has no ddof
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.03)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.03)


def test_prompts_and_not_images_are_resampled():
    per_prompt = np.random.default_rng(1).normal(size=100)
    alone = bootstrap(per_prompt)
    copies = bootstrap(np.repeat(per_prompt[:, None], 8, axis=1))  # eight equal images tell nothing new
    assert (copies.low, copies.high) == pytest.approx((alone.low, alone.high))


def test_pairing_removes_the_difficulty_of_prompts():
    rng = np.random.default_rng(2)
    difficulty = rng.normal(0, 10, size=(200, 1))
    base = difficulty + rng.normal(0, 0.1, size=(200, 4))
    tuned = base + 0.5
    estimate = paired_bootstrap(base, tuned)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.5, 0.5, 0.5))
    assert bootstrap(base).high - bootstrap(base).low > 2


def test_bootstrap_is_seeded():
    values = np.arange(50.0)
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_overall_weighs_tags_equally_and_images_do_not():
    values = np.array([[1.0], [1.0], [1.0], [0.0]])  # three prompts of "a", one of "b"
    draws = Resamples.draw(["a", "a", "a", "b"], 100)
    assert draws.overall(values).value == pytest.approx(0.5)
    assert draws.samples(values).value == pytest.approx(0.75)


def test_missing_scores_leave_every_mean():
    values = np.array([[1.0, np.nan], [0.0, 0.0], [np.nan, np.nan]])
    assert bootstrap(values).value == pytest.approx(1 / 3)


def test_one_prompt_has_no_interval():
    estimate = bootstrap([[0.0, 1.0, 1.0, 1.0]])
    assert estimate.value == 0.75 and math.isnan(estimate.low)
    assert estimate.json() == {"value": 0.75, "low": None, "high": None}


def test_wins_count_ties_half():
    found = wins(np.array([[0.0, 1.0, 1.0, np.nan]]), np.array([[1.0, 1.0, 0.0, 1.0]]))
    assert np.nanmean(found) == pytest.approx((1 + 0.5 + 0) / 3)


def test_paired_values_must_match():
    with pytest.raises(ValueError, match="differ in shape"):
        paired_bootstrap(np.zeros((3, 2)), np.zeros((3, 4)))


# --- numbers of a suite ----------------------------------------------------------------------------------------------


def judged(correct):
    values = np.asarray(correct, dtype=float)
    return VariantScores({"correct": values}, np.ones_like(values), ["no circle"] * int((values == 0).sum()))


def test_summary_counts_by_hand():
    base, tuned = judged([[1, 0], [0, 0], [0, 0]]), judged([[1, 1], [0, 1], [0, 0]])
    out = summarise({"base": base, "tuned": tuned}, ["a", "a", "b"], ["a", "b"], 200, 0)
    correct = out["arms"]["tuned"]["measures"]["correct"]
    assert correct["tags"]["a"]["value"] == 0.75 and correct["tags"]["b"]["value"] == 0.0
    assert correct["overall"]["value"] == 0.375
    assert correct["samples"]["value"] == 0.5
    assert correct["any_of_n"]["value"] == pytest.approx(2 / 3)
    assert correct["wilson"] == pytest.approx(wilson(3, 6))
    change = out["difference"]["correct"]
    assert change["overall"]["value"] == pytest.approx(0.375 - 0.125)
    assert change["win_rate"]["value"] == pytest.approx((2 * 1 + 4 * 0.5) / 6)
    assert out["arms"]["base"]["reasons"] == {"no circle": 5}


def test_no_overall_without_all_tags():
    out = summarise({"model": judged([[1], [0]])}, ["a", "a"], ["a", "b"], 50, 0)
    assert out["missing_tags"] == ["b"]
    assert out["arms"]["model"]["measures"]["correct"]["overall"] is None
    assert out["arms"]["model"]["measures"]["correct"]["samples"]["value"] == 0.5


def test_limit_is_dealt_evenly_over_tags():
    prompts = [Prompt(str(i), i, {"tag": "ab"[i // 10]}) for i in range(20)]
    assert choose_prompts(prompts, 4) == [0, 5, 10, 15]
    assert choose_prompts(prompts, 3) == [0, 5, 10]
    assert choose_prompts(prompts, 100) == choose_prompts(prompts, None) == list(range(20))


# --- images on disk --------------------------------------------------------------------------------------------------

CIRCLE = {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a circle"}
CROSS = {"tag": "colors", "include": [{"class": "cross", "count": 1, "color": "red"}], "prompt": "a red cross"}


def folder_of_images(folder):
    """Two prompts, two images each: a circle right and wrong, a red cross right and blue."""
    scenes = [("circle", "red"), ("square", "red"), ("cross", "red"), ("cross", "blue")]
    images = render([Scene((Thing(shape, color, 8.0, 8.0, 5.0),)) for shape, color in scenes])
    for index, metadata in enumerate((CIRCLE, CROSS)):
        write_text(folder / f"{index:05d}" / "metadata.jsonl", json.dumps(metadata) + "\n")
        for sample in range(2):
            write_image(sample_path(folder, index, sample), images[2 * index + sample])
    return folder


def test_png_rounds_to_the_nearest_level(tmp_path):
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    write_image(tmp_path / "a.png", image)
    back = read_images([tmp_path / "a.png"])[0]
    assert (back - image).abs().max() <= 0.5 / 255 + 1e-6
    write_image(tmp_path / "b.png", back)
    assert torch.equal(read_images([tmp_path / "b.png"])[0], back)


def test_image_folder_is_judged_by_the_verifier(tmp_path):
    results = evaluate(str(folder_of_images(tmp_path / "images")), ["geneval"], tmp_path / "out")
    suite = results["suites"]["geneval"]
    correct = suite["arms"]["images"]["measures"]["correct"]
    assert suite["title"] == "geneval[shapes]" and suite["partial"]
    assert correct["tags"] == {
        "single_object": {"value": 0.5, "low": None, "high": None},
        "colors": {"value": 0.5, "low": None, "high": None},
    }
    assert correct["overall"] is None and "counting" in suite["missing_tags"]
    assert correct["any_of_n"]["value"] == 1.0
    lines = [json.loads(line) for line in (tmp_path / "out/images/geneval/results.jsonl").read_text().splitlines()]
    assert [line["correct"] for line in lines] == [True, False, True, False]
    assert {"filename", "tag", "prompt", "correct", "reason", "metadata", "details"} <= lines[0].keys()
    assert lines[0]["filename"] == "00000/samples/0000.png" and lines[0]["reason"] == ""
    assert "circle" in lines[1]["reason"] and json.loads(lines[1]["metadata"]) == CIRCLE
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    console = Console(width=100, record=True, file=io.StringIO())
    show(results, console)
    text = console.export_text()
    assert "single_object" in text and "0.500" in text and "No overall" in text


def test_the_table_cuts_no_number_at_80_columns() -> None:
    measures = {"value": 1.0, "low": 1.0, "high": 1.0}
    tags = {"single_object": {"prompts": 1}, "color_attribution": {"prompts": 1}}
    arm = {"unscored": 0, "measures": {"correct": {"overall": measures, "tags": dict.fromkeys(tags, measures)}}}
    difference = {"value": -0.5, "low": -1.0, "high": 0.25}
    suite = {
        **{"suite": "geneval", "title": "geneval", "medium": "images", "prompts": 1, "prompts_available": 72},
        **{"samples_per_prompt": 1, "primary": "correct", "tags": tags, "partial": True, "missing_tags": []},
        "arms": {"base": arm, "tuned": arm},
        "difference": {"correct": {"overall": difference, "tags": dict.fromkeys(tags, difference)}},
    }
    console = Console(width=80, record=True, file=io.StringIO())
    show({"suites": {"geneval": suite}}, console)
    text = console.export_text()
    assert text.startswith("geneval: 1 prompt, 1 image each\n") and "…" not in text
    assert text.count("1.000 [1.000,1.000]") == 6 and text.count("-0.500 [-1.000,+.250]") == 3
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())


def test_images_listed_in_a_file(tmp_path):
    folder = folder_of_images(tmp_path / "source")
    listed = tmp_path / "listed"
    listed.mkdir()
    lines = []
    for index, metadata in enumerate((CIRCLE, CROSS)):
        for sample in range(2):
            name = f"{index}-{sample}.png"
            (listed / name).write_bytes(sample_path(folder, index, sample).read_bytes())
            lines.append(json.dumps({"file": name, **metadata}))
    (listed / "prompts.jsonl").write_text("\n".join(lines))
    assert [len(entry.files) for entry in read_folder(listed)] == [2, 2]
    results = evaluate(str(listed), ["geneval"], tmp_path / "out")
    assert results["suites"]["geneval"]["arms"]["images"]["measures"]["correct"]["samples"]["value"] == 0.5


def test_images_with_a_line_of_text_each(tmp_path):
    for name, level in (("b.png", 0.2), ("a.png", 0.1), ("10.jpg", 0.3)):
        write_image(tmp_path / name, torch.full((3, 8, 8), level))
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\ntwo\n")
    entries = read_folder(tmp_path)
    named = [(entry.metadata["prompt"], [path.name for path in entry.files]) for entry in entries]
    assert named == [("one", ["10.jpg"]), ("two", ["a.png", "b.png"])] and is_image_folder(tmp_path)
    (tmp_path / "prompts.txt").write_text("o\u2028ne\r\n\r\nt\x0cwo\r\ntwo\r\n", newline="")
    assert [entry.metadata["prompt"] for entry in read_folder(tmp_path)] == ["o\u2028ne", "t\x0cwo", "two"]
    (tmp_path / "b.png").unlink()
    with pytest.raises(UserError, match="has 3 prompts for 2 images; give a line for each"):
        read_folder(tmp_path)
    for path in tmp_path.glob("*.*g"):
        path.unlink()
    assert not is_image_folder(tmp_path), "a model's folder may hold prompts of its own"


def test_a_correct_world_scores_one(tmp_path):
    rng = random.Random(0)
    rows = world_prompts("test")
    images = render([random_scene(row, rng) for row in rows])
    for index, (row, image) in enumerate(zip(rows, images, strict=True)):
        write_text(tmp_path / f"in/{index:05d}" / "metadata.jsonl", json.dumps(row))
        write_image(sample_path(tmp_path / "in", index, 0), image)
    suite = evaluate(str(tmp_path / "in"), ["geneval"], tmp_path / "out")["suites"]["geneval"]
    assert not suite["partial"] and not suite["missing_tags"]
    assert suite["arms"]["images"]["measures"]["correct"]["overall"]["value"] >= 0.98


@pytest.mark.parametrize(
    "breakage, message",
    [
        (lambda f: (f / "00000/metadata.jsonl").write_text("not json"), "line 1 is not JSON"),
        (lambda f: (f / "00001/samples/0001.png").write_bytes(b"junk"), "not a readable image"),
        (lambda f: [p.unlink() for p in (f / "00000/samples").iterdir()], "has no images"),
        (lambda f: write_image(sample_path(f, 0, 1), torch.zeros(3, 8, 8)), "differ in size"),
        (
            lambda f: (f / "00000/metadata.jsonl").write_text('{"prompt": "a dog"}'),
            "'include' should be a list",
        ),
    ],
)
def test_damaged_folders_are_named(tmp_path, breakage, message):
    folder = folder_of_images(tmp_path / "images")
    breakage(folder)
    with pytest.raises(UserError, match=message):
        evaluate(str(folder), ["geneval"], tmp_path / "out")


def test_user_mistakes(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no waiting for a hub
    folder = str(folder_of_images(tmp_path / "images"))
    with pytest.raises(UserError, match="did you mean 'geneval'"):
        evaluate(folder, ["genevl"], tmp_path / "out")
    with pytest.raises(UserError, match="at least 1 sample"):
        evaluate(folder, ["geneval"], tmp_path / "out", samples=0)
    with pytest.raises(UserError, match="not a run"):
        evaluate(folder, ["rewards"], tmp_path / "out")
    with pytest.raises(UserError, match=r"'runs/misspelt' is not on this machine, .* or give a folder that is here"):
        evaluate("runs/misspelt", ["geneval"], tmp_path / "out")
    with pytest.raises(UserError, match="did you mean 'shapes'"):
        evaluate("shape", ["geneval"], tmp_path / "out")
    with pytest.raises(UserError, match="is none of"):
        evaluate(str(tmp_path), ["geneval"], tmp_path / "out")


def test_format_of_estimates():
    assert format_estimate({"value": 0.4123, "low": 0.38, "high": 0.444}) == "0.412 [.380, .444]"
    assert format_estimate({"value": -0.1, "low": -0.2, "high": 0.1}, signed=True) == "-0.100 [-.200, +.100]"
    assert format_estimate({"value": 10.5, "low": 10.25, "high": 20.5}) == "10.500 [10.250, 20.500]"
    assert format_estimate(None) == "-"


# --- making images ---------------------------------------------------------------------------------------------------

PROMPTS = [Prompt(text, index, {"tag": "a"}) for index, text in enumerate(("one", "two", "three"))]


class Opener:
    """Loads a toy model and counts how often."""

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        return TinyFlow(torch.eye(4), prompts=[prompt.text for prompt in PROMPTS])


def make(folder, opener, chosen=(0, 1, 2), samples=2, seed=7, steps=3, display=None):
    source = SampleSource(opener, FlowSampler(steps=steps), seed, {"model": "tiny"})
    entries = complete_samples(source, PROMPTS, chosen, samples, folder, display=display)
    return {str(path.relative_to(folder)): path.read_bytes() for entry in entries for path in entry.files}


def test_images_do_not_depend_on_batch_or_company(tmp_path, monkeypatch):
    together = make(tmp_path / "a", Opener())
    monkeypatch.setattr("flowrl.evaluation.generation.BATCH_IMAGES", 1)
    alone = make(tmp_path / "b", Opener())
    assert together == alone and len(set(together.values())) == 6
    one = make(tmp_path / "c", Opener(), chosen=[1], samples=1)
    assert one == {"00001/samples/0000.png": together["00001/samples/0000.png"]}
    assert make(tmp_path / "d", Opener(), seed=8).values() != together.values()


def test_generation_resumes_and_notices_other_settings(tmp_path):
    opener = Opener()
    first = make(tmp_path, opener)
    (tmp_path / "00001/samples/0001.png").unlink()
    kept = (tmp_path / "00000/samples/0000.png").stat().st_mtime_ns
    assert make(tmp_path, opener) == first and opener.count == 2
    assert (tmp_path / "00000/samples/0000.png").stat().st_mtime_ns == kept
    assert make(tmp_path, opener) == first and opener.count == 2  # nothing missing: not even loaded
    more = make(tmp_path, opener, samples=3)
    assert {name: more[name] for name in first} == first and len(more) == 9
    assert (tmp_path / "00000/samples/0000.png").stat().st_mtime_ns == kept
    other = make(tmp_path, opener, steps=5)
    assert other.keys() == first.keys() and all(other[name] != first[name] for name in first)
    assert not (tmp_path / "00000/samples/0002.png").exists()  # of the old settings


def test_images_of_strangers_are_left_alone(tmp_path):
    folder = folder_of_images(tmp_path)
    before = sample_path(folder, 0, 0).read_bytes()
    with pytest.raises(UserError, match=r"without a manifest\.json"):
        make(folder, Opener())
    assert sample_path(folder, 0, 0).read_bytes() == before


def test_non_finite_images_stop_with_a_reason(tmp_path):
    def broken():
        policy = Opener()()
        policy.means = policy.means * math.nan
        return policy

    with pytest.raises(UserError, match="non-finite"):
        make(tmp_path, broken)


def test_rewards_that_cannot_score_are_counted_and_their_versions_told():
    spec = RewardConfig(use="ocr", on_error={"then": "raise"})  # what training does with a NaN
    suite = reward_suite("rewards", [Prompt("no quotes", 0)], "x", [spec, RewardConfig(use="jpeg_compressibility")])
    scores = suite.score(Samples([Prompt("no quotes", 0)] * 2, torch.rand(2, 3, 32, 32)))
    suite.close()
    assert scores.measures["ocr"].isnan().all() and scores.measures["total"].isnan().all()
    assert bool((scores.measures["jpeg_compressibility"] < 0).all())
    assert suite.version.startswith("1:ocr=ocr:rapidocr-") and ":jpeg_compressibility=jpeg_compr" in suite.version


# --- a run, before and after -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on the shapes world whose checkpoint holds visibly changed weights."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    config = Config.of(
        {
            "name": "tiny",
            "model": {"path": "shapes", "lora": {"rank": 2, "alpha": 4}},
            "algorithm": "flow_grpo",
            "rewards": ["shapes", {"use": "shapes", "name": "watched", "weight": 0.5}],
            "train": {"iterations": 1},
            "eval": {"sampling_steps": 3, "guidance": 1.0, "weights": "live"},
        }
    )
    write_text(path / "config.yaml", config.to_yaml())
    policy = open_policy(config)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1
    tensors = {f"weights/{name}": value for name, value in policy.weights.state().items()}
    metrics = {"eval/reward/mean": 0.1}
    checkpoint.save(path / "checkpoints", 1, tensors, {}, {}, metrics, best="eval/reward/mean")
    return path


def pixels(path):
    """What a picture shows, without the settings in its header."""
    with Image.open(path) as picture:
        return picture.tobytes()


@pytest.mark.slow
def test_a_run_is_judged_before_and_after(run, tmp_path):
    results = evaluate(str(run), ["geneval", "rewards"], tmp_path, samples=1, limit=6)
    base, tuned = (tmp_path / arm / "shapes-test/00000/samples/0000.png" for arm in ("base", "tuned"))
    assert pixels(base) != pixels(tuned)
    manifest = results["manifest"]
    assert (manifest["steps"], manifest["guidance"]) == (3, 1.0)  # the run's own
    assert manifest["arms"]["tuned"]["checkpoint"] == "step_000001"
    suite = results["suites"]["rewards"]
    assert suite["primary"] == "total" and suite["partial"] and not suite["missing_tags"]
    for arm in suite["arms"].values():
        values = {name: found["samples"]["value"] for name, found in arm["measures"].items()}
        assert values["total"] == pytest.approx(values["shapes"] + 0.5 * values["watched"])
    values = [suite["arms"][arm]["measures"]["total"]["overall"]["value"] for arm in ("base", "tuned")]
    assert suite["difference"]["total"]["overall"]["value"] == pytest.approx(values[1] - values[0])
    alone = evaluate("shapes", ["geneval"], tmp_path / "alone", samples=1, limit=6, steps=3, guidance=1.0)
    assert alone["kind"] == "model"
    made = tmp_path / "alone/model/shapes-test/00000/samples/0000.png"
    assert pixels(made) == pixels(base)  # equal seeds, so a run's base is the base


@pytest.mark.slow
def test_a_lora_of_diffusers_is_judged_on_the_model_it_names_or_is_given(run, tmp_path):
    lora, bare = tmp_path / "lora", tmp_path / "bare"
    export_policy(policy_of_run(run, "latest"), lora, "diffusers")
    bare.mkdir()
    save_file(load_file(lora / FILE), bare / FILE)  # as most files on the hub: no header, so alpha is the rank
    options = {"samples": 1, "limit": 1, "steps": 3, "guidance": 1.0}
    evaluate(str(lora), ["geneval"], tmp_path / "own", **options)
    evaluate(str(bare), ["geneval"], tmp_path / "given", model="shapes", **options)
    evaluate(str(run), ["geneval"], tmp_path / "run", samples=1, limit=1)
    made = {
        (name, arm): pixels(next((tmp_path / name / arm).rglob("*.png")))
        for name in ("own", "given", "run")
        for arm in ("base", "tuned")
    }
    assert made["own", "base"] == made["given", "base"] == made["run", "base"]
    assert made["own", "tuned"] == made["run", "tuned"] != made["own", "base"], "at the strength it was trained with"
    assert made["given", "tuned"] not in (made["own", "tuned"], made["own", "base"]), "half of alpha = 2 rank"
    with pytest.raises(UserError, match="does not say which model it adapts; name it with --model"):
        evaluate(str(bare), ["geneval"], tmp_path / "none", **options)
    with pytest.raises(UserError, match="only a LoRA folder needs to be told its model"):
        evaluate("shapes", ["geneval"], tmp_path / "none", model="shapes", **options)
    (bare / FILE).unlink()
    save_file({"lora_unet_down.lora_down.weight": torch.zeros(2, 3)}, bare / FILE)
    with pytest.raises(UserError, match=r"no LoRA of the transformer.*kohya.s names of another model"):
        evaluate(str(bare), ["geneval"], tmp_path / "none", model="shapes", **options)


@pytest.mark.slow
def test_a_checkpoint_path_means_its_run(run, tmp_path):
    by_path = evaluate(str(run / "checkpoints/step_000001"), ["geneval"], tmp_path, samples=1, limit=1, base=False)
    assert by_path["kind"] == "run" and list(by_path["suites"]["geneval"]["arms"]) == ["tuned"]
    assert by_path["suites"]["geneval"]["arms"]["tuned"]["measures"]["correct"]["overall"] is None

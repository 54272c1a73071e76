"""The self-test of a detector: honest detectors pass, and every planted fault is found before anything is scored."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

import flowrl.detection.mask2former as module
from flowrl.detection.drawings import COLORS, SIDE, drawings, flat
from flowrl.detection.evaluator import Evaluator, load
from flowrl.detection.mask2former import Mask2Former
from flowrl.detection.objects import OBJECTS, Detection
from flowrl.detection.self_test import Check, Judge, Known, deviation, overlap, self_test
from flowrl.errors import UserError
from flowrl.evaluation import evaluate
from flowrl.evaluation.self_test import check_judges, remembered
from flowrl.evaluation.suites import find, geneval
from flowrl.evaluation.table import notes
from flowrl.evaluation.target import Target
from flowrl.records.sample_files import sample_path, write_image, write_text
from flowrl.runtime.display import Display
from tests.tiny_detector import quick, save_mask2former, taught
from tests.tiny_scorers import pictures, save_clip

NAMES, PIXELS = drawings()
Found = list[list[Detection]]


class Oracle:
    """Knows the drawings, and is a little unsure of everything else."""

    version = "oracle"

    def __init__(self, labels: Sequence[str] = OBJECTS, fault: Callable[[Tensor, Found], Found] | None = None) -> None:
        self.labels, self.fault = labels, fault

    def candidates(self, pixels: Tensor) -> Found:
        found = [self._one(image) for image in pixels]
        return self.fault(pixels, found) if self.fault else found

    def __call__(self, pixels: Tensor) -> Found:
        return [[one for one in found if one.score > 0.3] for found in self.candidates(pixels)]

    def _one(self, image: Tensor) -> list[Detection]:
        known = [name for name, drawing in zip(NAMES, PIXELS, strict=True) if torch.equal(image, drawing)]
        level = float(image.float().mean()) / 2550
        height, width = image.shape[-2:]
        rest = Detection("dog", 0.1 + level, (0.0, 0.0, width - 4.0, height - 4.0))
        return [*(Detection(name, 0.9, (40.0, 40.0, width - 40.0, height - 40.0)) for name in known), rest]


class Eyes:
    """Names a flat colour by the nearest of the ten."""

    version = "eyes"

    def __init__(self, swapped: bool = False, **mistaken: str) -> None:
        self.swapped, self.mistaken = swapped, mistaken

    def __call__(self, image: Tensor, detections: Sequence[Detection]) -> list[str]:
        seen = image.float().mean(dim=(1, 2))
        seen = seen.flip(0) if self.swapped else seen
        name = min(COLORS, key=lambda color: float((torch.tensor(COLORS[color]) - seen).norm()))
        return [self.mistaken.get(name, name) for _ in detections]


def judge(fault: Callable[[Tensor, Found], Found] | None = None, **more: Any) -> Judge:
    detector = Oracle(more.pop("labels", OBJECTS), fault)
    return Judge(Evaluator(detector, more.pop("colors", Eyes())), detector.candidates)


def verdicts(checks: Sequence[Check]) -> dict[str, bool | None]:
    return {check.name: check.passed for check in checks}


def scaled(factor: Callable[[Tensor], float]) -> Callable[[Tensor, Found], Found]:
    """Scores times a number that depends on the batch."""

    def fault(pixels: Tensor, found: Found) -> Found:
        return [[replace(one, score=one.score * factor(pixels)) for one in some] for some in found]

    return fault


def shifted(by: int) -> Callable[[Tensor, Found], Found]:
    def fault(_: Tensor, found: Found) -> Found:
        return [[replace(one, label=OBJECTS[(OBJECTS.index(one.label) + by) % 80]) for one in some] for some in found]

    return fault


def test_an_honest_detector_passes_every_check() -> None:
    checks = self_test(judge(), "float32", judge)
    names = ["classes", "numbers", "finds", "differs", "repeated", "batch", "labels", "device", "colors"]
    assert verdicts(checks) == dict.fromkeys(names, True)
    words = {check.name: check.found for check in checks}
    assert words["labels"].startswith("5 of 5 drawings are recognised (stop sign: stop sign 0.90")


def test_one_that_recognises_no_drawing_is_undecided_not_refused() -> None:
    """Drawings are no photographs: a detector may see a dog, or nothing with confidence."""
    weak = self_test(judge(scaled(lambda _: 0.2)), "float32")
    dog = self_test(judge(dogs), "float32")
    for checks in (weak, dog):
        assert verdicts(checks)["labels"] is None and all(c.passed for c in checks if c.name != "labels")


def dogs(pixels: Tensor, found: Found) -> Found:
    """A confident dog in every picture, of another size in each."""
    edges = (pixels.float().flatten(1).std(dim=1) * 4).tolist()
    return [[Detection("dog", 0.9, (0.0, 0.0, 380.0, min(380.0, edge)))] for _, edge in zip(found, edges, strict=True)]


def once_more() -> Callable[[Tensor, Found], Found]:
    calls = [0]

    def fault(pixels: Tensor, found: Found) -> Found:
        calls[0] += 1
        return scaled(lambda _: 1 - 0.1 * calls[0])(pixels, found)

    return fault


def box(_: Tensor, found: Found) -> Found:
    return [[replace(one, box=(0.0, 0.0, SIDE + 1.0, 5.0)) for one in some] for some in found]


FAULTS: dict[str, tuple[Callable[[Tensor, Found], Found], str, str]] = {
    "all zero": (scaled(lambda _: 0.0), "finds", "the best score is 0.0000"),
    "nothing at all": (
        lambda _, found: [[] for _ in found],
        "finds",
        "0.0000, of a detector that knows nothing 0.0123",
    ),
    "constant": (lambda _, found: [found[0][-1:] for _ in found], "differs", "4 of 4 further pictures"),
    "not finite": (scaled(lambda _: float("nan")), "numbers", "a score of nan"),
    "box outside": (box, "numbers", r"a box \(0.0, 0.0, 385.0, 5.0\) in a picture of 384x384"),
    "by batch": (scaled(lambda pixels: 1 - 0.05 * len(pixels)), "batch", "in a batch and alone: scores differ by"),
    "by chance": (once_more(), "repeated", "of the same picture, asked again: scores differ by"),
    "one class on": (shifted(1), "labels", r"5 are \+1 classes off, so the list of classes is shifted"),
    "one class back": (shifted(-1), "labels", "5 are -1 classes off"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str) -> None:
    fault, check, words = FAULTS[name]
    checks = {one.name: one for one in self_test(judge(fault), "float32")}
    assert checks[check].passed is False
    assert re.search(words, checks[check].found), checks[check].found


def test_faults_of_the_list_of_classes_the_device_and_the_colours() -> None:
    assert verdicts(self_test(judge(labels=(*OBJECTS[1:], "sky")), "float32"))["classes"] is False
    assert verdicts(self_test(judge(labels=OBJECTS[:79]), "float32"))["classes"] is False
    here = self_test(judge(), "float32", lambda: judge(scaled(lambda _: 0.9)))
    assert verdicts(here) | {"device": True} == dict.fromkeys(verdicts(here), True) and not verdicts(here)["device"]
    half = self_test(judge(), "bfloat16", lambda: judge(scaled(lambda _: 0.95)))
    assert verdicts(half)["device"] is True  # what bfloat16 rounds
    missing = self_test(judge(), "float32", lambda: judge(lambda _, found: [some[1:] for some in found]))
    assert "an object is missing" in {check.name: check.found for check in missing}["device"]
    swapped = {check.name: check for check in self_test(judge(colors=Eyes(swapped=True)), "float32")}["colors"]
    assert swapped.passed is False and "red is called blue" in swapped.found


@pytest.mark.parametrize(
    ("mistaken", "passed"),
    [
        ({"red": "pink"}, False),
        ({"pink": "red", "orange": "yellow", "brown": "orange"}, True),
        ({"pink": "red", "orange": "yellow", "brown": "orange", "purple": "blue"}, False),
    ],
)
def test_a_few_colours_may_be_mistaken_but_not_red_or_blue(mistaken: dict[str, str], passed: bool) -> None:
    assert verdicts(self_test(judge(colors=Eyes(**mistaken)), "float32"))["colors"] is passed


def test_pictures_of_the_users_decide() -> None:
    stop = {"tag": "single_object", "include": [{"class": "stop sign", "count": 1}], "prompt": "a stop sign"}
    known = [Known(Path(f"{name}.png"), image, stop) for name, image in zip(NAMES, PIXELS, strict=True)]
    right = self_test(judge(), "float32", known=known[:2])[-1]
    assert right.passed and right.found == "1 of 2 are judged right (wrong: clock.png)"
    assert self_test(judge(), "float32", known=known[:3])[-1].passed is False


def test_the_distance_of_two_answers() -> None:
    one = Detection("dog", 0.8, (0.0, 0.0, 100.0, 100.0))
    assert deviation([one], [replace(one, score=0.75, box=(0.0, 0.0, 100.0, 95.0))]) == pytest.approx(0.05)
    assert deviation([one], [replace(one, box=(50.0, 0.0, 150.0, 100.0))]) == 1.0
    assert deviation([one], [replace(one, label="cat")]) == 1.0
    assert deviation([one], [one, replace(one, score=0.39, label="cat")]) == 0.0  # less than half of the best
    more = [one, replace(one, label="cat")]
    assert deviation([one], more) == deviation(more, [one]) == 1.0
    assert deviation([], []) == 0.0
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7) and overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0.0


def test_a_passed_test_is_remembered_a_failed_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path))
    runs: list[int] = []

    def run(passed: bool | None) -> Callable[[], list[Check]]:
        return lambda: [runs.append(1) or Check("finds", passed, "x")]

    remembered({"judge": "a"}, False, run(False))
    assert remembered({"judge": "a"}, False, run(None))[0].passed is None and len(runs) == 2
    assert remembered({"judge": "a"}, False, run(True))[0].passed is None and len(runs) == 2  # from memory
    assert remembered({"judge": "a", "device": "cuda:0"}, False, run(True))[0].passed and len(runs) == 3
    assert remembered({"judge": "a"}, True, run(True))[0].passed and len(runs) == 4
    next(iter((tmp_path / "self_tests").iterdir())).write_text("cut")
    remembered({"judge": "a"}, False, run(True))
    remembered({"judge": "a", "device": "cuda:0"}, False, run(True))
    assert len(runs) == 5


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    detector, clip = tmp_path_factory.mktemp("detector"), tmp_path_factory.mktemp("clip")
    taught(quick(save_clip(clip)))
    return {"detector": str(save_mask2former(detector)), "clip": str(clip), "device": "cpu"}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    original = module.input_size
    monkeypatch.setattr(module, "input_size", lambda height, width, *_: original(height, width, 64, 107))
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path / "cache"))


@dataclass(frozen=True)
class Judged:
    """A suite with a self-test."""

    passed: bool | None
    name: str = "geneval"
    title: str = "geneval[oracle]"

    def self_test(self, afresh: bool) -> list[Check]:
        return [Check("finds", True, "much"), Check("batch", self.passed, f"asked afresh: {afresh}")]


def test_a_failed_check_is_an_error_that_names_it() -> None:
    display: Any = Display(console=Console(quiet=True))
    suites: Any = [Judged(None)]
    assert check_judges(suites, False, display)["geneval"]["checks"][1]["passed"] is None
    with pytest.raises(
        UserError, match=r"geneval\[oracle\] fails its self-test, .*: batch \(asked afresh: True\); give"
    ):
        check_judges([*suites, Judged(False)], True, display)
    with pytest.raises(UserError, match="--self-test: none of the suites has one"):
        check_judges([], True, display)
    assert check_judges([], False, display) == {}


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_mask2former_passes_and_without_its_weights_does_not(weights: dict[str, str]) -> None:
    evaluator = load(weights["detector"], weights["clip"], device="cpu")
    assert isinstance(evaluator.detector, Mask2Former)
    checks = verdicts(self_test(Judge(evaluator, evaluator.detector.candidates), "float32"))
    assert all(passed is not False for passed in checks.values()) and checks["batch"] and checks["colors"]
    with torch.no_grad():
        for parameter in evaluator.detector.model.parameters():
            parameter.zero_()
    assert verdicts(self_test(Judge(evaluator, evaluator.detector.candidates), "float32"))["finds"] is False
    with torch.no_grad():
        for parameter in evaluator.detector.model.parameters():
            parameter.fill_(torch.nan)
    assert verdicts(self_test(Judge(evaluator, evaluator.detector.candidates), "float32"))["finds"] is False


METADATA = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}


def folder_of(path: Path) -> str:
    write_text(path / "00000/metadata.jsonl", json.dumps(METADATA))
    write_image(sample_path(path, 0, 0), pictures(1)[0])
    return str(path)


class Copied(Mask2Former):
    """An oracle in the detector's clothes, weaker by ``factor``."""

    def __init__(self, factor: float) -> None:
        self.labels, self.version, self._oracle = OBJECTS, "copied", Oracle(fault=scaled(lambda _: factor))

    def candidates(self, pixels: Tensor) -> Found:
        return self._oracle.candidates(pixels)


@pytest.mark.parametrize(("elsewhere", "passed"), [(1.0, True), (0.9, False)])
def test_on_an_accelerator_the_same_weights_are_opened_on_the_cpu(
    elsewhere: float, passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path))
    monkeypatch.setattr(geneval, "device_and_dtype", lambda device, dtype: (torch.device("cuda", 0), torch.float32))
    opened: list[str | None] = []

    def open_one(options: geneval.GenEvalOptions) -> Evaluator:
        opened.append(options.device)
        return Evaluator(Copied(elsewhere if options.device == "cpu" else 1.0), Eyes())

    monkeypatch.setattr(geneval, "_evaluator", open_one)
    (suite,) = find(["geneval"], Target("somewhere/model", "model"))
    assert isinstance(suite, geneval.DetectedGenEval)
    checks = verdicts(suite.self_test(False))
    assert checks["device"] is passed and opened == [None, "cpu"]
    suite.self_test(False)
    assert len(opened) == (2 if passed else 3)  # a failed test is not remembered


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_judge_that_fails_scores_nothing(
    weights: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, options = folder_of(tmp_path / "images"), {"geneval": weights}
    suite = evaluate(folder, ["geneval"], tmp_path / "out", options=options, self_test=True)["suites"]["geneval"]
    assert suite["self_test"]["afresh"] and {c["name"]: c["passed"] for c in suite["self_test"]["checks"]}["finds"]
    assert any(note.startswith("Self-test, batch: passed; of a picture in a batch") for note in notes(suite))
    calls: list[int] = []
    original = Mask2Former._detect

    def silent(self: Mask2Former, pixels: Tensor, least: float) -> Found:
        calls.append(len(pixels))
        return [[replace(one, score=0.0) for one in found] for found in original(self, pixels, least)]

    monkeypatch.setattr(Mask2Former, "_detect", silent)
    again = evaluate(folder, ["geneval"], tmp_path / "again", options=options)["suites"]["geneval"]
    assert not calls and not again["self_test"]["afresh"]  # passed before: remembered
    assert any(note.startswith("What judges has passed its self-test (8 checks") for note in notes(again))
    with pytest.raises(
        UserError, match=r"geneval-style\[mask2former\] fails its self-test, so nothing is scored: finds"
    ):
        evaluate(folder, ["geneval"], tmp_path / "fails", options=options, self_test=True)
    assert calls and not (tmp_path / "fails").exists()
    known = {"geneval": {**weights, "known": folder}}  # other facts: it is run
    with pytest.raises(UserError, match=r"finds \(the best score is 0\.0000"):
        evaluate(folder, ["geneval"], tmp_path / "fails", options=known)
    assert not (tmp_path / "fails").exists()
    with pytest.raises(UserError, match=r"--option geneval\.known: there is no folder"):
        evaluate(folder, ["geneval"], tmp_path / "fails", options={"geneval": {**weights, "known": "nowhere"}})
    with pytest.raises(UserError, match="--self-test: none of the suites has one"):
        evaluate("shapes", ["geneval"], tmp_path / "fails", self_test=True)


def test_flat_pictures_are_their_colours() -> None:
    assert flat("red", 3).shape == (3, 3, 3) and tuple(flat("red")[:, 0, 0].tolist()) == COLORS["red"]
    assert PIXELS.shape == (5, 3, SIDE, SIDE) and {*NAMES} <= {*OBJECTS}

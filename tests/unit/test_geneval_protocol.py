"""GenEval's rules on detections made by hand; every expected value is worked out from the protocol."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowrl.detection import COLORS, OBJECTS, Detection, Rules, check, keep, relations, to_color, verify
from flowrl.detection.evaluator import Evaluator, details, line
from flowrl.detection.prompts import generate, main, plural
from flowrl.detection.results import read_results, summary
from flowrl.errors import UserError
from flowrl.worlds.images.scenes import CLASSES, Scene, Thing
from flowrl.worlds.images.scenes import COLORS as PALETTE
from flowrl.worlds.shapes import verifier
from flowrl.worlds.shapes.prompts import prompts as shapes_prompts
from flowrl.worlds.shapes.scenes import random_scene, render

BOX = (10.0, 10.0, 30.0, 30.0)


def seen(label: str, score: float = 0.95, box: tuple = BOX, color: str | None = None) -> Detection:
    return Detection(label, score, box, color=color)


def ask(tag: str, *include: dict[str, Any], exclude: list | None = None) -> dict[str, Any]:
    row = {"tag": tag, "include": list(include), "prompt": f"a photo ({tag})"}
    return row | ({"exclude": exclude} if exclude else {})


def noun(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


DOG = ask("single_object", noun("dog"))
PAIR = ask("two_object", noun("dog"), noun("cat"))
THREE = ask("counting", noun("dog", 3), exclude=[noun("dog", 4)])
RED = ask("colors", noun("car", color="red"))
LEFT = ask("position", noun("cat"), noun("dog", position=["left of", 0]))
ATTR = ask("color_attr", noun("car", color="red"), noun("bus", color="blue"))


@pytest.mark.parametrize(
    ("metadata", "found", "reasons"),
    [
        (DOG, [seen("dog")], []),
        (DOG, [seen("dog"), seen("dog"), seen("cat")], []),  # more is forgiven
        (DOG, [seen("cat")], ["expected dog>=1, found 0"]),
        (PAIR, [seen("cat"), seen("dog")], []),
        (PAIR, [seen("dog"), seen("dog")], ["expected cat>=1, found 0"]),
        (PAIR, [], ["expected dog>=1, found 0", "expected cat>=1, found 0"]),  # every clause is judged
        (THREE, [seen("dog")] * 3, []),
        (THREE, [seen("dog")] * 2, ["expected dog>=3, found 2"]),
        (THREE, [seen("dog")] * 4, ["expected dog<4, found 4"]),
        (THREE, [seen("dog")] * 17, ["expected dog<4, found 16"]),  # 16 objects of a class at most
        (RED, [seen("car", color="red")], []),
        (RED, [seen("car", color="pink")], ["expected red car>=1, found 0 red; and 1 pink"]),
        (ATTR, [seen("car", color="red"), seen("bus", color="blue")], []),
        (
            ATTR,
            [seen("car", color="blue"), seen("bus", color="red")],
            ["expected red car>=1, found 0 red; and 1 blue", "expected blue bus>=1, found 0 blue; and 1 red"],
        ),
        (LEFT, [seen("dog", box=(0, 0, 10, 10)), seen("cat", box=(30, 0, 40, 10))], []),
        (
            LEFT,
            [seen("dog", box=(30, 0, 40, 10)), seen("cat", box=(0, 0, 10, 10))],
            ["expected dog left of target, found right of target"],
        ),
        (LEFT, [seen("dog"), seen("cat")], ["expected dog left of target, found  target"]),  # same place
        (LEFT, [seen("dog")], ["expected cat>=1, found 0", "no target for dog to be left of"]),
        (LEFT, [seen("cat")], ["expected dog>=1, found 0"]),
    ],
)
def test_every_tag(metadata: dict[str, Any], found: list[Detection], reasons: list[str]) -> None:
    verdict = verify(found, metadata)
    assert list(verdict.reasons) == reasons
    assert verdict.correct is (not reasons)


def test_thresholds_are_exceeded_not_reached() -> None:
    assert not verify([seen("dog", 0.3)], DOG).correct
    assert verify([seen("dog", math.nextafter(0.3, 1))], DOG).correct
    two = ask("counting", noun("dog", 2), exclude=[noun("dog", 3)])
    sure, close = [seen("dog", 0.95)] * 2, seen("dog", 0.9)
    assert verify([*sure, close], two).correct  # the third is not sure enough to count
    assert verify([*sure, seen("dog", 0.901)], two).reasons == ("expected dog<3, found 3",)
    assert not verify([sure[0], close], two).correct
    assert verify([sure[0], close], {**two, "tag": "two_object", "exclude": []}).correct  # 0.3 outside of counting
    assert verify([seen("dog", 0.2)], DOG, Rules(threshold=0.1)).correct


def test_only_the_most_confident_are_judged() -> None:
    blue, red = seen("car", 0.9, color="blue"), seen("car", 0.8, color="red")
    assert verify([red, blue], RED).reasons == ("expected red car>=1, found 0 red; and 1 blue",)
    assert verify([blue, seen("car", 0.91, color="red")], RED).correct
    two = ask("colors", noun("car", 2, color="red"))
    found = [red, seen("car", 0.7, color="red"), blue]
    assert verify(found, two).reasons == ("expected red car>=2, found 1 red; and 1 red, 1 blue",)
    far = seen("dog", 0.4, (80, 0, 90, 10))
    near = seen("dog", 0.9, (0, 0, 10, 10))
    assert verify([far, near, seen("cat", box=(40, 0, 50, 10))], LEFT).correct


def test_colors_are_asked_only_of_what_decides() -> None:
    cars = [seen("car", 0.9), seen("car", 0.8), seen("bus", 0.9), seen("dog", 0.9)]
    assert to_color(keep(cars, ATTR), ATTR) == [cars[0], cars[2]]
    assert to_color(keep(cars[2:], ATTR), ATTR) == [cars[2]]  # too few cars: their colour decides nothing
    assert to_color(keep(cars, DOG), DOG) == []
    with pytest.raises(ValueError, match="colour of 'car' decides"):
        verify(cars, RED)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 50, 20, 70), ["left of"]),  # centres (10, 60) and (60, 60)
        ((100, 50, 120, 70), ["right of"]),
        ((50, 0, 70, 20), ["above"]),  # y grows downward
        ((50, 100, 70, 120), ["below"]),
        ((10, 10, 30, 30), ["left of", "above"]),  # the diagonal is both: 36 / 56.6 = 0.64 on each axis
        ((50, 50, 70, 70), []),  # the same centre
        # offset (4, 0), sizes 20 + 20: 0.1 * 40 = 4 is taken away, nothing is left
        ((54, 50, 74, 70), []),
        # offset (7, 0): 3 of 7 remain, 0.43 is not beyond 1/2; of (9, 0) remain 5 of 9
        ((57, 50, 77, 70), []),
        ((59, 50, 79, 70), ["right of"]),
        ((58, 50, 78, 70), []),  # offset 8: 4 of 8 is 1/2, not beyond
        # offset (-50, -40): (46, 36) / 64.03 = (0.72, 0.56); (-50, -36): (46, 32) / 61.6 = (0.75, 0.52)
        ((0, 10, 20, 30), ["left of", "above"]),
        ((0, 14, 20, 34), ["left of", "above"]),
        ((0, 20, 20, 40), ["left of"]),  # (-50, -30): 26 / 58.3 = 0.45
    ],
)
def test_the_position_rule(box: tuple, expected: list[str]) -> None:
    assert relations(box, (50, 50, 70, 70)) == expected


def test_the_position_margin_grows_with_the_boxes() -> None:
    # offset 30, widths 200 + 100: 0.1 * 300 = 30, nothing is left; a margin of 0 leaves all
    wide, other = (0, 0, 200, 10), (80, 0, 180, 10)
    assert relations(other, wide) == []
    assert relations(other, wide, margin=0) == ["right of"]


def test_every_pair_must_be_placed() -> None:
    wanted = ask("position", noun("cat"), noun("dog", 2, position=["left of", 0]))
    cat = seen("cat", box=(50, 0, 60, 10))
    left, right = seen("dog", 0.9, (0, 0, 10, 10)), seen("dog", 0.8, (90, 0, 100, 10))
    assert verify([cat, left, left], wanted).correct
    assert verify([cat, left, right], wanted).reasons == ("expected dog left of target, found right of target",)


def test_a_miscoloured_target_is_no_target() -> None:
    wanted = ask("position", noun("cat", color="black"), noun("dog", position=["left of", 0]))
    found = [seen("cat", box=(50, 0, 60, 10), color="white"), seen("dog", box=(0, 0, 10, 10))]
    verdict = verify(found, wanted)
    assert verdict.reasons == (
        "expected black cat>=1, found 0 black; and 1 white",
        "no target for dog to be left of",
    )
    assert verdict.score == pytest.approx((1 + 0 + 1 + 0) / 4)


def test_overlap_is_off_and_can_be_turned_on() -> None:
    # 10 x 10 boxes shifted by 5: sides of 11, the official extra pixel: 6 * 11 / (2 * 121 - 66) = 0.375
    first, second = seen("dog", 0.99, (0, 0, 10, 10)), seen("dog", 0.98, (5, 0, 15, 10))
    two = ask("counting", noun("dog", 2))
    assert verify([first, second], two).correct
    assert verify([first, second], two, Rules(max_overlap=0.376)).correct
    assert not verify([first, second], two, Rules(max_overlap=0.375)).correct


RELEASED = [
    # as evaluate_reward of DiffusionNFT 24af555 and of AWM's reward server, run outside on 20,000 random draws as well
    (THREE, [seen("dog")] * 7, -1 / 3),
    (DOG, [seen("dog")] * 3, -1.0),
    (LEFT, [seen("dog", box=(60, 10, 80, 30)), seen("cat")], (1 + 1 + 0 + 1) / 4),
    (LEFT, [seen("dog"), seen("cat", box=(60, 10, 80, 30))], 1.0),
    (LEFT, [seen("dog")], (0 + 1 + 0) / 3),  # no target: no 1 after it
    (RED, [seen("car", color="blue")], 0.5),
    (RED, [seen("car", color="red")] * 2, 0.0),
    (ATTR, [seen("car", color="red"), seen("bus", color="red")], 0.75),
]


@pytest.mark.parametrize(("metadata", "found", "score"), RELEASED)
def test_the_released_terms(metadata: dict, found: list, score: float) -> None:
    assert verify(found, metadata).released == pytest.approx(score)


@pytest.mark.parametrize(
    ("metadata", "found", "score", "strict"),
    [
        (DOG, [seen("dog")], 1.0, True),
        (DOG, [seen("dog")] * 2, 0.0, False),  # 1 - |2 - 1| / 1
        (DOG, [seen("dog")] * 9, 0.0, False),  # not negative
        (PAIR, [seen("dog")], 0.5, False),
        (THREE, [seen("dog")] * 2, 2 / 3, False),
        (THREE, [seen("dog")] * 4, 2 / 3, False),
        (RED, [seen("car", color="blue")], 0.5, False),
        (RED, [seen("car", color="red")] * 2, 0.0, False),  # the number is wrong: no credit for the colour
        (ATTR, [seen("car", color="red"), seen("bus", color="red")], 0.75, False),
        (LEFT, [seen("dog"), seen("cat")], 2 / 3, False),  # one term for a wrong position
        (LEFT, [seen("dog", box=(0, 0, 10, 10)), seen("cat", box=(30, 0, 40, 10))], 1.0, True),
        (LEFT, [seen("dog")], 1 / 3, False),
        (ask("x", noun("dog"), exclude=[noun("cat")]), [seen("dog"), seen("cat")], 0.5, False),
        (ask("x", noun("dog"), exclude=[noun("cat")]), [seen("dog")], 1.0, True),
    ],
)
def test_the_continuous_score(metadata: dict, found: list, score: float, strict: bool) -> None:
    verdict = verify(found, metadata)
    assert verdict.score == pytest.approx(score, abs=1e-12)
    assert verdict.strict is strict


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"prompt": "p"}, "'include' should be a list"),
        (ask("x", noun("dgo")), "knows no 'dgo'; did you mean 'dog'"),
        (ask("x", noun("dog", 0)), "count of 'dog' should be 1 or more, found 0"),
        (ask("x", noun("dog", color="rde")), "no color 'rde'; did you mean 'red'"),
        (ask("x", noun("dog", position=["left", 0])), "no relation 'left'"),
        (ask("x", noun("cat"), noun("dog", position=["left of", 1])), "earlier clause by its number, found 1"),
        (ask("x", noun("cat"), noun("dog", position="left of")), "like ..left of., 0., found 'left of'"),
        (ask("x", noun("dog"), exclude=[{"class": "cat"}]), "count of 'cat'"),
        (ask("x", {"count": 1}), "a clause should be like"),
    ],
)
def test_metadata_is_checked(metadata: dict, match: str) -> None:
    with pytest.raises(UserError, match=match):
        check(metadata, OBJECTS)


class Palette:
    """Reads the mean colour inside of the box; stands for the classifier."""

    version = "palette"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, image: torch.Tensor, detections: list[Detection]) -> list[str]:
        self.asked += [found.label for found in detections]
        return ["red" if image[0].float().mean() > image[2].float().mean() else "blue" for _ in detections]


class ShapesDetector:
    """The shapes world's exact reader as a detector: components, boxes and colours."""

    version, labels = "shapes", CLASSES

    def __call__(self, pixels: torch.Tensor) -> list[list[Detection]]:
        return [
            [Detection(one.shape, one.quality, one.box, color=one.color) for one in found if one.shape]
            for found in verifier.detect(pixels.float() / 255)
        ]


def scene(*things: tuple[str, str, float, float]) -> Scene:
    return Scene(tuple(Thing(shape, color, x, y, 4.8) for shape, color, x, y in things))


def test_rendered_scenes() -> None:
    red, blue, square = ("circle", "red", 8, 8), ("circle", "blue", 24, 24), ("square", "green", 24, 8)
    rules = Rules(counting_threshold=0.3)  # the reader's quality is no calibrated confidence
    cases = [
        (scene(red), ask("single_object", noun("circle")), True, True),
        (scene(red, blue), ask("single_object", noun("circle")), True, False),
        (scene(red, square), ask("two_object", noun("circle"), noun("square")), True, True),
        (scene(red, blue), ask("counting", noun("circle", 2), exclude=[noun("circle", 3)]), True, True),
        (scene(red, blue), ask("counting", noun("circle", 1), exclude=[noun("circle", 2)]), False, False),
        (scene(red), ask("colors", noun("circle", color="red")), True, True),
        (scene(red), ask("colors", noun("circle", color="blue")), False, False),
        (scene(red, square), ask("position", noun("square"), noun("circle", position=["left of", 0])), True, True),
        (scene(red, square), ask("position", noun("square"), noun("circle", position=["above", 0])), False, False),
        (
            scene(red, square),
            ask("color_attr", noun("circle", color="red"), noun("square", color="green")),
            True,
            True,
        ),
        (
            scene(red, square),
            ask("color_attr", noun("circle", color="green"), noun("square", color="red")),
            False,
            False,
        ),
    ]
    pixels = (render([case[0] for case in cases]) * 255).round().byte()
    findings = Evaluator(ShapesDetector(), None, rules)(pixels, [case[1] for case in cases])
    assert [(f.verdict.correct, f.verdict.strict) for f in findings] == [(case[2], case[3]) for case in cases]
    top = findings[7].kept
    assert top["circle"][0].box[0] < top["square"][0].box[0]


def test_the_shapes_world_and_the_protocol_agree_on_its_own_prompts() -> None:
    """Scenes drawn to satisfy the metadata are strictly right for both judges."""
    rows = shapes_prompts("test")
    generator = random.Random(3)
    pixels = (render([random_scene(row, generator) for row in rows]) * 255).round().byte()
    rules = Rules(counting_threshold=0.3)
    findings = Evaluator(ShapesDetector(), None, rules, tuple(PALETTE))(pixels, rows)
    strict, _ = verifier.score(pixels.float() / 255, rows)
    both = [(finding.verdict.strict, bool(other)) for finding, other in zip(findings, strict, strict=True)]
    assert sum(a != b for a, b in both) == 0 and sum(a for a, _ in both) >= 0.97 * len(rows)


def test_the_evaluator_asks_colors_and_writes_the_official_schema(tmp_path: Path) -> None:
    class Fixed:
        version, labels = "fixed", OBJECTS

        def __call__(self, pixels: torch.Tensor) -> list[list[Detection]]:
            found = [seen("car", 0.5, (1, 2, 3, 4)), seen("car", 0.8, (5, 6, 7, 8)), seen("dog", 0.2)]
            return [found for _ in pixels]

    colors = Palette()
    pixels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    pixels[0, 0], pixels[1, 2] = 200, 200
    findings = Evaluator(Fixed(), colors)(pixels, [RED, RED])
    assert [finding.verdict.correct for finding in findings] == [True, False]
    assert colors.asked == ["car", "car"]  # of each image only the most confident
    row = line("00000/samples/0000.png", RED, findings[1])
    assert list(row) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert row["correct"] is False and row["reason"] == "expected red car>=1, found 0 red; and 1 blue"
    assert json.loads(row["metadata"]) == RED
    assert json.loads(row["details"]) == {"car": [[5, 6, 7, 8, 0.8], [1, 2, 3, 4, 0.5]]}
    with pytest.raises(UserError, match="knows no 'dgo'"):
        Evaluator(Fixed(), colors)(pixels[:1], [ask("x", noun("dgo"))])
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(line(f"{i}.png", RED, f)) + "\n" for i, f in enumerate(findings)))
    read = read_results(file)
    assert [result.correct for result in read] == [True, False]
    assert details({"car": list(read[0].detections)}) == {"car": [[5, 6, 7, 8, 0.8], [1, 2, 3, 4, 0.5]]}


def official_lines(path: Path, correct: dict[str, list[list[bool]]]) -> Path:
    """Results as the official tool writes them: per tag a list of prompts, each a list of images."""
    rows = []
    for tag, prompts in correct.items():
        for number, images in enumerate(prompts):
            metadata = {"tag": tag, "include": [noun(OBJECTS[number])], "prompt": f"{tag} {number}"}
            for image, good in enumerate(images):
                rows.append(
                    {
                        "filename": f"out/{number:05d}/samples/{image:04d}.png",
                        "tag": tag,
                        "prompt": metadata["prompt"],
                        "correct": good,
                        "reason": "" if good else "expected x",
                        "metadata": json.dumps(metadata),
                        "details": json.dumps({OBJECTS[number]: [[0.0, 1.0, 20.0, 30.0, 0.97]]}),
                    }
                )
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_official_results_are_imported_and_summed_up(tmp_path: Path) -> None:
    file = official_lines(
        tmp_path / "results.jsonl",
        {"counting": [[True, False], [False, False], [True, True]], "position": [[True, False]]},
    )
    found = summary(read_results(file))
    assert found["images"] == 8 and found["prompts"] == 4
    assert found["tags"] == {"counting": 0.5, "position": 0.5}
    assert found["overall"] == 0.5 and found["image_accuracy"] == 0.5 and found["prompt_accuracy"] == 0.75
    uneven = official_lines(tmp_path / "b.jsonl", {"colors": [[True]], "counting": [[False] * 3]})
    assert summary(read_results(uneven))["overall"] == 0.5  # tags count equally, not images
    result = read_results(file)[0]
    assert result.detections == (Detection("person", 0.97, (0, 1, 20, 30)),)
    assert verify(result.detections, result.metadata).correct


def test_the_whole_benchmark_is_averaged_over_tags(tmp_path: Path) -> None:
    """553 prompts x 4: the overall is the mean of six tags of unequal sizes."""
    sizes = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
    right = {tag: [[i % (k + 2) == 0] * 4 for i in range(n)] for k, (tag, n) in enumerate(sizes.items())}
    rows = [
        json.dumps(
            dict(
                filename=f"{tag}/{i}/{j}.png",
                tag=tag,
                prompt=f"{tag} {i}",
                correct=good,
                reason="",
                metadata=json.dumps({"tag": tag, "include": [noun("dog")], "prompt": f"{tag} {i}"}),
                details="{}",
            )
        )
        for tag, prompts in right.items()
        for i, images in enumerate(prompts)
        for j, good in enumerate(images)
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(rows))
    found = summary(read_results(tmp_path / "r.jsonl"))
    shares = [math.ceil(n / (k + 2)) / n for k, n in enumerate(sizes.values())]
    assert found["images"] == 2212 and found["prompts"] == 553
    assert found["overall"] == pytest.approx(sum(shares) / 6, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "are empty"),
        ("{", "line 1: not JSON"),
        ('{"filename": "a"}', "'tag' is missing"),
        ("[1]", "not a GenEval result"),
    ],
)
def test_wrong_results_are_named(tmp_path: Path, text: str, match: str) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=match):
        read_results(file)
    with pytest.raises(UserError, match="do not exist"):
        read_results(tmp_path / "absent.jsonl")


def test_results_with_other_contents_are_named(tmp_path: Path) -> None:
    file = official_lines(tmp_path / "r.jsonl", {"counting": [[True]]})
    good = json.loads(file.read_text())
    for change, match in (
        ({"correct": 1}, "'correct' should be true or false"),
        ({"metadata": "{}"}, "'include' should be a list"),
        ({"metadata": "3"}, "'metadata' should be a JSON object"),
        ({"details": '{"dog": [[1, 2, 3]]}'}, "a box should be"),
        ({"details": "[]"}, "'details' should map"),
    ):
        file.write_text(json.dumps({**good, **change}))
        with pytest.raises(UserError, match=match):
            read_results(file)


def test_generated_prompts_follow_the_schema_and_the_seed() -> None:
    rows = generate(seed=5, per_tag=40)
    assert rows == generate(seed=5, per_tag=40) != generate(seed=6, per_tag=40)
    tags = [row["tag"] for row in rows]
    assert {tag: tags.count(tag) for tag in tags} == dict.fromkeys(
        ["single_object", "two_object", "counting", "colors", "position", "color_attr"], 40
    )
    assert len({row["prompt"] for row in rows}) == len(rows)
    for row in rows:
        check(row, OBJECTS)
        assert next(iter(row)) == "tag" and list(row)[-1] == "prompt"
        if row["tag"] == "counting":
            wanted = row["include"][0]
            assert 2 <= wanted["count"] <= 4
            assert row["exclude"] == [{"class": wanted["class"], "count": wanted["count"] + 1}]
        else:
            assert "exclude" not in row
        if row["tag"] in ("colors", "color_attr"):
            assert all(clause["color"] in COLORS and clause["class"] != "person" for clause in row["include"])
        if row["tag"] == "position":
            first, second = row["include"]
            assert "position" not in first and second["position"][1] == 0
            text = row["prompt"]
            assert text.index(second["class"]) < text.index(second["position"][0]) < text.rindex(first["class"])


def test_generated_prompts_leave_out_what_is_held_out() -> None:
    tested = [row["prompt"] for row in generate(seed=1, per_tag=30)]
    rows = generate(seed=2, per_tag=60, without=["dog", "tv remote"], deny=tested, weights={"position": 2, "colors": 0})
    assert not {row["prompt"] for row in rows} & set(tested)
    assert not any(clause["class"] in ("dog", "tv remote") for row in rows for clause in row["include"])
    tags = [row["tag"] for row in rows]
    assert tags.count("position") == 120 and tags.count("colors") == 0
    singles = {row["include"][0]["class"] for row in rows if row["tag"] == "single_object"}
    tested_singles = {text.removeprefix("a photo of ") for text in tested[:30]}
    assert len(singles) == 80 - len(tested_singles | {"a dog", "a tv remote"})  # all that are left
    with pytest.raises(UserError, match="no object 'dgo'; did you mean 'dog'"):
        generate(seed=0, per_tag=1, without=["dgo"])
    with pytest.raises(UserError, match="no tag 'positions'"):
        generate(seed=0, per_tag=1, weights={"positions": 1})
    with pytest.raises(UserError, match="2 objects are left"):
        generate(seed=0, per_tag=1, without=OBJECTS[2:])
    assert len([row for row in generate(seed=0, per_tag=90) if row["tag"] == "single_object"]) == 80


def test_plurals_are_english() -> None:
    names = {"bench": "benches", "knife": "knives", "sheep": "sheep", "person": "people", "bus": "buses"}
    names |= {"wine glass": "wine glasses", "computer mouse": "computer mice", "skis": "pairs of skis"}
    names |= {"couch": "couches", "tv": "tvs", "sandwich": "sandwiches", "toothbrush": "toothbrushes", "dog": "dogs"}
    assert {name: plural(name) for name in names} == names


def test_the_generator_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "train.jsonl"
    assert main(["--seed", "3", "--per-tag", "4", "--out", str(target)]) == 0
    assert [json.loads(text) for text in target.read_text().splitlines()] == json.loads(
        json.dumps(generate(seed=3, per_tag=4))
    )
    assert main(["--seed", "3", "--per-tag", "4", "--out", str(target)]) == 2
    assert "already exists" in capsys.readouterr().err
    other = tmp_path / "other.jsonl"
    assert main(["--seed", "3", "--per-tag", "4", "--deny", str(target), "--out", str(other)]) == 0
    texts = [{json.loads(text)["prompt"] for text in file.read_text().splitlines()} for file in (target, other)]
    assert not texts[0] & texts[1]
    odd = json.dumps({"prompt": "a\u2028b"}, ensure_ascii=False)  # JSON allows it inside a text; no line ends here
    target.write_text(target.read_text() + odd + "\n", encoding="utf-8")
    third = tmp_path / "third.jsonl"
    assert main(["--seed", "3", "--per-tag", "4", "--deny", str(target), "--out", str(third)]) == 0
    assert third.read_text() == other.read_text()


def test_masks_and_boxes_are_plain_data() -> None:
    mask = np.zeros((4, 4), bool)
    assert Image.fromarray(mask).mode == "1"  # the composite's mask has one bit, as in the official code

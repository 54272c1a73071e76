"""Mask2Former's post-processing and the colour classifier, each recomputed another way on tiny models from config."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from flowrl.detection import COLORS, OBJECTS, Detection, Rules
from flowrl.detection.colors import ClipColors, cut_out
from flowrl.detection.evaluator import Evaluator, load
from flowrl.detection.mask2former import Mask2Former, input_size, instances
from flowrl.errors import UserError
from flowrl.score import list_rewards, load_rewards
from flowrl.types import Prompt, Samples
from rewards.geneval import geneval
from tests.tiny_detector import quick, save_mask2former
from tests.tiny_scorers import as_pil, pictures, save_clip

SMALL = {"shortest": 64, "longest": 107, "least": 0.0}
LEAST = 0.004
"""Random weights are sure of nothing; above this there are a few dozen detections per image."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mask2former(tmp_path_factory.mktemp("mask2former"))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick(save_clip(tmp_path_factory.mktemp("clip")))


def quantised(images: Tensor) -> Tensor:
    return (images * 255).round().byte()


def slow_instances(classes: Tensor, masks: Tensor, padded: Any, size: Any, image: Any) -> list[tuple]:
    """mmdet's post-processing, pair by pair and pixel by pixel: (label, score, box, pixels)."""
    chances = torch.softmax(classes, -1)
    pairs = [(float(chances[q, c]), q, c) for q in range(len(classes)) for c in range(classes.shape[1] - 1)]
    found = []
    for chance, query, label in sorted(pairs, reverse=True)[:100]:
        large = F.interpolate(masks[query][None, None], padded, mode="bilinear", align_corners=False)[0, 0]
        exact = F.interpolate(large[None, None, : size[0], : size[1]], image, mode="bilinear", align_corners=False)[
            0, 0
        ]
        values = exact.tolist()
        pixels = [(x, y) for y in range(image[0]) for x in range(image[1]) if values[y][x] > 0]
        if not pixels:
            continue
        mean = sum(1 / (1 + math.exp(-values[y][x])) for x, y in pixels) / len(pixels)
        columns, rows = [x for x, _ in pixels], [y for _, y in pixels]
        box = (min(columns), min(rows), max(columns) + 1, max(rows) + 1)
        found.append((OBJECTS[label], chance * mean, box, len(pixels)))
    return sorted(found, key=lambda one: -one[1])


def test_instances_equal_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(2)
    classes = 3 * torch.randn(5, 81, generator=generator)
    coarse = torch.randn(5, 4, 5, generator=generator)
    masks = F.interpolate(4 * coarse[None], (8, 16), mode="bilinear")[0]
    masks[3] = -5.0  # a query with an empty mask
    padded, size, image = (32, 64), (27, 45), (18, 30)
    slow = slow_instances(classes, masks, padded, size, image)
    fast = instances(classes, masks, padded, size, image)
    assert len(fast) == len(slow) <= 100 and len(fast) > 40
    for one, (label, score, box, pixels) in zip(fast, slow, strict=True):
        assert one.label == label and one.box == box and one.mask.sum() == pixels and one.mask.shape == image
        assert one.score == pytest.approx(score, abs=1e-6)
    some = instances(classes, masks, padded, size, image, least=0.05)
    assert [one.score for one in some] == [one.score for one in fast if one.score > 0.05]


def test_a_mask_overlapping_two_classes_counts_twice_and_is_exact() -> None:
    """One query, two likely classes, a mask of known pixels: mean sigmoid, box and both labels by hand."""
    classes = torch.full((1, 81), -20.0)
    classes[0, 16], classes[0, 15] = math.log(0.6), math.log(0.4)
    masks = torch.full((1, 8, 8), -4.0)
    masks[0, 2:5, 1:7] = 2.0
    found = instances(classes, masks, (8, 8), (8, 8), (8, 8), least=0.1)
    sigmoid = 1 / (1 + math.exp(-2))
    assert [(one.label, one.box) for one in found] == [("dog", (1, 2, 7, 5)), ("cat", (1, 2, 7, 5))]
    assert [one.score for one in found] == pytest.approx([0.6 * sigmoid, 0.4 * sigmoid], abs=1e-6)
    assert found[0].mask.sum() == 18


def test_the_padding_is_cut_off_before_the_masks_are_resized() -> None:
    masks = torch.full((1, 8, 8), -4.0)
    masks[0, :, 6:] = 4.0  # only padding: columns 24 to 31 of a padded input that holds an image of 20
    classes = torch.full((1, 81), -20.0)
    classes[0, 0] = 5.0
    assert instances(classes, masks, (32, 32), (32, 20), (64, 40), least=0.1) == []
    assert instances(classes, masks, (32, 32), (32, 32), (64, 64), least=0.1)[0].box[0] >= 46


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (512, 512, (800, 800)),
        (1024, 1024, (800, 800)),
        (512, 1024, (667, 1333)),
        (768, 1344, (762, 1333)),
        (600, 800, (800, 1067)),
    ],
)
def test_input_sizes_are_those_of_the_recipe(height: int, width: int, expected: tuple[int, int]) -> None:
    assert input_size(height, width, 800, 1333) == expected


def by_hand(folder: Path, images: Tensor) -> tuple[Tensor, Tensor]:
    """The network's answer to images prepared with numpy and Pillow here: RGB, 64 at the short side, zeros to 32."""
    from transformers import Mask2FormerForUniversalSegmentation

    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    prepared = []
    for picture in as_pil(images):
        small = np.asarray(picture.resize((86, 64), Image.Resampling.BILINEAR), np.float32) / 255
        normal = (small - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        full = np.zeros((64, 96, 3))
        full[:64, :86] = normal
        prepared.append(torch.from_numpy(full.transpose(2, 0, 1)).float())
    with torch.no_grad():
        answer = model(pixel_values=torch.stack(prepared))
    return answer.class_queries_logits, answer.masks_queries_logits


def test_the_detector_equals_a_direct_computation_in_every_batch_size(detector_folder: Path) -> None:
    images = pictures(3, 40, 54)
    classes, masks = by_hand(detector_folder, images)
    slow = [slow_instances(c, m, (64, 96), (64, 86), (40, 54)) for c, m in zip(classes, masks, strict=True)]
    for batch_size in (1, 2, 3):
        found = Mask2Former(str(detector_folder), device="cpu", batch_size=batch_size, **SMALL)(quantised(images))
        assert [len(one) for one in found] == [len(one) for one in slow] and min(map(len, slow)) > 20
        for mine, other in zip(found, slow, strict=True):
            scores = [one[1] for one in other]
            assert [one.score for one in mine] == pytest.approx(scores, abs=1e-5)
            for one, (label, score, box, _) in zip(mine, other, strict=True):
                near = [o for o in other if abs(o[1] - score) < 1e-6]
                assert (one.label, one.box) in [(o[0], tuple(map(float, o[2]))) for o in near], (label, box)
    assert Mask2Former(str(detector_folder), device="cpu", **SMALL)(quantised(images)[:0]) == []


def test_the_detector_sees_red_as_red(detector_folder: Path) -> None:
    """Exchanging red and blue changes what it sees: the trap of the public reward servers."""
    detector = Mask2Former(str(detector_folder), device="cpu", **SMALL)
    images = pictures(1, 40, 54)
    classes, masks = by_hand(detector_folder, images)
    right = slow_instances(classes[0], masks[0], (64, 96), (64, 86), (40, 54))
    swapped = detector(quantised(images.flip(1)))[0]
    assert abs(detector(quantised(images))[0][0].score - right[0][1]) < 1e-5
    assert abs(swapped[0].score - right[0][1]) > 1e-4


def test_other_classes_and_other_weights_are_refused(detector_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(detector_folder, tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"]["3"] = "motorbike"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"does not detect COCO's 80 classes in their order \(found 'motorbike'\)"):
        Mask2Former(str(folder), device="cpu")
    with pytest.raises(UserError, match=r"needs a model of type mask2former, but .* holds 'clip'"):
        Mask2Former(str(clip_folder), device="cpu")
    with pytest.raises(UserError, match="neither a folder nor a name"):
        Mask2Former("nowhere", device="cpu")


def test_colors_equal_a_direct_computation(clip_folder: Path) -> None:
    from torchvision import transforms as T
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(clip_folder).eval()
    assert model.config.vision_config.hidden_act == "quick_gelu"
    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    image = quantised(pictures(1, 60, 70))[0]
    rng = np.random.default_rng(0)
    detections = [
        Detection("dog", 0.9, (3, 5, 50, 30), rng.random((60, 70)) > 0.4),
        Detection("cat", 0.8, (20, 2, 33, 58), rng.random((60, 70)) > 0.4),
        Detection("dog", 0.7, (0, 0, 70, 60), None),
        Detection("cat", 0.6, (10.4, 10.6, 40.5, 41.5), np.ones((60, 70), bool)),
    ]
    transform = T.Compose(
        [
            T.Resize(32, interpolation=T.InterpolationMode.BICUBIC),
            T.CenterCrop(32),
            T.ToTensor(),
            T.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    expected = torch.zeros(len(detections), len(COLORS))
    for row, found in enumerate(detections):
        pixels = image.permute(1, 2, 0).numpy().copy()
        if found.mask is not None:
            pixels[~found.mask] = 0x99
        crop = transform(Image.fromarray(pixels).crop(found.box))
        with torch.no_grad():
            seen = F.normalize(model.get_image_features(pixel_values=crop[None]).pooler_output, dim=-1)[0]
            for column, color in enumerate(COLORS):
                texts = [
                    f"a photo of a {color} {found.label}",
                    f"a photo of a {color}-colored {found.label}",
                    f"a photo of a {color} object",
                ]
                answers = [
                    model.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output for text in texts
                ]
                prototype = torch.stack([F.normalize(answer[0], dim=-1) for answer in answers]).mean(0)
                expected[row, column] = seen @ prototype / prototype.norm()
    for batch_size in (1, 3, 32):
        colors = ClipColors(str(clip_folder), device="cpu", batch_size=batch_size)
        found_cosines = colors.cosines(image, detections)
        torch.testing.assert_close(found_cosines, expected, rtol=0, atol=1e-5)
        assert colors(image, detections) == [COLORS[int(i)] for i in expected.argmax(1)]
    assert ClipColors(str(clip_folder), device="cpu")(image, []) == []


def test_only_the_object_is_looked_at(clip_folder: Path) -> None:
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    mask = np.zeros((40, 40), bool)
    mask[10:20, 10:20] = True
    found = Detection("dog", 0.9, (8, 8, 24, 24), mask)
    image[0, 10:20, 10:20] = 255
    around = image.clone()
    around[:, 20:, :] = 77  # outside of the mask: grey in both
    cut = cut_out(Image.fromarray(around.permute(1, 2, 0).numpy()), found)
    assert cut.size == (16, 16)
    assert cut.getpixel((0, 0)) == (0x99,) * 3 and cut.getpixel((5, 5)) == (255, 0, 0)
    assert cut.getpixel((5, 14)) == (0x99,) * 3
    colors = ClipColors(str(clip_folder), device="cpu")
    assert torch.equal(colors.cosines(image, [found]), colors.cosines(around, [found]))


def test_a_clip_without_quick_gelu_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = quick(shutil.copytree(clip_folder, tmp_path / "gelu"), "gelu")
    with pytest.raises(UserError, match=r"hidden_act quick_gelu, but .* states 'gelu' in its vision_config"):
        ClipColors(str(folder), device="cpu")


def test_quick_gelu_is_not_gelu(clip_folder: Path) -> None:
    """The activation is a part of the number: with the other one the cosines differ."""
    image = quantised(pictures(1, 40, 40))[0]
    found = Detection("dog", 0.9, (0, 0, 40, 40))
    colors = ClipColors(str(clip_folder), device="cpu")
    right = colors.cosines(image, [found])
    for layer in colors._clip.model.vision_model.encoder.layers:
        layer.mlp.activation_fn = torch.nn.GELU()
    assert float((colors.cosines(image, [found]) - right).abs().max()) > 1e-4


DOG = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
CAR = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}]}


def test_the_reward_is_the_judge_on_the_detector(
    detector_folder: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modes, batches, NaN and the metadata of prompts' columns; the detector's input is small to be quick."""
    import flowrl.detection.mask2former as module

    monkeypatch.setattr(module, "input_size", lambda height, width, *_: input_size(height, width, 64, 107))
    options = {"detector": str(detector_folder), "clip": str(clip_folder), "threshold": LEAST}
    images = pictures(3, 40, 54)
    evaluate = load(str(detector_folder), str(clip_folder), rules=Rules(LEAST), device="cpu")
    label = evaluate.detector(quantised(images[:1]))[0][0].label
    columns = [
        {"tag": "single_object", "include": [{"class": label, "count": 1}]},
        CAR,
        {"tag": "two_object", "include": [{"class": label, "count": 1}, {"class": "cat", "count": 2}]},
    ]
    expected = [finding.verdict for finding in evaluate(quantised(images), columns)]
    assert expected[0].correct
    prompts = [Prompt(f"p{i}", i, row) for i, row in enumerate(columns)]
    for mode, values in (
        ("official", [float(v.correct) for v in expected]),
        ("strict", [float(v.strict) for v in expected]),
        ("continuous", [v.score for v in expected]),
        ("flow_grpo", [v.released for v in expected]),
    ):
        specs = [
            {
                "use": "geneval",
                "name": f"b{size}",
                "options": {**options, "mode": mode, "batch_size": size},
                "device": "cpu",
            }
            for size in (1, 3)
        ]
        scores = load_rewards(specs).raw(Samples(prompts, images))
        assert scores[:, 0].tolist() == pytest.approx(values) and scores[:, 1].tolist() == pytest.approx(values)
    scorer = geneval(**options, device="cpu")
    broken = images.clone()
    broken[1, 0, 0, 0] = math.nan
    assert scorer(broken, ["a"] * 3, columns).isnan().tolist() == [False, True, False]
    assert scorer.version.startswith("geneval[mask2former]:continuous:mask2former:") and "quick" not in scorer.version
    with pytest.raises(UserError, match="knows no 'unicorn'"):
        scorer(images[:1], ["a"], [{"include": [{"class": "unicorn", "count": 1}]}])
    with pytest.raises(UserError, match="'include' should be a list"):
        scorer(images[:1], ["a"], [{}])
    with pytest.raises(UserError, match="no mode 'strickt'; did you mean 'strict'"):
        geneval(**options, mode="strickt", device="cpu")  # type: ignore[arg-type]


def test_the_reward_is_listed_without_loading_anything() -> None:
    entry = next(entry for entry in list_rewards() if entry.name == "geneval")
    assert entry.kind == "image" and entry.range.startswith("[0, 1]")


def test_an_evaluator_says_what_its_numbers_depend_on(detector_folder: Path, clip_folder: Path) -> None:
    evaluate = load(str(detector_folder), str(clip_folder), device="cpu")
    assert isinstance(evaluate, Evaluator)
    assert evaluate.version.endswith(":0.3-0.9-16-1-0.1")
    assert "mask2former:" in evaluate.version and "clip-colors:" in evaluate.version

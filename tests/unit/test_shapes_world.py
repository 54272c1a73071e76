"""The shapes world: splits, verifier, reward, and the shipped base model."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from flowrl.worlds.images.scenes import CLASSES, COLORS, SLOT, Scene, Thing
from flowrl.worlds.shapes import BASE, CALL, prompts
from flowrl.worlds.shapes.captions import caption, corrupt
from flowrl.worlds.shapes.prompts import TAGS, vocabulary
from flowrl.worlds.shapes.scenes import random_scene, render
from flowrl.worlds.shapes.verifier import detect, score, verify
from rewards.shapes import shapes

POSITION = {
    "tag": "position",
    "include": [{"class": "square", "count": 1}, {"class": "circle", "count": 1, "position": ["left of", 0]}],
}
COLOR_ATTR = {
    "tag": "color_attr",
    "include": [
        {"class": "circle", "count": 1, "color": "red"},
        {"class": "square", "count": 1, "color": "blue"},
    ],
}
THREE = {
    "tag": "counting",
    "include": [{"class": "circle", "count": 3}],
    "exclude": [{"class": "circle", "count": 4}],
}


def thing(shape: str, color: str, column: int, row: int) -> Thing:
    return Thing(shape, color, (column + 0.5) * SLOT, (row + 0.5) * SLOT, 5.0)


def verdict(metadata: dict, *things: Thing):
    return verify(detect(render([Scene(things)]))[0], metadata)


def test_splits_are_disjoint_balanced_and_share_their_words():
    train, test = prompts("train"), prompts("test")
    assert prompts("train") == train
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    words = [{word for row in rows for word in row["prompt"].split()} for rows in (train, test)]
    assert words[1] <= words[0] == set(vocabulary())
    for tag in TAGS:
        assert sum(row["tag"] == tag for row in test) == 12
        assert 12 < sum(row["tag"] == tag for row in train) <= 48
    with pytest.raises(ValueError, match="valid"):
        prompts("valid")  # type: ignore[arg-type]


def test_metadata_follows_geneval():
    for row in prompts("train") + prompts("test"):
        assert row.keys() <= {"tag", "include", "exclude", "prompt"} and row["tag"] in TAGS
        assert ("exclude" in row) == (row["tag"] == "counting")
        for item in row["include"]:
            assert item["class"] in CLASSES and 1 <= item["count"] <= 4
            assert item.get("color") in {None, *COLORS}
        if row["tag"] == "position":
            subject, relation, *_, reference = row["prompt"].replace(" of", "").split()[1:]
            assert row["include"][0]["class"] == reference and row["include"][1]["class"] == subject
            assert row["include"][1]["position"] == [relation + " of" * (relation in ("left", "right")), 0]


def test_verifier_accepts_clean_renders_and_rejects_other_prompts():
    rng = random.Random(0)
    rows = [rng.choice(prompts("train") + prompts("test")) for _ in range(600)]
    images = render([random_scene(row, rng) for row in rows])
    strict, graded = score(images, rows)
    assert strict.mean() > 0.99 and graded.mean() > 0.99
    assert torch.equal(strict == 1, graded == 1)
    assert score(images, rows[1:] + rows[:1])[0].mean() < 0.06  # some prompts truly fit another's image
    noisy = (images + 0.03 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert score(noisy, rows)[0].mean() > 0.97


def test_scenes_satisfy_dense_captions():
    rng = random.Random(1)
    rows = [caption(rng) for _ in range(300)]
    assert score(render([random_scene(row, rng) for row in rows]), rows)[0].mean() > 0.99
    wrong = score(render([random_scene(corrupt(row, rng), rng) for row in rows]), rows)[0].mean()
    assert 0.45 < wrong < 0.75  # the label noise leaves room for reinforcement learning


@pytest.mark.parametrize(
    ("metadata", "things", "reason"),
    [
        (POSITION, [thing("circle", "red", 1, 0), thing("square", "red", 0, 0)], "left of"),
        (COLOR_ATTR, [thing("circle", "blue", 0, 0), thing("square", "red", 1, 1)], "are red"),
        (COLOR_ATTR, [thing("circle", "red", 0, 0)], "0 of 1 square"),
        (COLOR_ATTR, [thing("circle", "green", 0, 0), thing("square", "blue", 1, 1)], "are red"),
        (THREE, [thing("circle", "red", i, 0) for i in range(2)], "2 of 3"),
        (THREE, [thing("circle", "red", i, j) for i in range(2) for j in range(2)], "wanted fewer"),
        (
            COLOR_ATTR,
            [thing("circle", "red", 0, 0), thing("square", "blue", 1, 1), thing("cross", "red", 0, 1)],
            "many",
        ),
    ],
)
def test_wrong_scenes_fail_with_partial_credit(metadata, things, reason):
    result = verdict(metadata, *things)
    assert not result.strict and 0.2 < result.score < 0.95 and reason in result.reason


def test_right_scenes_pass():
    assert verdict(POSITION, thing("circle", "red", 0, 0), thing("square", "red", 1, 0)).strict
    assert verdict(POSITION, thing("circle", "red", 0, 1), thing("square", "red", 1, 0)).strict  # diagonal
    assert verdict(COLOR_ATTR, thing("circle", "red", 0, 1), thing("square", "blue", 1, 0)).strict
    assert verdict(THREE, *(thing("circle", "red", i // 2, i % 2) for i in range(3))).strict


def test_junk_blank_noise_and_painting_everything_score_low():
    right = Scene((thing("circle", "red", 0, 0), thing("square", "blue", 1, 1)))
    image = render([right])
    junk = image.clone()
    junk[:, :, 22:25, 2:14] = torch.tensor([0.0, 0.0, 0.0])[None, :, None, None]
    result = verify(detect(junk)[0], COLOR_ATTR)
    assert not result.strict and 0.3 < result.score < 0.95
    blank, noise = torch.full((1, 3, 32, 32), 0.5), torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    full = render([Scene(tuple(thing(CLASSES[i], "red", i % 2, i // 2) for i in range(4)))])
    for bad, limit in ((blank, 0.01), (noise, 0.2), (full, 0.5), (torch.zeros_like(blank), 0.01)):
        strict, graded = score(bad, [COLOR_ATTR])
        assert strict.item() == 0 and graded.item() <= limit


def test_partial_credit_is_monotone():
    steps = [
        [],
        [thing("square", "green", 1, 0)],
        [thing("square", "blue", 1, 0)],
        [thing("square", "blue", 1, 0), thing("circle", "green", 0, 0)],
        [thing("square", "blue", 1, 0), thing("circle", "red", 0, 0)],
    ]
    scores = [verdict(COLOR_ATTR, *things).score for things in steps]
    assert scores == sorted(set(scores)) and scores[0] == 0 and scores[-1] == 1


def test_bad_images_are_nan_or_refused():
    images = torch.stack([render([Scene((thing("circle", "red", 0, 0),))])[0], torch.full((3, 32, 32), float("nan"))])
    strict, graded = score(images, [{"include": [{"class": "circle", "count": 1}]}] * 2)
    assert strict[0] == graded[0] == 1 and strict[1].isnan() and graded[1].isnan()
    with pytest.raises(ValueError, match="64"):
        detect(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="2 images but 1"):
        score(images, [COLOR_ATTR])


def test_reward_reads_columns_and_names_what_is_missing():
    images = render([Scene((thing("circle", "red", 0, 0), thing("square", "blue", 1, 1))), Scene(())])
    columns = {"include": [COLOR_ATTR["include"]] * 2, "exclude": [None, None], "tag": ["color_attr"] * 2}
    texts = ["a red circle and a blue square"] * 2
    assert shapes(images, texts, mode="strict", **columns).tolist() == [1, 0]
    graded = shapes(images, texts, mode="continuous", **columns)
    assert torch.allclose(shapes(images, texts, **columns), (graded + torch.tensor([1.0, 0.0])) / 2)
    with pytest.raises(ValueError, match="needs GenEval metadata"):
        shapes(images, texts)
    with pytest.raises(ValueError, match="1 include"):
        shapes(images, texts, include=[[]])
    with pytest.raises(ValueError, match="mode"):
        shapes(images, texts, mode="loose", **columns)  # type: ignore[arg-type]


def test_detections_do_not_depend_on_the_batch():
    rng = random.Random(2)
    images = render([random_scene(rng.choice(prompts("test")), rng) for _ in range(20)])
    assert detect(images) == [detect(image[None])[0] for image in images]
    assert replace(detect(images)[0][0], quality=1.0).quality == 1.0


@pytest.fixture(scope="module")
def pipe() -> StableDiffusion3Pipeline:
    torch.set_num_threads(1)
    loaded = StableDiffusion3Pipeline.from_pretrained(BASE)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_every_word_is_one_token(pipe):
    for tokenizer in (pipe.tokenizer, pipe.tokenizer_2):
        ids = {word: tokenizer(word).input_ids for word in vocabulary()}
        assert all(len(tokens) == 3 for tokens in ids.values())
        assert len({tokens[1] for tokens in ids.values()}) == len(ids)
        longest = max(len(tokenizer(row["prompt"]).input_ids) for row in prompts("train") + prompts("test"))
        assert longest <= tokenizer.model_max_length


def test_autoencoder_keeps_shapes_readable(pipe):
    rng = random.Random(3)
    rows = [rng.choice(prompts("test")) for _ in range(200)]
    images = render([random_scene(row, rng) for row in rows])
    with torch.no_grad():
        latents = pipe.vae.encode(images * 2 - 1)
        latents = latents.latent_dist.mode() if hasattr(latents, "latent_dist") else latents.latents
        again = pipe.vae.decode(latents).sample / 2 + 0.5
    assert score(again.clamp(0, 1), rows)[0].mean() > 0.95
    assert 0.8 < latents.std() < 1.2


def test_base_generates_what_is_asked_for_some_of_the_time(pipe):
    rows = [row for row in prompts("test") if row["tag"] == "single_object"] * 4
    images = pipe(
        [row["prompt"] for row in rows],
        num_inference_steps=10,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        **CALL,
    ).images
    assert images.shape == (48, 3, 32, 32)
    strict, graded = score(images, rows)
    assert 0.3 < strict.mean() < 1 and graded.mean() > strict.mean()

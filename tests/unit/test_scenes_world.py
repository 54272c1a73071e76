"""The scenes world: splits, verifier against the truth, reward, and the shipped base model."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from benchmarks.evidence.runs import Page
from flowrl.config import Config
from flowrl.train import train
from flowrl.worlds.images.scenes import CLASSES, COLORS, SLOT, Scene, Thing
from flowrl.worlds.images.verdict import verify
from flowrl.worlds.scenes import BASE, CALL, prompts
from flowrl.worlds.scenes.captions import NOISY, corrupt
from flowrl.worlds.scenes.glyphs import GLYPHS
from flowrl.worlds.scenes.latents import latents_of
from flowrl.worlds.scenes.prompts import TAGS, draw, vocabulary, word_clause
from flowrl.worlds.scenes.scenes import INK, SLOTS, any_scene, random_scene, random_word, render
from flowrl.worlds.scenes.verifier import detect, score
from rewards.scenes import scenes

ARMS = Page.load("matching").arms


def shape(shape: str, color: str, column: int, row: int) -> Thing:
    return Thing(shape, color, (column + 0.5) * SLOT, (row + 0.5) * SLOT, 5.0)


def word(text: str, column: int, row: int) -> list[Thing]:
    return random_word(text, (column, row), random.Random(0))


def strict_of(pairs: list[tuple[Scene, dict[str, Any]]]) -> list[float]:
    return score(render([scene for scene, _ in pairs]), [row for _, row in pairs])[0].tolist()


def drawn(tag: str, count: int, seed: int = 0) -> list[tuple[Scene, dict[str, Any]]]:
    rng = random.Random(f"{tag}{seed}")
    rows = [draw(tag, rng) for _ in range(count)]
    return [(random_scene(row, rng), row) for row in rows]


def test_splits_are_disjoint_balanced_and_share_their_words() -> None:
    train, test = prompts("train"), prompts("test")
    assert prompts("train") == train
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    words = [{word for row in rows for word in row["prompt"].split() if '"' not in word} for rows in (train, test)]
    assert words[1] <= words[0] == set(vocabulary()) - {'"'}
    for tag in TAGS:
        assert [sum(row["tag"] == tag for row in rows) for rows in (train, test)] == [12 if tag == "colors" else 48, 12]
    with pytest.raises(ValueError, match="valid"):
        prompts("valid")  # type: ignore[arg-type]


def test_captions_say_what_the_clauses_ask_for() -> None:
    for row in prompts("train") + prompts("test"):
        for item in row["include"]:
            assert item.get("text", item.get("color")) in row["prompt"]
        if row["tag"] == "text_position":
            relation, reference = row["include"][1]["position"]
            assert row["prompt"].startswith('the text "') and f" {relation} a " in row["prompt"] and reference == 0


@pytest.mark.parametrize("tag", TAGS)
def test_every_rendering_is_right_and_another_prompts_is_not(tag: str) -> None:
    pairs = drawn(tag, 40)
    assert strict_of(pairs) == [1.0] * 40
    shifted = [(a[0], b[1]) for a, b in pairwise(pairs) if a[1]["prompt"] != b[1]["prompt"]]
    assert sum(strict_of(shifted)) == 0


def recoloured(scene: Scene, rng: random.Random) -> Scene | None:
    colored = [i for i, thing in enumerate(scene.things) if thing.color != INK]
    if not colored:
        return None
    i = rng.choice(colored)
    other = rng.choice([color for color in COLORS if color != scene.things[i].color])
    return with_thing(scene, i, replace(scene.things[i], color=other))


def reshaped(scene: Scene, rng: random.Random) -> Scene | None:
    i = rng.randrange(len(scene.things))
    thing = scene.things[i]
    others = [name for name in (GLYPHS if thing.color == INK else CLASSES) if name != thing.shape]
    return with_thing(scene, i, replace(thing, shape=rng.choice(others)))


def without_one(scene: Scene, rng: random.Random) -> Scene | None:
    i = rng.randrange(len(scene.things))
    return replace(scene, things=scene.things[:i] + scene.things[i + 1 :])


def with_one_more(scene: Scene, rng: random.Random) -> Scene | None:
    taken = {(int(thing.x // SLOT), int(thing.y // SLOT)) for thing in scene.things}
    like = rng.choice(scene.things)
    column, row = rng.choice([slot for slot in SLOTS if slot not in taken])
    more = replace(like, x=(column + 0.5) * SLOT, y=(row + 0.5) * SLOT)
    return replace(scene, things=(*scene.things, more))


def mirrored(scene: Scene, rng: random.Random) -> Scene:
    return replace(scene, things=tuple(replace(t, x=64 - t.x, y=64 - t.y) for t in scene.things))


def with_thing(scene: Scene, i: int, thing: Thing) -> Scene:
    return replace(scene, things=(*scene.things[:i], thing, *scene.things[i + 1 :]))


@pytest.mark.parametrize("damage", [recoloured, reshaped, without_one, with_one_more])
def test_any_single_damage_fails(damage: Any) -> None:
    rng = random.Random(0)
    pairs = [pair for tag in TAGS for pair in drawn(tag, 15, 1)]
    damaged = [(worse, row) for scene, row in pairs if (worse := damage(scene, rng))]
    assert len(damaged) >= 90 and sum(strict_of(damaged)) == 0


def test_the_opposite_relation_and_swapped_letters_fail() -> None:
    rng = random.Random(0)
    positions = [(mirrored(scene, rng), row) for scene, row in drawn("position", 40, 2)]
    assert sum(strict_of(positions)) == 0
    row = {"include": [word_clause("KEN")]}
    for wrong in ("NEK", "KE", "KENN", "EKN"):
        assert strict_of([(Scene(tuple(word(wrong, 0, 1))), row)]) == [0.0]
    apart = [*word("KE", 0, 0), *word("N", 3, 3)]
    assert strict_of([(Scene(tuple(word("KEN", 0, 1))), row), (Scene(tuple(apart)), row)]) == [1.0, 0.0]


def test_partial_credit_rises_with_every_part_that_is_right() -> None:
    row = {
        "include": [{"class": "circle", "count": 1, "color": "red"}, word_clause("KEN") | {"position": ["below", 0]}]
    }
    steps = [
        [],
        [shape("circle", "blue", 1, 0)],
        [shape("circle", "red", 1, 0)],
        [shape("circle", "red", 1, 2), *word("KUX", 0, 0)],
        [shape("circle", "red", 1, 2), *word("KEX", 0, 0)],
        [shape("circle", "red", 1, 0), *word("KEX", 0, 2)],
        [shape("circle", "red", 1, 0), *word("KEN", 0, 2)],
    ]
    scores = [verify(detect(render([Scene(tuple(things))]))[0], row).score for things in steps]
    assert scores == sorted(set(scores)) and scores[0] == 0 and scores[-1] == 1


def test_noise_blank_and_odd_sizes() -> None:
    pairs = [pair for tag in TAGS for pair in drawn(tag, 10)]
    images, rows = render([scene for scene, _ in pairs]), [row for _, row in pairs]
    generator = torch.Generator().manual_seed(0)
    noisy = (images + 0.03 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    assert score(noisy, rows)[0].mean() > 0.97
    assert detect(images) == [detect(image[None])[0] for image in images]
    for bad in (torch.full_like(images[:1], 0.5), torch.rand(1, 3, 64, 64, generator=generator)):
        assert score(bad, rows[:1])[0].item() == 0
    assert score(torch.full_like(images[:1], float("nan")), rows[:1])[0].isnan()
    with pytest.raises(ValueError, match="32"):
        detect(torch.zeros(1, 3, 32, 32))


def test_scenes_that_are_asked_for_too_much_are_refused() -> None:
    with pytest.raises(ValueError, match="17"):
        random_scene({"include": [{"class": "circle", "count": 17}]}, random.Random(0))


def test_label_noise_leaves_room_for_reinforcement() -> None:
    rng = random.Random(1)
    rows = [draw(tag, rng) for tag in TAGS for _ in range(40)]
    wrong = score(render([random_scene(corrupt(row, rng, NOISY), rng) for row in rows]), rows)[0].mean()
    assert 0.7 < wrong < 0.92


def test_reward_reads_columns() -> None:
    pairs = drawn("text_position", 2)
    images = torch.cat([render([pairs[0][0]]), torch.full((1, 3, 64, 64), 0.5)])
    columns = {"include": [pairs[0][1]["include"]] * 2, "tag": ["text_position"] * 2}
    assert scenes(images, ["", ""], mode="strict", **columns).tolist() == [1, 0]
    assert scenes(images, ["", ""], **columns)[0] == 1
    with pytest.raises(ValueError, match="the scenes reward needs GenEval metadata"):
        scenes(images, ["", ""])


@pytest.fixture(scope="module")
def pipe() -> StableDiffusion3Pipeline:
    torch.set_num_threads(1)
    loaded = StableDiffusion3Pipeline.from_pretrained(BASE)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_base_is_float32_and_small(pipe) -> None:
    assert {p.dtype for part in pipe.components.values() if hasattr(part, "parameters") for p in part.parameters()} == {
        torch.float32
    }
    assert sum(file.stat().st_size for file in BASE.rglob("*") if file.is_file()) < 3.3e6


def test_every_word_is_one_token_and_texts_are_spelled(pipe) -> None:
    ids = {word: pipe.tokenizer(word).input_ids for word in vocabulary()}
    assert all(len(tokens) == 3 for tokens in ids.values())
    for first in GLYPHS:
        for second in GLYPHS:
            assert len(pipe.tokenizer(f'"{first}{second}{first}"').input_ids) == 7
    rows = prompts("train") + prompts("test")
    assert max(len(pipe.tokenizer(row["prompt"]).input_ids) for row in rows) <= pipe.tokenizer.model_max_length


def test_autoencoder_paints_and_reads(pipe) -> None:
    pairs = [pair for tag in TAGS for pair in drawn(tag, 4, 3)]
    latents, rows = latents_of([scene for scene, _ in pairs]), [row for _, row in pairs]
    with torch.no_grad():
        painted = (pipe.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
        read = pipe.vae.encode(painted * 2 - 1).latent_dist.mode()
    assert score(painted, rows)[0].mean() > 0.95
    assert (read - latents).square().mean() < 0.1
    assert any_scene(random.Random(0)).things


def test_base_generates_what_is_asked_for_some_of_the_time(pipe) -> None:
    rows = [row for row in prompts("test") if row["tag"] == "colors"]
    generator = torch.Generator().manual_seed(0)
    texts = [row["prompt"] for row in rows]
    images = pipe(texts, num_inference_steps=8, generator=generator, output_type="pt", **CALL).images
    assert images.shape == (12, 3, 64, 64)
    strict, graded = score(images, rows)
    assert 0 < strict.mean() < 1 and graded.mean() > 0.4


@pytest.mark.slow
def test_a_short_training_run_raises_the_reward(tmp_path) -> None:
    config = Config.load(
        Path(__file__).parents[2] / "benchmarks" / "scenes.yaml",
        [
            f"out={tmp_path / 'run'}",
            *ARMS["diffusion_nft"],
            "train.iterations=6",
            "eval.every=6",
            "eval.samples=2",
        ],
    )
    train(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, last = (line["eval/scenes/mean"] for line in lines if "eval/scenes/mean" in line)
    assert last > first + 0.03

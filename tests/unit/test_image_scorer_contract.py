"""What every image scorer promises: batches, order, NaN, one pass per prompt, and one sentence for what is missing."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowrl.errors import UserError
from flowrl.score import list_rewards, load_rewards
from flowrl.scorers.clip import EmbeddingCache
from flowrl.types import Prompt, Samples
from rewards.aesthetic import aesthetic
from rewards.clipscore import clipscore
from rewards.hpsv2 import hpsv2
from rewards.imagereward import imagereward
from rewards.pickscore import pickscore
from rewards.similarity import dino_similarity
from tests.tiny_scorers import (
    PROMPTS,
    pictures,
    save_aesthetic,
    save_clip,
    save_dino,
    save_imagereward,
    save_open_clip,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_open_clip(tmp_path_factory.mktemp("open_clip"))


@pytest.fixture(scope="module")
def aesthetic_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_aesthetic(tmp_path_factory.mktemp("aesthetic"))


@pytest.fixture(scope="module")
def imagereward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_imagereward(tmp_path_factory.mktemp("imagereward"))


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module")
def scorers(
    clip_folder: Path, open_clip_folder: Path, aesthetic_file: Path, imagereward_folder: Path, dino_folder: Path
) -> dict[str, dict[str, Any]]:
    """Options with which every model-based scorer loads from its tiny model."""
    folder = str(imagereward_folder)
    return {
        "pickscore": {"path": str(clip_folder)},
        "clipscore": {"path": str(clip_folder)},
        "hpsv2": {"path": str(open_clip_folder)},
        "aesthetic": {"path": str(aesthetic_file), "clip": str(clip_folder)},
        "imagereward": {"path": folder, "tokenizer": folder},
        "dino_similarity": {"path": str(dino_folder)},
    }


NAMES = ["pickscore", "clipscore", "hpsv2", "aesthetic", "imagereward", "dino_similarity"]


CLASSES: dict[str, Any] = {
    "pickscore": pickscore,
    "clipscore": clipscore,
    "hpsv2": hpsv2,
    "aesthetic": aesthetic,
    "imagereward": imagereward,
    "dino_similarity": dino_similarity,
}


@pytest.mark.parametrize("name", NAMES)
def test_every_scorer_keeps_the_contract(scorers: dict[str, dict[str, Any]], name: str) -> None:
    images, reference = pictures(), list(pictures(8)[3:])
    scorer = CLASSES[name](**scorers[name])
    state, before = torch.get_rng_state(), images.clone()
    scores = scorer(images, PROMPTS, reference=reference)
    assert bool(torch.isfinite(scores).all()) and not scores.requires_grad
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(images, before)
    assert torch.equal(scorer(images, PROMPTS, reference=reference), scores)
    order = [3, 0, 4, 1, 2]
    moved = scorer(images[order], [PROMPTS[i] for i in order], reference=[reference[i] for i in order])
    torch.testing.assert_close(moved, scores[order], rtol=1e-5, atol=1e-5)
    assert scorer(images[:0], [], reference=[]).shape == (0,)
    broken = images.clone()
    broken[2, 0, 0, 0] = math.nan
    found = scorer(broken, PROMPTS, reference=reference)
    assert found.isnan().tolist() == [False, False, True, False, False]
    assert str(scorers[name]["path"]) in scorer.version and name in scorer.version
    for wrong, prompts in ((images[0], PROMPTS), (images, PROMPTS[:2])):
        with pytest.raises(UserError, match="image"):
            scorer(wrong, prompts, reference=reference)


@pytest.mark.parametrize("name", NAMES)
def test_every_scorer_is_found_by_name_and_splits_into_any_batches(
    scorers: dict[str, dict[str, Any]], name: str
) -> None:
    assert name in [entry.name for entry in list_rewards() if entry.kind == "image"]
    images, reference = pictures(), list(pictures(8)[3:])
    prompts = [Prompt(text, i, {"reference": reference[i]}) for i, text in enumerate(PROMPTS)]
    specs = [
        {"use": name, "name": "one", "options": {**scorers[name], "batch_size": 1}, "device": "cpu"},
        {"use": name, "name": "all", "options": scorers[name], "batch_size": 2},
    ]
    values = load_rewards(specs).raw(Samples(prompts, images))
    torch.testing.assert_close(values[:, 0], values[:, 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_close_and_not_rounded_to_ties(scorers: dict[str, dict[str, Any]], name: str) -> None:
    images, reference = pictures(), list(pictures(8)[3:])
    full = CLASSES[name](**scorers[name])(images, PROMPTS, reference=reference)
    half = CLASSES[name](**scorers[name], dtype="bfloat16")(images, PROMPTS, reference=reference)
    assert float((half - full).abs().max()) < 0.2 * float(full.abs().max())
    assert float((half - half.bfloat16().double()).abs().max()) > 0  # the head did not run in bfloat16
    with pytest.raises(UserError, match="dtype 'float61'"):
        CLASSES[name](**scorers[name], dtype="float61")


def rows_through(module: nn.Module, position: Callable[[tuple, dict], Tensor]) -> list[int]:
    """Batch sizes of every later call of a module."""
    seen: list[int] = []
    module.register_forward_pre_hook(lambda _, args, kwargs: seen.append(len(position(args, kwargs))), with_kwargs=True)
    return seen


def test_a_prompt_passes_the_text_tower_once(clip_folder: Path, open_clip_folder: Path) -> None:
    images = pictures(12)
    prompts = ["a red cube"] * 6 + ["a blue ball"] * 6
    hugging: Any = pickscore(str(clip_folder), batch_size=4)
    opened: Any = hpsv2(str(open_clip_folder), batch_size=4)
    for scorer, tower in ((hugging, hugging._clip.model.text_model), (opened, opened._clip.model.token_embedding)):
        texts = rows_through(tower, lambda args, kwargs: kwargs["input_ids"] if kwargs else args[0])
        scorer(images, prompts)
        assert sum(texts) == 2
        scorer(images, prompts[::-1])
        assert sum(texts) == 2  # remembered from the call before
        scorer(images[:1], ["two green cones"])
        assert sum(texts) == 3


def test_imagereward_tokenizes_a_prompt_once(imagereward_folder: Path) -> None:
    scorer: Any = imagereward(str(imagereward_folder), tokenizer=str(imagereward_folder))
    tokenizer, seen = scorer._tokenizer, []
    scorer._tokenizer = lambda texts, **options: seen.append(list(texts)) or tokenizer(texts, **options)
    scorer(pictures(4), ["a red cube", "a blue ball"] * 2)
    assert all(texts == ["a red cube", "a blue ball"] for texts in seen)


def test_the_memory_of_texts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowrl.scorers.clip.CACHED_PROMPTS", 3)
    calls: list[str] = []

    def encode(texts: list[str]) -> Tensor:
        calls.extend(texts)
        return torch.tensor([[float(len(text))] for text in texts])

    memory = EmbeddingCache(encode, 2)
    for _ in range(2):  # what is known takes no further room
        assert memory(["a", "bb", "a", "ccc"]).flatten().tolist() == [1, 2, 1, 3] and calls == ["a", "bb", "ccc"]
    assert memory(["bb", "dddd"]).flatten().tolist() == [2, 4]
    assert calls == ["a", "bb", "ccc", "bb", "dddd"]


def test_long_prompts_are_cut_with_a_warning(scorers: dict[str, dict[str, Any]]) -> None:
    images = pictures(2)
    for name in ("pickscore", "hpsv2", "imagereward"):
        scorer = CLASSES[name](**scorers[name])
        start = " ".join(["red cube"] * 80)
        with pytest.warns(UserWarning, match=f"{name} reads only the beginning of 2 long prompts"):
            scores = scorer(images[[0, 0]], [start, start + " ball"])
        assert float(scores[0]) == pytest.approx(float(scores[1]), abs=1e-6)


def one_sentence(error: UserError) -> None:
    assert "\n" not in str(error) and len(str(error)) < 600  # three paths of a temporary folder


@pytest.mark.parametrize("name", NAMES)
def test_missing_and_wrong_weights_are_one_sentence(
    scorers: dict[str, dict[str, Any]], clip_folder: Path, dino_folder: Path, tmp_path: Path, name: str
) -> None:
    options = scorers[name]

    def complains(path: Path | str, match: str) -> None:
        with pytest.raises(UserError, match=match) as raised:
            CLASSES[name](**{**options, "path": str(path)})
        one_sentence(raised.value)
        assert name in str(raised.value)

    complains(tmp_path / "nowhere", "do not exist|neither a folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    complains(empty, "holds no weights|cannot be loaded")
    whole_models = name in ("pickscore", "clipscore", "dino_similarity")
    other = clip_folder if name == "dino_similarity" else dino_folder
    complains(other, "but .* holds" if whole_models else "another architecture|no head|lin|which architecture|mean")
    if whole_models:
        pickled = tmp_path / "pickled"
        pickled.mkdir()
        (pickled / "config.json").write_text((Path(options["path"]) / "config.json").read_text())
        torch.save({}, pickled / "pytorch_model.bin")
        complains(pickled, r"flowrl.scorers.convert .*pytorch_model.bin .*model.safetensors")
        lacking = tmp_path / "lacking"
        lacking.mkdir()
        for file in Path(options["path"]).iterdir():
            (lacking / file.name).write_bytes(file.read_bytes())
        state = load_file(lacking / "model.safetensors")
        state.pop(next(key for key in state if "layer" in key))
        save_file(state, lacking / "model.safetensors", metadata={"format": "pt"})
        complains(lacking, "lacks 1 weights of its architecture")
    else:
        torch.save({}, tmp_path / "weights.pt")
        complains(tmp_path / "weights.pt", r"flowrl.scorers.convert .*weights.pt .*weights.safetensors")
        (tmp_path / "broken.safetensors").write_bytes(b"not safetensors")
        complains(tmp_path / "broken.safetensors", "readable safetensors")


def test_open_clip_weights_of_another_shape_are_named(open_clip_folder: Path, tmp_path: Path) -> None:
    state = load_file(open_clip_folder / "open_clip_model.safetensors")
    settings = json.loads((open_clip_folder / "open_clip_config.json").read_text())
    settings["model_cfg"]["vision_cfg"]["layers"] = 3
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"another architecture: visual.transformer.resblocks.2.* is absent"):
        hpsv2(str(tmp_path))
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(UserError, match=r"open_clip_config\.json does not exist"):
        clipscore(str(tmp_path), backend="open_clip")
    settings["preprocess_cfg"] = {"resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="states resize_mode"):
        clipscore(str(tmp_path), backend="open_clip")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"backend": "open-clip"}, "no backend 'open-clip'; did you mean 'open_clip'"),
        ({"convention": "cosin"}, "no convention 'cosin'; did you mean 'cosine'"),
        ({"device": "cuda:77x"}, "not a torch device|no CUDA"),
    ],
)
def test_wrong_options_are_named(clip_folder: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        clipscore(str(clip_folder), **options)

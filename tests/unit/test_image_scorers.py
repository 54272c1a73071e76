"""Image scorers: every score equals its formula, computed again here from the same tiny weights."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flowrl.scorers.images import CLIP_MEAN, CLIP_STD, Preprocessing, read_preprocessing
from rewards.aesthetic import aesthetic
from rewards.clipscore import clipscore
from rewards.hpsv2 import hpsv2, letterbox
from rewards.imagereward import MEAN, STD, imagereward
from rewards.pickscore import pickscore
from tests.tiny_scorers import (
    CLOSE,
    PATCH,
    PROMPTS,
    SIDE,
    WORDS_KNOWN,
    aesthetic_head,
    as_pil,
    by_torchvision,
    by_transformers,
    imagereward_weights,
    pictures,
    save_aesthetic,
    save_clip,
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


def reference_clip(folder: Path, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines of pairs, logits of pairs and image embeddings, from transformers' own forward pass."""
    from transformers import AutoTokenizer, CLIPModel

    model: Any = CLIPModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(prompts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        answer = model(**inputs, pixel_values=by_transformers(images, folder))
    return (
        (answer.image_embeds * answer.text_embeds).sum(dim=1),
        answer.logits_per_image.diagonal(),
        answer.image_embeds,
    )


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_pickscore_is_the_scaled_cosine(clip_folder: Path, size: int) -> None:
    images = pictures()
    cosines, logits, _ = reference_clip(clip_folder, images, PROMPTS)
    assert float(logits.std()) > 1  # different images and prompts score differently
    scores = pickscore(str(clip_folder), batch_size=size)(images, PROMPTS)
    assert scores.dtype == torch.float64 and scores.device.type == "cpu"
    torch.testing.assert_close(scores / 98, cosines.double(), **CLOSE)
    torch.testing.assert_close(scores, logits.double(), rtol=1e-5, atol=1e-4)
    scaled = pickscore(str(clip_folder), scaled=True, batch_size=size)
    torch.testing.assert_close(26 * scaled(images, PROMPTS), scores)


@pytest.mark.parametrize(
    ("convention", "rule"),
    [
        ("cosine", lambda c: c),
        ("clipscore", lambda c: 2.5 * c.clamp(min=0)),
        ("torchmetrics", lambda c: 100 * c.clamp(min=0)),
    ],
)
def test_clipscore_conventions(clip_folder: Path, convention: Any, rule: Callable[[Tensor], Tensor]) -> None:
    images = pictures()
    cosines, _, _ = reference_clip(clip_folder, images, PROMPTS)
    assert bool((cosines < 0).any()) and bool((cosines > 0).any())  # so that the clamp is tested
    scores = clipscore(str(clip_folder), convention=convention)(images, PROMPTS)
    torch.testing.assert_close(scores, rule(cosines.double()), rtol=1e-5, atol=1e-5)


def test_clipscore_prefix_comes_before_every_prompt(clip_folder: Path) -> None:
    images, prefix = pictures(), "A photo depicts "
    cosines, _, _ = reference_clip(clip_folder, images, [prefix + prompt for prompt in PROMPTS])
    torch.testing.assert_close(clipscore(str(clip_folder), prefix=prefix)(images, PROMPTS), cosines.double(), **CLOSE)


def open_clip_cosines(folder: Path, pixels: Tensor) -> Tensor:
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(PROMPTS)
    with torch.no_grad():
        return (model.encode_image(pixels, normalize=True) * model.encode_text(tokens, normalize=True)).sum(dim=1)


@pytest.mark.parametrize(
    ("typeset", "plain"),
    [("“a red cube”", '"a red cube"'), ("it’s a ball", "it's a ball"), ("&lt;a&gt; &amp; b", "<a> & b")],
)
def test_only_the_open_clip_backend_cleans_prompts_as_openai_did(
    clip_folder: Path, open_clip_folder: Path, typeset: str, plain: str
) -> None:
    images = pictures(count=1).repeat(2, 1, 1, 1)
    cleaned = clipscore(str(open_clip_folder), backend="open_clip")(images, [typeset, plain])
    assert cleaned[0] == cleaned[1]
    raw = clipscore(str(clip_folder))(images, [typeset, plain])
    assert abs(float(raw[0] - raw[1])) > 1e-3


@pytest.mark.parametrize("size", [2, 64])
def test_clipscore_of_an_open_clip_folder(open_clip_folder: Path, size: int) -> None:
    images = pictures()
    expected = open_clip_cosines(open_clip_folder, by_torchvision(images, SIDE))
    assert float(expected.std()) > 0.01
    scores = clipscore(str(open_clip_folder), backend="open_clip", batch_size=size)(images, PROMPTS)
    torch.testing.assert_close(scores, expected.double(), **CLOSE)


def test_an_open_clip_configuration_chooses_the_activation(open_clip_folder: Path, tmp_path: Path) -> None:
    settings = json.loads((open_clip_folder / "open_clip_config.json").read_text())
    settings["model_cfg"]["quick_gelu"] = True  # as OpenAI's weights need
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    weights = open_clip_folder / "open_clip_model.safetensors"
    (tmp_path / weights.name).write_bytes(weights.read_bytes())
    images = pictures()
    expected = open_clip_cosines(tmp_path, by_torchvision(images, SIDE))
    assert float((expected - open_clip_cosines(open_clip_folder, by_torchvision(images, SIDE))).abs().max()) > 1e-3
    scores = clipscore(str(tmp_path), backend="open_clip")(images, PROMPTS)
    torch.testing.assert_close(scores, expected.double(), **CLOSE)


def hps_pixels(images: Tensor, antialias: bool) -> Tensor:
    """Longest edge to SIDE on a float tensor, zeros around, then the normalisation."""
    from torchvision.transforms.functional import to_tensor

    done = []
    for image in as_pil(images):
        x = to_tensor(image)[None]
        height = round(x.shape[2] * SIDE / x.shape[3])
        x = F.interpolate(x, size=(height, SIDE), mode="bicubic", antialias=antialias, align_corners=False)
        canvas = torch.zeros(1, 3, SIDE, SIDE)
        top = (SIDE - height) // 2
        canvas[:, :, top : top + height] = x
        done.append((canvas - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1))
    return torch.cat(done)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [2, 64])
def test_hpsv2_is_the_cosine_of_letterboxed_images(open_clip_folder: Path, antialias: bool, size: int) -> None:
    images = pictures(5, 40, 55)  # 9 rows of bars: 4 above, 5 below
    expected = open_clip_cosines(open_clip_folder, hps_pixels(images, antialias))
    scores = hpsv2(str(open_clip_folder), antialias=antialias, batch_size=size)(images, PROMPTS)
    torch.testing.assert_close(scores, expected.double(), **CLOSE)
    other = hpsv2(str(open_clip_folder), antialias=not antialias)(images, PROMPTS)
    assert float((other - scores).abs().max()) > 1e-4  # the switch does something


def test_hpsv2_bars_are_black_and_squares_have_none() -> None:
    black = torch.tensor([-m / s for m, s in zip(CLIP_MEAN, CLIP_STD, strict=True)])
    wide = letterbox(torch.full((1, 3, 30, 50), 1.0), SIDE, True)
    torch.testing.assert_close(wide[0, :, :6, 0], black[:, None].expand(3, 6))
    torch.testing.assert_close(wide[0, :, -7:, 0], black[:, None].expand(3, 7))
    square = letterbox(torch.full((1, 3, 50, 50), 1.0), SIDE, True)
    assert bool((square > 0).all())


def test_hpsv2_of_a_bare_file_is_vit_h_14(open_clip_folder: Path, tmp_path: Path) -> None:
    from flowrl.scorers.clip import _open_clip_settings

    settings, _ = _open_clip_settings(tmp_path / "hpsv2.1.safetensors", "hpsv2", "ViT-H-14")
    sizes = settings["embed_dim"], settings["vision_cfg"]["width"], settings["vision_cfg"]["layers"]
    assert sizes == (1024, 1280, 32) and settings["vision_cfg"]["image_size"] == 224


@pytest.mark.parametrize("size", [2, 64])
def test_aesthetic_is_the_head_on_the_unit_embedding(clip_folder: Path, aesthetic_file: Path, size: int) -> None:
    images = pictures()
    from transformers import CLIPModel

    model: Any = CLIPModel.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        states = model.vision_model(pixel_values=by_torchvision(images, SIDE)).pooler_output
        embeddings = F.normalize(model.visual_projection(states), dim=1)
        expected = aesthetic_head()(embeddings)[:, 0]
    assert float(expected.std()) > 1e-3
    scores = aesthetic(str(aesthetic_file), clip=str(clip_folder), batch_size=size)(images, PROMPTS)
    torch.testing.assert_close(scores, expected.double(), **CLOSE)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention [n, T, width], head by head; `mask` [n, S] is True where keys count."""
    parts = []
    for q, k, v in zip(*(x.chunk(heads, dim=-1) for x in (query, key, value)), strict=True):
        logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None], -math.inf)
        parts.append(logits.softmax(dim=-1) @ v)
    return torch.cat(parts, dim=-1)


def reference_imagereward(state: dict[str, Tensor], pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """The published model's forward pass, written out: pre-norm ViT (eps 1e-6), post-norm BERT (1e-12), exact GELU."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[name + ".weight"], state[name + ".bias"])

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[name + ".weight"], state[name + ".bias"], eps)

    eye, mouth = "blip.visual_encoder.", "blip.text_encoder."
    x = F.conv2d(pixels, state[eye + "patch_embed.proj.weight"], state[eye + "patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([state[eye + "cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x = x + state[eye + "pos_embed"]
    for i in range(2):
        block = f"{eye}blocks.{i}."
        q, k, v = linear(norm(x, block + "norm1", 1e-6), block + "attn.qkv").chunk(3, dim=-1)
        x = x + linear(attend(q, k, v, heads=2), block + "attn.proj")
        x = x + linear(F.gelu(linear(norm(x, block + "norm2", 1e-6), block + "mlp.fc1")), block + "mlp.fc2")
    seen = norm(x, eye + "norm", 1e-6)
    words = state[mouth + "embeddings.word_embeddings.weight"][ids]
    y = words + state[mouth + "embeddings.position_embeddings.weight"][: ids.shape[1]]
    y = norm(y, mouth + "embeddings.LayerNorm", 1e-12)
    for i in range(2):
        layer = f"{mouth}encoder.layer.{i}."
        for kind, source, keep in (("attention", None, mask.bool()), ("crossattention", seen, None)):
            base = f"{layer}{kind}."
            other = y if source is None else source
            q, k, v = (
                linear(y, base + "self.query"),
                linear(other, base + "self.key"),
                linear(other, base + "self.value"),
            )
            mixed = linear(attend(q, k, v, heads=1, mask=keep), base + "output.dense")
            y = norm(mixed + y, base + "output.LayerNorm", 1e-12)
        hidden = F.gelu(linear(y, layer + "intermediate.dense"))
        y = norm(linear(hidden, layer + "output.dense") + y, layer + "output.LayerNorm", 1e-12)
    z = y[:, 0]
    for index in (0, 2, 4, 6, 7):
        z = linear(z, f"mlp.layers.{index}")
    return (z[:, 0] - 0.16717362830052426) / 1.0333394966054072


@pytest.mark.parametrize("size", [2, 64])
def test_imagereward_is_the_published_forward_pass(imagereward_folder: Path, size: int) -> None:
    images = pictures()
    scorer = imagereward(str(imagereward_folder), tokenizer=str(imagereward_folder), batch_size=size)
    words = {word: 5 + index for index, word in enumerate(WORDS_KNOWN)}
    rows = [[2, *(words[word] for word in prompt.split()), 3] for prompt in PROMPTS]
    ids = torch.tensor([row + [0] * (35 - len(row)) for row in rows])
    expected = reference_imagereward(imagereward_weights(), by_torchvision(images, SIDE), ids, ids != 0)
    assert float(expected.std()) > 1e-3 and (MEAN, STD) == (0.16717362830052426, 1.0333394966054072)
    torch.testing.assert_close(scorer(images, PROMPTS), expected.double(), **CLOSE)


def test_imagereward_looks_at_both_image_and_prompt(imagereward_folder: Path) -> None:
    scorer = imagereward(str(imagereward_folder), tokenizer=str(imagereward_folder))
    images = pictures(2)
    same_image = scorer(images[[0, 0]], ["a red cube", "two green cones"])
    same_prompt = scorer(images, ["a red cube", "a red cube"])
    assert abs(float(same_image[0] - same_image[1])) > 1e-3 and abs(float(same_prompt[0] - same_prompt[1])) > 1e-3


@pytest.mark.parametrize(("height", "width"), [(40, 54), (54, 40), (32, 32), (20, 33), (33, 20)])
def test_preprocessing_is_transformers_and_torchvisions(clip_folder: Path, height: int, width: int) -> None:
    images = pictures(2, height, width)
    pixels = (images * 255).round().byte()
    ours = read_preprocessing(str(clip_folder), "x")(pixels)
    torch.testing.assert_close(ours, by_transformers(images, clip_folder), rtol=0, atol=1e-6)
    ours = Preprocessing(SIDE, SIDE, floor=False)(pixels)
    torch.testing.assert_close(ours, by_torchvision(images, SIDE), rtol=0, atol=1e-6)

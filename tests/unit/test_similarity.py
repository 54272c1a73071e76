"""Likeness to a reference image: DINO against a direct formula, LPIPS against its own package."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from flowrl.errors import UserError
from flowrl.score import load_rewards
from flowrl.scorers.convert import convert
from flowrl.types import Prompt, Samples
from rewards.similarity import dino_similarity, lpips_similarity, read_reference
from tests.tiny_scorers import (
    CLOSE,
    PROMPTS,
    SIDE,
    as_pil,
    pictures,
    randomize,
    save_dino,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dino(tmp_path_factory.mktemp("dino"))


@pytest.mark.parametrize("size", [2, 64])
def test_dino_similarity_is_the_cosine_of_class_tokens(dino_folder: Path, tmp_path: Path, size: int) -> None:
    from torchvision import transforms as T
    from transformers import Dinov2Model

    images, others = pictures(5, 40, 56), pictures(5, 46, 38).flip(0)  # even margins: both roundings agree
    as_pil(others)[1].save(tmp_path / "reference.png")
    reference = [others[0], str(tmp_path / "reference.png"), as_pil(others)[2], None, images[4]]
    steps = T.Compose(
        [
            T.Resize(SIDE, interpolation=T.InterpolationMode.BICUBIC),
            T.CenterCrop(28),
            T.ToTensor(),
            T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    model: Any = Dinov2Model.from_pretrained(dino_folder).eval()

    def embed(x: Tensor) -> Tensor:
        with torch.no_grad():
            pixels = torch.stack([steps(image) for image in as_pil(x)])
            return F.normalize(model(pixels).last_hidden_state[:, 0], dim=1)

    expected = (embed(images) * embed(others)).sum(dim=1)
    scores = dino_similarity(str(dino_folder), batch_size=size)(images, PROMPTS, reference=reference)
    torch.testing.assert_close(scores[:3], expected[:3].double(), **CLOSE)
    assert math.isnan(float(scores[3])) and float(scores[4]) == pytest.approx(1.0, abs=1e-6)


def test_dino_similarity_of_a_vit_without_pooler_squeezes_images(tmp_path: Path) -> None:
    """DINO's own checkpoints: a plain ViT, no pooler in the file, images resized to a square."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    config = ViTConfig(
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40},
        **{"image_size": SIDE, "patch_size": 8},
    )
    model: Any = ViTModel(config, add_pooling_layer=False).eval()
    randomize(model)
    model.save_pretrained(tmp_path)
    square = {"height": SIDE, "width": SIDE}
    ViTImageProcessor(size=square, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(tmp_path)
    images, others = pictures(), pictures(5, 33, 60).flip(0)

    def embed(x: Tensor) -> Tensor:
        small = [np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for image in as_pil(x)]
        pixels = (torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
        with torch.no_grad():
            return F.normalize(model(pixels).last_hidden_state[:, 0], dim=1)

    expected = (embed(images) * embed(others)).sum(dim=1)
    scores = dino_similarity(str(tmp_path))(images, PROMPTS, reference=list(others))
    torch.testing.assert_close(scores, expected.double(), **CLOSE)


def test_references_that_cannot_be_used_are_named(dino_folder: Path, tmp_path: Path) -> None:
    scorer = dino_similarity(str(dino_folder))
    (tmp_path / "note.txt").write_text("no image")
    for given, match in (
        (str(tmp_path / "gone.png"), "gone.png"),
        (tmp_path / "note.txt", "note.txt"),
        (3, "found int"),
    ):
        with pytest.raises(UserError, match=match):
            scorer(pictures(1), ["a"], reference=[given])
    rewards = load_rewards([{"use": "dino_similarity", "options": {"path": str(dino_folder)}}])
    with pytest.raises(UserError, match="needs the column 'reference'"):
        rewards.raw(Samples([Prompt("a", 0)], pictures(1)))


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """AlexNet with torchvision's names and LPIPS heads with theirs, pickled and converted."""
    from torchvision.models import alexnet

    folder = tmp_path_factory.mktemp("lpips")
    network = alexnet(weights=None).features
    randomize(network, scale=0.05)
    state = {f"features.{key}": value for key, value in network.state_dict().items()}
    state["classifier.1.weight"] = torch.zeros(2, 2)  # published files hold the classifier as well
    generator = torch.Generator().manual_seed(2)
    widths = (64, 192, 384, 256, 256)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1, generator=generator) for i, n in enumerate(widths)}
    for name, weights in (("alexnet", state), ("heads", heads)):
        torch.save(weights, folder / f"{name}.pth")
        convert(folder / f"{name}.pth", folder / f"{name}.safetensors")
    return folder / "alexnet.safetensors", folder / "heads.safetensors"


def test_lpips_similarity_is_minus_the_packages_distance(lpips_files: tuple[Path, Path]) -> None:
    package = pytest.importorskip("lpips")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's `pretrained` argument
        theirs = package.LPIPS(pretrained=False, net="alex", pnet_rand=True, verbose=False).eval()
    backbone, heads = load_file(lpips_files[0]), load_file(lpips_files[1])
    renamed = {key: backbone[f"features.{key.split('.', 1)[1]}"] for key in theirs.net.state_dict()}
    theirs.net.load_state_dict(renamed)
    theirs.load_state_dict(heads, strict=False)
    images, others = pictures(3, 70, 72), pictures(6, 70, 72)[3:]
    with torch.no_grad():
        quantised = [(x * 255).round() / 255 for x in (images, others)]
        expected = theirs(*quantised, normalize=True)[:, 0, 0, 0]
    scorer = lpips_similarity(*map(str, lpips_files), batch_size=2)
    scores = scorer(images, PROMPTS[:3], reference=list(others))
    torch.testing.assert_close(scores, -expected.double(), rtol=1e-5, atol=1e-6)
    assert float(scores.max()) < -1e-3 and float(scorer(images[:1], ["a"], reference=[images[0]])[0]) == 0


def test_lpips_similarity_names_what_does_not_fit(lpips_files: tuple[Path, Path]) -> None:
    backbone, heads = map(str, lpips_files)
    with pytest.raises(UserError, match="at least 63 x 63 pixels"):
        lpips_similarity(backbone, heads)(pictures(1), ["a"], reference=[None])
    for wrong, match in (((heads, heads), "another architecture"), ((backbone, backbone), "no LPIPS heads")):
        with pytest.raises(UserError, match=match):
            lpips_similarity(*wrong)


def test_references_are_cut_to_the_images_shape() -> None:
    reference = Image.new("RGB", (80, 40), (255, 0, 0))
    reference.paste((0, 0, 255), (0, 0, 20, 40))  # outside the central square
    found = read_reference(reference, (20, 20))
    assert found.shape == (3, 20, 20) and bool((found[0, :, 1:] == 255).all()) and bool((found[2, :, 1:] == 0).all())

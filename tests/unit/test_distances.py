"""Distances between sets of pictures and diversity within a prompt: closed forms, and an evaluation that has them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

import flowrl.evaluation.features as module
from flowrl.errors import UserError
from flowrl.evaluation import evaluate, show
from flowrl.evaluation.distances import cmmd, diversity, frechet, vendi
from flowrl.evaluation.features import FeatureSpace, distances, open_space, with_diversity
from flowrl.evaluation.results import VariantScores, summarise
from flowrl.evaluation.target import Target
from flowrl.records.sample_files import Entry, sample_path, write_image, write_text
from flowrl.scorers.clip import unit
from tests.tiny_scorers import pictures, save_clip, save_dino


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def sample_of(mean: list[float], covariance: Tensor, count: int, seed: int) -> Tensor:
    """Rows whose own mean and covariance are exactly these."""
    rows = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = rows - rows.mean(dim=0)
    whitened = rows @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(rows.T))).T
    return whitened @ torch.linalg.cholesky(covariance).T + torch.tensor(mean, dtype=torch.float64)


def test_frechet_of_gaussians_with_known_covariances() -> None:
    a = sample_of([0.0, 0.0, 0.0], torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)), 50, 0)
    b = sample_of([1.0, 0.0, -2.0], torch.diag(torch.tensor([4.0, 4.0, 1.0], dtype=torch.float64)), 30, 1)
    # commuting covariances: |m|^2 + sum (sqrt a - sqrt b)^2 = 5 + 1 + 0 + 4
    assert frechet(a, b) == pytest.approx(10.0, abs=1e-9) and frechet(b, a) == pytest.approx(10.0, abs=1e-9)
    assert frechet(a, a) == pytest.approx(0.0, abs=1e-9)
    mixed = torch.tensor([[2.0, 1.2], [1.2, 1.0]], dtype=torch.float64)
    other = torch.tensor([[1.0, -0.4], [-0.4, 3.0]], dtype=torch.float64)
    # two dimensions, any covariances: tr (A B)^1/2 = sqrt(tr AB + 2 sqrt(det AB))
    product = mixed @ other
    root = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.det(product))))
    wanted = float(mixed.trace() + other.trace()) - 2 * root
    found = frechet(sample_of([0.0, 0.0], mixed, 40, 2), sample_of([0.0, 0.0], other, 40, 3))
    assert found == pytest.approx(wanted, abs=1e-9) and wanted > 1
    few = sample_of([0.0] * 3, torch.eye(3, dtype=torch.float64), 4, 4)[:3]  # fewer pictures than features
    assert math.isfinite(frechet(few, a)) and math.isnan(frechet(few[:1], a))


def test_cmmd_is_the_release_s_and_its_unbiased_form() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = unit(torch.randn(5, 8, generator=generator)), unit(torch.randn(7, 8, generator=generator))

    def mean(x: Tensor, y: Tensor, skip: bool) -> float:
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not (skip and i == j)]
        return float(np.mean([math.exp(-float((x[i] - y[j]).double().square().sum()) / 200) for i, j in pairs]))

    released, unbiased = cmmd(a, b)
    cross = 2 * mean(a, b, False)
    assert released == pytest.approx(1000 * (mean(a, a, False) + mean(b, b, False) - cross), abs=1e-6)
    assert unbiased == pytest.approx(1000 * (mean(a, a, True) + mean(b, b, True) - cross), abs=1e-6)
    assert cmmd(a, a)[0] == pytest.approx(0.0, abs=1e-9)
    apart = [(i, j) for i in range(5) for j in range(5) if i != j]
    paired = float(np.mean([math.exp(-float((a[i] - b[j]).double().square().sum()) / 200) for i, j in apart]))
    wanted = 1000 * (mean(a, a, True) + mean(b[:5], b[:5], True) - 2 * paired)
    assert cmmd(a, b[:5], paired=True)[1] == pytest.approx(wanted, abs=1e-6)
    assert cmmd(a, a, paired=True)[1] == pytest.approx(0.0, abs=1e-9) and cmmd(a, a)[1] < -0.1
    far = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    assert cmmd(*far)[0] == pytest.approx(1000 * (2 - 2 * math.exp(-4 / 200))) and math.isnan(cmmd(*far)[1])


def test_the_kernel_does_not_depend_on_how_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = unit(torch.randn(20, 6, generator=torch.Generator().manual_seed(1)))
    whole = cmmd(rows[:12], rows[12:])
    monkeypatch.setattr("flowrl.evaluation.distances.ROWS", 5)
    assert cmmd(rows[:12], rows[12:]) == pytest.approx(whole, abs=1e-9)


def test_the_unbiased_one_is_0_in_the_mean_for_one_distribution() -> None:
    """600 pairs of small sets of one distribution: the unbiased mean lies within 4 standard errors of 0, the released
    one far above it."""
    generator = torch.Generator().manual_seed(3)
    found = torch.tensor(
        [cmmd(*unit(torch.randn(12, 4, generator=generator)).split([5, 7])) for _ in range(600)], dtype=torch.float64
    )
    error = found.std(dim=0) / math.sqrt(len(found))
    assert abs(found[:, 1].mean()) < 4 * error[1] and found[:, 0].mean() > 20 * error[0]


def test_vendi_and_diversity_of_equal_and_orthogonal_rows() -> None:
    same, apart = torch.tensor([[0.6, 0.8]]).repeat(5, 1), torch.eye(5)
    assert vendi(same) == pytest.approx(1.0, abs=1e-6) and vendi(apart) == pytest.approx(5.0)
    assert diversity(same) == pytest.approx(0.0, abs=1e-6) and diversity(apart) == pytest.approx(1.0)
    assert vendi(torch.cat([apart[:2]] * 3)) == pytest.approx(2.0)  # three of each of two
    rows = unit(torch.randn(6, 4, generator=torch.Generator().manual_seed(5)))
    cosines = [float(rows[i] @ rows[j]) for i in range(6) for j in range(6) if i != j]
    assert diversity(rows) == pytest.approx(1 - np.mean(cosines), abs=1e-6)
    assert math.isnan(diversity(rows[:1])) and vendi(rows[:1]) == pytest.approx(1.0) and math.isnan(vendi(rows[:0]))


def test_the_measures_of_a_prompt_are_one_number_and_paired() -> None:
    ones = np.ones((2, 3))
    base = VariantScores({"correct": ones}, ones, [])
    same, apart = torch.tensor([[1.0, 0.0, 0.0]]).repeat(3, 1), torch.eye(3)
    scores = {"base": with_diversity(base, [apart, apart]), "tuned": with_diversity(base, [same, apart])}
    result = summarise(scores, ["a", "a"], ["a"], 100, 0)
    assert result["arms"]["tuned"]["measures"]["vendi"]["samples"]["value"] == pytest.approx(2.0)
    assert result["difference"]["diversity"]["samples"]["value"] == pytest.approx(-0.5)
    assert result["difference"]["diversity"]["win_rate"]["value"] == pytest.approx(0.25)
    single = with_diversity(VariantScores({"correct": ones[:, :1]}, ones[:, :1], []), [same[:1], apart[:1]])
    assert list(single.measures) == ["correct"]  # a prompt with one picture has none


def test_what_is_compared() -> None:
    rows = unit(torch.randn(9, 4, generator=torch.Generator().manual_seed(6)))
    space = FeatureSpace("clip", lambda pixels: pixels, rows[6:])
    found = distances(space, {"base": [rows[:2], rows[2:3]], "tuned": [rows[3:6]]})
    pairs = [("tuned", "base"), ("base", "reference"), ("tuned", "reference")]
    assert [(row["of"], row["from"]) for row in found["between"]] == pairs
    assert found["between"][1]["cmmd"] == pytest.approx(cmmd(rows[:3], rows[6:])[0])
    assert found["between"][1]["pictures"] == [3, 3]
    assert found["between"][0]["cmmd_unbiased"] == pytest.approx(cmmd(rows[3:6], rows[:3], paired=True)[1])
    assert found["between"][2]["cmmd_unbiased"] == pytest.approx(cmmd(rows[3:6], rows[6:])[1])
    alone = distances(FeatureSpace("clip", lambda pixels: pixels), {"model": [rows[:1]]})
    assert alone["between"] == []


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        "clip": str(save_clip(tmp_path_factory.mktemp("clip"))),
        "dino": str(save_dino(tmp_path_factory.mktemp("dino"))),
    }


@pytest.mark.parametrize("kind", ["clip", "dino"])
def test_features_do_not_depend_on_batches_or_sizes(
    encoders: dict[str, str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for number, file in enumerate(files):
        write_image(file, pictures(5, 40, 54 if number != 2 else 40)[number])
    target = Target("x", "images")
    space = open_space(encoders[kind], None, target)
    assert space is not None
    whole = space.read(files)
    monkeypatch.setattr(module, "BATCH", 1)
    torch.testing.assert_close(space.read(files), whole, rtol=0, atol=1e-5)
    assert whole.norm(dim=1).tolist() == pytest.approx([1.0] * 5, abs=1e-5)
    parts = space.of([Entry(0, {}, tuple(files[:2])), Entry(1, {}, tuple(files[2:]))])
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)
    assert [len(part) for part in parts] == [2, 3]
    held = open_space(encoders[kind], tmp_path, target)
    assert held is not None and held.reference is not None and held.reference.shape == whole.shape


def test_what_cannot_be_compared_is_named(encoders: dict[str, str], tmp_path: Path) -> None:
    target = Target("x", "images")
    assert open_space(None, None, target) is None
    with pytest.raises(UserError, match="--features measures pictures, and 'x' makes completions"):
        open_space(encoders["clip"], None, Target("x", "model", medium="completions"))
    with pytest.raises(UserError, match="should be a folder with two pictures or more"):
        open_space(encoders["clip"], tmp_path, target)
    with pytest.raises(UserError, match="should be a folder with two pictures or more"):
        open_space(encoders["clip"], tmp_path / "nothing", target)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="is a 'bert'; give a CLIP or a DINO"):
        open_space(str(tmp_path), None, target)


@pytest.mark.slow
def test_an_evaluation_reports_diversity_beside_its_scores(
    encoders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path / "cache"))
    folder, reference, rows = tmp_path / "images", tmp_path / "reference", pictures(8)
    for number in range(6):
        write_text(folder / f"{number // 3:05d}/metadata.jsonl", json.dumps({"prompt": f"a {number // 3}"}))
        write_image(
            sample_path(folder, number // 3, number % 3), rows[number if number < 3 else 3]
        )  # the second: equal
    for number in (6, 7):
        write_image(reference / f"{number}.png", rows[number])
    options: dict[str, Any] = {"clip": {"path": encoders["clip"], "device": "cpu"}}
    results = evaluate(
        *(str(folder), ["clip"], tmp_path / "out"), options=options, features=encoders["clip"], reference=reference
    )
    suite = results["suites"]["clip"]
    measures = suite["arms"]["images"]["measures"]
    space = open_space(encoders["clip"], None, Target("x", "images"))
    assert space is not None
    seen = space.read([sample_path(folder, n // 3, n % 3) for n in range(6)])
    wanted = [diversity(seen[:3]), 0.0]
    assert measures["diversity"]["samples"]["value"] == pytest.approx(np.mean(wanted), abs=1e-6)
    assert measures["vendi"]["samples"]["value"] == pytest.approx((vendi(seen[:3]) + 1) / 2, abs=1e-5)
    (between,) = suite["distances"]["between"]
    assert (between["of"], between["from"], between["pictures"]) == ("images", "reference", [6, 2])
    held = space.read(sorted(reference.iterdir()))
    assert between["cmmd"] == pytest.approx(cmmd(seen, held)[0]) and between["frechet"] == pytest.approx(
        frechet(seen, held)
    )
    console = Console(width=120, record=True)
    show(results, console)
    text = console.export_text()
    assert "vendi" in text and "Distance of images from reference (6 and 2 pictures): Fréchet" in text

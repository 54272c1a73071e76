"""Densities against torch.distributions, and what reductions do to ratios."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from flowrl.math.gaussians import elements, kl_equal_variance, log_density, mean_square, reduce_factor, squared_norm
from flowrl.math.groups import flat_groups, group_mean, group_std
from flowrl.math.random import derive, normal, permutation, seeds, uniform


def test_log_density_is_that_of_a_normal() -> None:
    generator = torch.Generator().manual_seed(0)
    x, mean = torch.randn(2, 4, 3, 5, dtype=torch.float64, generator=generator)
    s = torch.tensor([0.3, 0.7, 1.1, 0.01], dtype=torch.float64)
    squared = squared_norm(x - mean, 1) / s**2
    expected = torch.distributions.Normal(mean, s[:, None, None]).log_prob(x).sum(dim=(1, 2))
    for reduction, factor in (("sum", 1.0), ("mean", 1 / 15), ("sqrt", 1 / math.sqrt(15))):
        got = log_density(squared, s, 15) * reduce_factor(reduction, 15)
        assert torch.allclose(got, expected * factor, rtol=1e-12)


def test_kl_is_that_of_two_normals() -> None:
    first, second = torch.tensor([[0.2, -1.0]]).double(), torch.tensor([[0.5, 0.3]]).double()
    s = torch.tensor([0.6], dtype=torch.float64)
    normals = [torch.distributions.Normal(mean, 0.6) for mean in (first, second)]
    expected = torch.distributions.kl_divergence(*normals).sum()
    assert float(kl_equal_variance(first - second, s, 1)) == pytest.approx(float(expected), rel=1e-12)


def test_expected_ratio_of_each_reduction() -> None:
    """Sum form: E[ratio] = 1. Mean form: exp(-(d^2 / 2D)(1 - 1/D)) < 1, an artefact of dividing by D."""
    count, square = 64, 0.0673
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(200_000, count, generator=generator, dtype=torch.float64)
    shift = torch.full((count,), math.sqrt(square / count), dtype=torch.float64)
    log_ratio = z @ shift - square / 2
    assert float(log_ratio.exp().mean()) == pytest.approx(1, abs=3e-3)
    predicted = math.exp(-(square / (2 * count)) * (1 - 1 / count))
    assert float((log_ratio / count).exp().mean()) == pytest.approx(predicted, abs=3e-5)
    assert predicted == pytest.approx(0.99948, abs=1e-5)


def test_sqrt_reduction_does_not_depend_on_resolution_and_mean_does() -> None:
    """Share of ratios beyond a clip range for a latent and the same latent tiled four times."""
    generator = torch.Generator().manual_seed(2)

    def clipped(count: int, reduction: str, bound: float) -> float:
        z = torch.randn(20_000, count, generator=generator, dtype=torch.float64)
        log_ratio = (0.05 * z).sum(dim=1) * reduce_factor(reduction, count)  # type: ignore[arg-type]
        return float((log_ratio.abs() > bound).double().mean())

    assert clipped(64, "sqrt", 0.05) == pytest.approx(clipped(256, "sqrt", 0.05), abs=0.02)
    assert clipped(64, "mean", 0.005) > 1.5 * clipped(256, "mean", 0.005)


def test_noise_depends_on_seed_and_stream_only() -> None:
    keys = seeds(7, "sample", 3, count=5)
    whole = normal(keys, (4, 2), stream=1)
    assert torch.equal(whole[3:4], normal(keys[3:4], (4, 2), stream=1))
    assert not torch.equal(whole, normal(keys, (4, 2), stream=2))
    assert len({derive(7, "a", 1), derive(7, "a", 2), derive(8, "a", 1), derive(7, "b", 1), derive(7, "a", "1")}) == 5
    big = normal(seeds(0, "moments", count=200), (1000,), stream=0)
    assert abs(float(big.mean())) < 0.01 and abs(float(big.std()) - 1) < 0.01
    flat = uniform(seeds(0, "moments", count=200), (1000,), stream=0)
    assert abs(float(flat.mean()) - 0.5) < 0.005 and float(flat.min()) >= 0 and float(flat.max()) < 1
    assert sorted(permutation(3, 10).tolist()) == list(range(10))


def test_neighbouring_streams_and_seeds_are_uncorrelated() -> None:
    keys = seeds(1, "x", count=64)
    first, second = normal(keys, (512,), stream=0), normal(keys, (512,), stream=1)
    assert abs(float((first * second).mean())) < 0.02
    assert abs(float((first[1:] * first[:-1]).mean())) < 0.02


def test_group_statistics_equal_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    group = torch.tensor([3, 3, 3, 9, 9, 9, 9, 1])
    valid = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1]).bool()
    x = torch.randn(8, dtype=torch.float64, generator=generator)
    for ddof in (0, 1):
        mean, std = group_mean(x, group, valid), group_std(x, group, valid, ddof)
        for row in range(8):
            rows = x[(group == group[row]) & valid]
            assert float(mean[row]) == pytest.approx(float(rows.mean()))
            expected = float(rows.std(correction=ddof)) if len(rows) > ddof else 0.0
            assert float(std[row]) == pytest.approx(expected, abs=1e-15)
    assert flat_groups(torch.tensor([1.0, 1, 5, 1, 2, 1, 1, 4]), group, valid).tolist() == [True] * 3 + [False] * 4 + [
        True
    ]


def test_sums_and_means_of_squares_are_over_the_latent_axes() -> None:
    x = torch.tensor([[[1.0, 2.0], [2.0, 0.0]], [[0.0, 3.0], [4.0, 0.0]]])
    assert squared_norm(x, 1).tolist() == [9, 25] and squared_norm(x, 2).tolist() == [[5, 4], [9, 16]]
    assert mean_square(x, 1).tolist() == [2.25, 6.25] and mean_square(x, 2).tolist() == [[2.5, 2], [4.5, 8]]
    assert elements(x, 1) == 4 and elements(x, 2) == 2 and elements(torch.zeros(5, 2, 3, 4), 2) == 12


def test_squares_are_summed_in_double_precision() -> None:
    """Float32 would lose the last digits of a hundred thousand numbers, float16 could not hold the square of 300."""
    x = torch.full((1, 100_001), 1.0)
    x[0, 0] = 10_000.0
    assert float(squared_norm(x, 1)) == 1e8 + 1e5
    half = torch.full((1, 4), 300.0, dtype=torch.float16)  # its square is beyond float16
    assert float(mean_square(half, 1)) == 90_000 and mean_square(half, 1).dtype == torch.float32
    assert mean_square(half.double(), 1).dtype == torch.float64


def test_a_group_of_one_has_no_sample_deviation() -> None:
    group, valid = torch.tensor([0, 0, 1, 1]), torch.tensor([True, False, True, True])
    x = torch.tensor([5.0, 9.0, 1.0, 4.0], dtype=torch.float64)
    assert group_std(x, group, valid, 1).tolist() == pytest.approx([0, 0, math.sqrt(4.5), math.sqrt(4.5)])
    assert group_std(x, group, valid, 0).tolist() == pytest.approx([0, 0, 1.5, 1.5])
    nobody = torch.tensor([False, False, True, True])
    assert group_mean(x, group, nobody).tolist() == [0, 0, 2.5, 2.5]  # of no row at all
    assert flat_groups(x, group, nobody).tolist() == [True, True, False, False]


def test_a_stream_is_what_earlier_runs_have_drawn() -> None:
    """A run that is resumed by a later version goes on with the same numbers, so the mixture of seed and stream stays:
    2^64 over the golden ratio times the stream's number from 1 on, in 63 bits, as the seed of torch's generator."""
    golden = math.isqrt(5 * 2**130) - 2**65 >> 2  # floor(2^64 (sqrt(5) - 1) / 2), and odd already
    assert golden == 0x9E3779B97F4A7C15
    for stream in (0, 1, 1001):
        generator = torch.Generator().manual_seed((7 + golden * (stream + 1)) % 2**63)
        expected = torch.randn(3, generator=generator)
        assert torch.equal(normal(torch.tensor([7]), (3,), stream=stream)[0], expected)
        generator = torch.Generator().manual_seed((7 + golden * (stream + 1)) % 2**63)
        expected = torch.rand(3, generator=generator, dtype=torch.float64)
        assert torch.equal(uniform(torch.tensor([7]), (3,), stream=stream)[0], expected)
    generator = torch.Generator().manual_seed((7 + golden) % 2**63)
    assert torch.equal(permutation(7, 5), torch.randperm(5, generator=generator))
    digest = hashlib.blake2b(b"int:7/str:a/int:1", digest_size=8).digest()
    assert derive(7, "a", 1) == int.from_bytes(digest, "little") // 2
    assert seeds(7, "a", count=3).tolist() == [derive(7, "a", index) for index in range(3)]


def test_nobody_draws_nothing() -> None:
    nobody = torch.zeros(0, dtype=torch.int64)
    assert normal(nobody, (2, 3), stream=0).shape == (0, 2, 3) and uniform(nobody, (2, 3), stream=0).shape == (0, 2, 3)
    assert uniform(nobody, (2,), stream=0).dtype == torch.float64

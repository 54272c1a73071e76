"""Encoded prompts on disk: the same bits with and without, and nothing stale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.models.diffusion import load_policy
from flowrl.models.diffusion.condition import DiffusionCondition
from flowrl.models.diffusion.inputs import same
from flowrl.models.diffusion.prompt_cache import identity
from flowrl.types import prompts_of
from tests import pipelines
from tests.parity.conftest import PROMPTS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path))
    return tmp_path / "prompts"


def opened(folder: Any, name: str = "sd3", **options: Any) -> Any:
    return load_policy(folder(name), call={**pipelines.CALLS[name], **options}, prompt_cache=True, parity="skip")


def equal(one: DiffusionCondition, other: DiffusionCondition) -> bool:
    return torch.equal(one.index, other.index) and all(
        a.rows.keys() == b.rows.keys()
        and same(a.template, b.template)
        and all(same(a.rows[k], b.rows[k]) for k in a.rows)
        for a, b in zip(one.branches, other.branches, strict=True)
    )


def files(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


@pytest.mark.parametrize("name", ["sd3", pytest.param("z_image", marks=pytest.mark.slow)])
def test_a_later_run_gets_the_same_bits_and_encodes_nothing(name, folder, cache):
    first = opened(folder, name)
    if first.encoder.ragged:
        pytest.skip("pads to the longest of a batch")
    made = first.condition(prompts_of(PROMPTS))
    assert len(files(cache)) == len(PROMPTS)
    plain = load_policy(folder(name), call=pipelines.CALLS[name], parity="skip")
    for prompt in PROMPTS:  # one by one, without the cache
        one = plain.condition(prompts_of([prompt]))
        assert equal(first.condition(prompts_of([prompt])), one)
    later = opened(folder, name)
    start = later.encoder.texts_encoded
    assert equal(later.condition(prompts_of(PROMPTS)), made)
    assert later.encoder.texts_encoded == start


def test_a_damaged_file_is_said_and_made_again(folder, cache):
    first = opened(folder)
    made = first.condition(prompts_of(PROMPTS))
    broken, shorter, _ = files(cache)
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    shorter.write_bytes(b"")
    later = opened(folder)
    with pytest.warns(UserWarning, match="cannot be read and is made again"):
        assert equal(later.condition(prompts_of(PROMPTS)), made)
    assert broken.read_bytes() == whole and not list(cache.rglob(".tmp-*"))


def test_what_changes_an_encoding_changes_the_key(folder):
    policy = opened(folder)
    known = identity(policy.recorder)
    assert identity(opened(folder).recorder) == known
    assert identity(opened(folder, max_sequence_length=8).recorder) != known
    with torch.no_grad():
        next(policy.parameters().__iter__()).add_(1.0)  # the denoiser's weights are none of its business
    assert identity(policy.recorder) == known
    with torch.no_grad():
        next(policy.pipeline.text_encoder.parameters()).flatten()[0].add_(1e-3)
    changed = identity(policy.recorder)
    assert changed != known
    policy.pipeline.tokenizer.add_tokens(["<new>"])
    assert identity(policy.recorder) not in (known, changed)


def test_changed_text_encoders_are_asked_again(folder):
    policy = opened(folder)
    before = policy.condition(prompts_of(PROMPTS))
    with torch.no_grad():
        for parameter in policy.pipeline.text_encoder.parameters():
            parameter.mul_(1.1)
    policy.encoder = policy.encoder.renewed()
    assert not equal(policy.condition(prompts_of(PROMPTS)), before)


def test_without_the_key_nothing_is_written(folder, cache):
    load_policy(folder("sd3"), call=pipelines.CALLS["sd3"], parity="skip").condition(prompts_of(PROMPTS))
    assert not cache.exists()

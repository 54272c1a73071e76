"""Completions that are pictures: tokens, codes and images, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import VQModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flowrl import load_policy
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.evaluation import evaluate
from flowrl.models import export_policy
from flowrl.models.lora import LoRAOptions
from flowrl.models.text.image_tokens import FOLDER, find_image_tokenizer
from flowrl.samplers.causal import CausalSampler
from flowrl.train import train
from flowrl.types import Draw, Prompt
from flowrl.worlds import shape_tokens
from flowrl.worlds.shapes.scenes import random_scene, render
from flowrl.worlds.shapes.verifier import score

CODES, SIDE = 8, 2
WORDS = ("<pad>", "<eos>", "a", "red", "dot")


def make_model(folder: Path, codes: int = CODES) -> Path:
    """A causal model of five words and some codes' tokens, whose order is not the codes', with its image tokenizer."""
    torch.manual_seed(0)
    names = [*WORDS, *(f"<image_{code}>" for code in reversed(range(codes)))]
    raw = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, vocab_size=len(names), num_attention_heads=2, pad_token_id=0, eos_token_id=1)
    LlamaForCausalLM(config).save_pretrained(folder)
    kind: Any = VQModel
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
    }
    network = kind(**blocks, latent_channels=3, sample_size=4, num_vq_embeddings=CODES, norm_num_groups=4)
    network.save_pretrained(folder / FOLDER)
    return folder


def test_completions_become_the_codes_pictures(tmp_path: Path) -> None:
    policy: Any = load_policy(make_model(tmp_path), family="causal", device="cpu")
    network = VQModel.from_pretrained(tmp_path / FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    codes = torch.tensor([[0, 1, 2, 3], [7, 7, 0, 4]])
    tokens = torch.tensor([tokenizer.convert_tokens_to_ids([f"<image_{c}>" for c in row]) for row in codes.tolist()])
    images = policy.decode(tokens)
    with torch.no_grad():
        latents = network.quantize.get_codebook_entry(codes.flatten(), (2, SIDE, SIDE, 3))
        expected = network.decode(latents, force_not_quantize=True).sample
    assert images.shape == (2, 3, 4, 4)
    torch.testing.assert_close(images, (expected / 2 + 0.5).clamp(0, 1))
    assert images.std() > 0


def test_only_pictures_are_sampled(tmp_path: Path) -> None:
    policy: Any = load_policy(make_model(tmp_path), family="causal", device="cpu")
    prompts = [Prompt("a red dot", 0)] * 20 + [Prompt("a dot", 1)] * 20
    draw = Draw.of(torch.arange(40), torch.arange(40) // 20, 0, 0, prompts)
    rollout = CausalSampler(length=SIDE * SIDE)(policy, policy.condition(draw.prompts), draw)
    assert rollout.final.min() >= len(WORDS) and len(rollout.final.unique()) == CODES
    assert policy.decode(rollout.final).shape == (40, 3, 4, 4)
    with pytest.raises(UserError, match=r"2 x 2 = 4 tokens .* algorithm\.sampler\.length is 5; set it to 4"):
        policy.fit_prompts(prompts, 5)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    fewer = make_model(tmp_path / "fewer", codes=CODES - 2)
    with pytest.raises(UserError, match=r"has 8 codes, .* no token <image_6> \(2 of them are missing\); add <image_0>"):
        load_policy(fewer, family="causal", device="cpu")
    with pytest.raises(UserError, match=r"model\.image_tokenizer: .* holds no VQModel of diffusers"):
        load_policy(fewer, family="causal", device="cpu", image_tokenizer=str(fewer))
    with pytest.raises(UserError, match="neither a folder nor a name on the Hugging Face hub"):
        load_policy(fewer, family="causal", device="cpu", image_tokenizer=str(tmp_path / "nowhere" / "at" / "all"))


def test_a_merged_export_draws_the_same(tmp_path: Path) -> None:
    made = make_model(tmp_path / "base")
    apart = tmp_path / "vq"
    (made / FOLDER).rename(apart)
    assert find_image_tokenizer(made) is None and find_image_tokenizer(made, str(apart)) == str(apart)
    options: dict[str, Any] = {"family": "causal", "device": "cpu", "lora": LoRAOptions(rank=2)}
    policy: Any = load_policy(made, image_tokenizer=str(apart), **options)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    export_policy(policy, tmp_path / "out", "merged")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    again: Any = load_policy(tmp_path / "out", family="causal", device="cpu")
    tokens = torch.arange(len(WORDS), len(WORDS) + 4)[None]
    assert torch.equal(again.decode(tokens), policy.decode(tokens))
    assert json.loads((tmp_path / "out" / FOLDER / "config.json").read_text())["num_vq_embeddings"] == CODES


def test_the_worlds_tokenizer_keeps_every_scene() -> None:
    network: Any = VQModel.from_pretrained(shape_tokens.BASE / FOLDER)
    rows, rng = shape_tokens.prompts("test"), random.Random(3)
    images = render([random_scene(row, rng) for row in rows])
    with torch.no_grad():
        again = (network.decode(network.encode(images * 2 - 1).latents).sample / 2 + 0.5).clamp(0, 1)
    assert score(again, rows)[0].float().mean() > 0.97 < score(images, rows)[0].float().mean()


@pytest.mark.slow
def test_the_worlds_base_draws_half_of_the_prompts() -> None:
    policy: Any = load_policy("shape_tokens", family="causal", device="cpu")
    rows = shape_tokens.prompts("test")
    prompts = [Prompt(row["prompt"], number, row) for number, row in enumerate(rows)]
    draw = Draw.of(torch.arange(len(rows)), torch.arange(len(rows)), 0, 0, prompts)
    rollout = CausalSampler(length=shape_tokens.LENGTH)(policy, policy.condition(prompts), draw)
    assert 0.35 < score(policy.decode(rollout.final), rows)[0].float().mean() < 0.75


@pytest.mark.slow
def test_rewards_of_pictures_train_it_and_are_evaluated(tmp_path: Path) -> None:
    changes = {"iterations": 2, "threads": 1, "micro_batch": 16, "sample_batch": 16}
    run = train(
        Config.of(
            {
                "name": "drawn",
                "out": str(tmp_path / "run"),
                "model": {"path": "shape_tokens", "full": True},
                "algorithm": {"use": "selftok_pg", "length": 16},
                "data": {"train": "shapes:train", "test": "shapes:test", "prompts": 4, "group": 4},
                "rewards": ["shapes"],
                "train": changes,
                "eval": {"every": 1, "prompts": 8, "batch": 8},
                "log": {"samples": 2, "samples_every": 1},
            }
        )
    )
    assert len(list(run.glob("samples/*/*.png"))) == 4
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["ratio/first_max_deviation"] < 1e-4 and lines[-1]["grad_norm"] > 0
    suites = evaluate(str(run), ["geneval"], tmp_path / "eval", samples=1, limit=6)["suites"]
    assert suites["geneval"]["arms"].keys() == {"base", "tuned"}

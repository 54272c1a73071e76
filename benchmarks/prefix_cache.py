"""Time of block-wise masked sampling with prompt and finished blocks read once, over full passes, in turns.

Usage: python benchmarks/prefix_cache.py [--repeats 5]
A DiffusionGemma of 4 layers and width 128 with random weights; canvases of 32 tokens in 16 steps each; one thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer, DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from flowrl.math.random import seeds
from flowrl.models import load_policy
from flowrl.samplers.masked import MaskedSampler
from flowrl.types import Draw, prompts_of
from flowrl.worlds import sudoku

ROWS, CANVAS = 4, 32


def build(folder: Path) -> None:
    """A mixture of experts with the tokenizer of the sudoku world, which has a mask token."""
    tokenizer = AutoTokenizer.from_pretrained(sudoku.BASES["masked"])
    torch.manual_seed(0)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "global_head_dim": 32, "sliding_window": 64,
        "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64, "max_position_embeddings": 2048,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "eos", "bos")},
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 8, "model_type": "gemma4_vision",
    }  # fmt: skip
    config = DiffusionGemmaConfig(
        text_config=text, vision_config=vision, canvas_length=CANVAS, image_token_id=0, boi_token_id=0, eoi_token_id=0
    )
    DiffusionGemmaForBlockDiffusion(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        build(Path(made))
        policy = load_policy(made, family="masked", full=True)
    assert policy.keeps_prefixes
    policy.end_tokens = (-1,)  # every canvas is filled
    draw = Draw.of(seeds(0, "benchmark", count=ROWS), torch.arange(ROWS), 0, 1)
    for words, canvases in ((32, 2), (256, 2), (256, 8)):
        condition = policy.condition(prompts_of(["1234" * (words // 4)] * ROWS))
        sampler = MaskedSampler(length=canvases * CANVAS, steps=16 * canvases, block=CANVAS)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        final = {}
        for _ in range(repeats):
            for kept in (True, False):
                policy.keeps_prefixes = kept
                start = time.perf_counter()
                final[kept] = sampler(policy, condition, draw).final
                seconds[kept].append(time.perf_counter() - start)
        ratios = sorted(a / b for a, b in zip(seconds[True], seconds[False], strict=True))
        print(
            f"prompt {int(condition.row_lengths[0])}, completion {sampler.length}: kept over full passes"
            f" {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f});"
            f" same tokens: {bool(final[True].equal(final[False]))}"
        )


if __name__ == "__main__":
    main()

"""Trains the world's base model from nothing: `python -m flowrl.worlds.shape_tokens.pretrain --out DIR`."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flowrl.worlds.images.autoencoder import Vae
from flowrl.worlds.shape_tokens import LENGTH
from flowrl.worlds.shape_tokens.codebook import CODES, tokenizer_of
from flowrl.worlds.shapes import BASE
from flowrl.worlds.shapes.captions import LAYOUT, NOISY, Mix, draw_pairs
from flowrl.worlds.shapes.prompts import vocabulary
from flowrl.worlds.text.pretraining import INITIAL
from flowrl.worlds.text.tokenizer import EOS, PAD, save_tokenizer

PAIRS = 40_000
BATCH = 64
LR = 2e-3
LESSONS = ((LAYOUT, 0.45), (NOISY, 0.55))
"""Captions and shares of the time: relations are not learned from the noisy mix alone, as in the shapes world."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every word of a caption, and ``<image_0>`` ... for the codes; another word is an error."""
    names = [PAD, EOS, *vocabulary(), *(f"<image_{code}>" for code in range(CODES))]
    raw = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """An untrained network."""
    torch.manual_seed(seed)
    names = tokenizer.get_vocab()
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=112,
            intermediate_size=336,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=64,
            initializer_range=INITIAL,
            tie_word_embeddings=True,
            pad_token_id=names[PAD],
            eos_token_id=names[EOS],
            bos_token_id=None,
        )
    )


def pairs(vae: Vae, images: VQModel, words: PreTrainedTokenizerFast, mix: Mix, seed: int) -> dict[int, Tensor]:
    """Captions and their pictures' tokens as rows of ids, by the number of words."""
    rng, book, found = random.Random(seed), images.quantize.embedding.weight, defaultdict(list)
    first = words.get_vocab()["<image_0>"]
    for _ in range(PAIRS // 500):
        latents, captions = draw_pairs(500, rng, vae, mix)
        codes = torch.cdist(latents.permute(0, 2, 3, 1).flatten(0, 2), book).argmin(dim=1).view(-1, LENGTH)
        for caption, row in zip(captions, codes, strict=True):
            prompt = torch.tensor(words(caption)["input_ids"])
            found[len(prompt)].append(torch.cat([prompt, row + first]))
    return {length: torch.stack(rows) for length, rows in sorted(found.items())}


def loss_of(model: Any, rows: Tensor) -> Tensor:
    """Cross-entropy of the picture's tokens, mean."""
    logits = model(input_ids=rows).logits[:, -LENGTH - 1 : -1]
    return F.cross_entropy(logits.flatten(0, 1), rows[:, -LENGTH:].flatten())


def train(model: Any, lessons: list[tuple[dict[int, Tensor], float]], seed: int) -> None:
    """For so many CPU seconds on each lesson's pairs; leaves the averaged weights."""
    parameters, generator = list(model.parameters()), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    average, step, running = [p.detach().clone() for p in parameters], 0, 0.0
    for place, (data, seconds) in enumerate(lessons):
        sizes, start, done = torch.tensor([float(len(rows)) for rows in data.values()]), time.process_time(), 0.0
        while done < 1:
            done = (time.process_time() - start) / seconds
            falling = 1.0 if place + 1 < len(lessons) else min(1.0, max(0.02, 2 * (1 - done)))
            for group in optimizer.param_groups:
                group["lr"] = LR * min(1.0, (step + 1) / 200) * falling
            rows = list(data.values())[int(torch.multinomial(sizes, 1, generator=generator))]
            loss = loss_of(model, rows[torch.randint(len(rows), (BATCH,), generator=generator)])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            step += 1
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(0.998, step / (step + 10)))
            running += (loss.item() - running) * max(0.005, 1 / step)
            if step % 250 == 0:
                print(json.dumps({"step": step, "done": round(done, 3), "loss": round(running, 4)}), flush=True)
    with torch.no_grad():
        for parameter, value in zip(parameters, average, strict=True):
            parameter.copy_(value)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5, help="CPU minutes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    vae: Any = AutoencoderKL.from_pretrained(BASE / "vae").eval().requires_grad_(False)
    words, images = build_tokenizer(), tokenizer_of(vae, args.seed)
    model = build_model(words, args.seed)
    lessons = [
        (pairs(vae, images, words, mix, args.seed + number), share * 60 * args.minutes)
        for number, (mix, share) in enumerate(LESSONS)
    ]
    train(model, lessons, args.seed)
    model.save_pretrained(args.out)
    images.save_pretrained(args.out / "image_tokenizer")
    save_tokenizer(words, args.out)
    for file in args.out.rglob("*.safetensors"):
        save_file({name: value.half() for name, value in load_file(file).items()}, file, {"format": "pt"})


if __name__ == "__main__":
    main()

"""How an image world's base model is trained: a tiny Stable Diffusion 3 by flow matching on captioned scenes."""

from __future__ import annotations

import argparse
import copy
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers import StableDiffusion3Pipeline as Pipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowrl.worlds.images.autoencoder import Vae
from flowrl.worlds.images.text import (
    Language,
    build_tokenizer,
    contextual_encoder,
    mute_encoder,
    mute_tokenizer,
    one_hot_encoder,
    write_slow_tokenizer,
)

HEADS = 4
UNCONDITIONAL = 0.10  # captions replaced by "" for classifier-free guidance
DrawPairs = Callable[[int, random.Random], tuple[Tensor, list[str]]]
"""(number, source of randomness) to (clean latents [number, C, h, w], captions)."""


@dataclass(frozen=True)
class Recipe:
    """One training run. Duration counts CPU seconds of this process, so a busy machine changes nothing."""

    seconds: float
    batch_size: int = 32
    lr: float = 2e-3
    warmup: int = 100
    decay_from: float = 0.6  # share of the run after which the rate falls linearly to 2 %
    ema: float = 0.998
    high_noise: float = 0.2  # share of times drawn from [0.8, 1], where layout and count are decided
    train_text: bool = True
    seed: int = 0


def build(vae: Vae, language: Language, seed: int, width: int, layers: int = 3) -> Pipeline:
    """An untrained pipeline around a trained autoencoder."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(language)
    first, second = contextual_encoder(tokenizer, language), one_hot_encoder(tokenizer, language)
    side = vae.config.sample_size // 8
    text = first.config.hidden_size + second.config.hidden_size
    transformer = SD3Transformer2DModel(
        sample_size=side,
        patch_size=2,  # a token is then one slot: shape, colour and place of an object are decided together
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        num_layers=layers,
        attention_head_dim=width // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=text,
        caption_projection_dim=width,
        pooled_projection_dim=text,
        pos_embed_max_size=side,
    )
    return Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=tokenizer,
        text_encoder_3=mute_encoder(text),
        tokenizer_3=mute_tokenizer(),
    )


def encode(pipe: Pipeline, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(prompt_embeds, pooled) exactly as the pipeline makes them with `max_sequence_length=1`."""
    first = pipe.text_encoder(ids, output_hidden_states=True)
    second = pipe.text_encoder_2(ids, output_hidden_states=True)
    words = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
    absent = words.new_zeros(len(ids), 1, words.shape[-1])  # the mute third encoder's only token
    return torch.cat([words, absent], 1), torch.cat([first.text_embeds, second.text_embeds], -1)


def draw_times(n: int, high_noise: float, generator: torch.Generator) -> Tensor:  # [n] in (0, 1]
    """Logit-normal times, a share of them replaced by uniform ones near pure noise."""
    t = torch.sigmoid(0.2 + 1.2 * torch.randn(n, generator=generator))
    high = 0.8 + 0.2 * torch.rand(n, generator=generator)
    return torch.where(torch.rand(n, generator=generator) < high_noise, high, t)


def batches(
    draw: DrawPairs, batch_size: int, seed: int, pool: int = 12_288, reuse: int = 6
) -> Iterator[tuple[Tensor, list[str]]]:
    """Endless (clean latents [batch_size, C, h, w], captions). Each scene is seen about `reuse` times.

    A rolling pool: a quarter of it is replaced whenever `reuse` times that many samples have been drawn.
    """
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    quarters = [draw(pool // 4, rng) for _ in range(4)]
    while True:
        latents = torch.cat([z for z, _ in quarters])
        captions = [c for _, chunk in quarters for c in chunk]
        for _ in range(reuse * (pool // 4) // batch_size):
            rows = torch.randint(len(captions), (batch_size,), generator=generator)
            texts = [captions[i] for i in rows.tolist()]
            yield latents[rows], ["" if rng.random() < UNCONDITIONAL else text for text in texts]
        quarters = [*quarters[1:], draw(pool // 4, rng)]


def continue_pretraining(
    pipe: Pipeline,
    recipe: Recipe,
    draw: DrawPairs,
    log: Callable[[dict[str, float]], None] = lambda row: None,
    checkpoint: Callable[[Pipeline, float], None] = lambda pipe, done: None,
) -> Pipeline:
    """Flow matching on captioned scenes, in place; returns a pipeline with the averaged weights.

    Also the control experiment "the same compute spent on more pre-training" for a benchmark.
    """
    parts = [pipe.transformer] + ([pipe.text_encoder, pipe.text_encoder_2] if recipe.train_text else [])
    parameters = [p for part in parts for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    average = [p.detach().clone() for p in parameters]
    stream = batches(draw, recipe.batch_size, recipe.seed)
    ids_of: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(recipe.seed)
    start, step, running, done = time.process_time(), 0, 1.0, 0.0
    while done < 1:
        done = (time.process_time() - start) / recipe.seconds
        falling = min(1.0, max(0.02, (1 - done) / max(1e-3, 1 - recipe.decay_from)))
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * min(1.0, (step + 1) / recipe.warmup) * falling
        clean, texts = next(stream)
        ids = torch.stack([_ids(pipe, text, ids_of) for text in texts])
        loss = _loss(pipe, clean, ids, recipe, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(recipe.ema, step / (step + 10)))
        running += (loss.item() - running) * max(0.005, 1 / step)
        if step % 250 == 0:
            log({"step": step, "done": done, "loss": running, "images": step * recipe.batch_size})
            checkpoint(_averaged(pipe, parts, average), done)
    return _averaged(pipe, parts, average)


def _loss(pipe: Pipeline, clean: Tensor, ids: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    with torch.set_grad_enabled(recipe.train_text):
        words, pooled = encode(pipe, ids)
    noise = torch.randn(clean.shape, generator=generator)
    t = draw_times(len(clean), recipe.high_noise, generator)
    mix = t[:, None, None, None]
    prediction = pipe.transformer((1 - mix) * clean + mix * noise, words, pooled, 1000 * t, return_dict=False)[0]
    return (prediction - (noise - clean)).square().mean()


def _ids(pipe: Pipeline, text: str, known: dict[str, Tensor]) -> Tensor:
    if text not in known:
        encoded = pipe.tokenizer(
            text, padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt"
        )
        known[text] = encoded.input_ids[0]
    return known[text]


@torch.no_grad()
def _averaged(pipe: Pipeline, parts: list[torch.nn.Module], average: list[Tensor]) -> Pipeline:
    copies = {name: module for name, module in pipe.components.items()}
    for name, module in copies.items():
        if any(module is part for part in parts):
            copies[name] = copy.deepcopy(module)
    values = iter(average)
    for part in parts:
        name = next(n for n, m in pipe.components.items() if m is part)
        for parameter in copies[name].parameters():
            if parameter.requires_grad:
                parameter.copy_(next(values))
    return Pipeline(**copies)


def save(pipe: Pipeline, folder: Path, half: bool = False) -> None:
    """Writes beside `folder`, then swaps: a reader never sees half a model. `half`: files of float16 numbers; the
    configs say float32, so whoever opens them computes in that."""
    fresh, stale = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (fresh, stale):
        shutil.rmtree(leftover, ignore_errors=True)
    pipe.save_pretrained(fresh, safe_serialization=True)
    for name in ("tokenizer", "tokenizer_2"):
        write_slow_tokenizer(pipe.components[name], fresh / name)
    index = fresh / "model_index.json"  # the name this class has in every version of transformers
    index.write_text(index.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    for file in fresh.rglob("*.safetensors") if half else ():
        save_file({name: value.half() for name, value in load_file(file).items()}, file, {"format": "pt"})
    if folder.exists():
        folder.rename(stale)
    fresh.rename(folder)
    shutil.rmtree(stale, ignore_errors=True)


def train(
    train_autoencoder: Callable[[float, int, Callable[[dict[str, float]], None]], Vae],
    build_pipeline: Callable[[Vae, int], Pipeline],
    lessons: Callable[[Vae, float, int], Sequence[tuple[Recipe, DrawPairs]]],
    *,
    minutes: float,
    vae_minutes: float,
    half: bool = False,
) -> None:
    """Trains a base as the command line says, autoencoder first; the folder is usable from the first checkpoint on.

    `train_autoencoder(seconds, seed, log)`, `build_pipeline(vae, seed)` and `lessons(vae, seconds, seed)` are the
    world's; the minutes are the defaults.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=minutes, help="CPU minutes for the flow model")
    parser.add_argument("--vae-minutes", type=float, default=vae_minutes)
    parser.add_argument("--vae", type=Path, help="reuse this pipeline's autoencoder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    def log(row: dict[str, Any]) -> None:
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)

    if args.vae:
        vae = AutoencoderKL.from_pretrained(args.vae, subfolder="vae").eval().requires_grad_(False)
    else:
        vae = train_autoencoder(60 * args.vae_minutes, args.seed, log)
    pipe = build_pipeline(vae, args.seed)
    for recipe, draw in lessons(vae, 60 * args.minutes, args.seed):
        pipe = continue_pretraining(pipe, recipe, draw, log, _saver(args.out))
        save(pipe, args.out, half)


def _saver(folder: Path, every: float = 0.1) -> Callable[[Pipeline, float], None]:
    saved = 0.0

    def checkpoint(pipe: Pipeline, done: float) -> None:
        nonlocal saved
        if done >= saved + every:
            saved = done
            save(pipe, folder)

    return checkpoint

"""The two commands every text world has: train a base, and measure one."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from flowrl.worlds.text.decoding import continue_, unmask
from flowrl.worlds.text.pretraining import Pair, Recipe, Shape, build, pretrain
from flowrl.worlds.text.tokenizer import save_tokenizer

FAMILIES = ("masked", "causal")
Rows = list[dict[str, Any]]
Verdict = Callable[[str, dict[str, Any]], dict[str, float]]
"""The verifier of a world: a completion and its row to ``strict`` and other scores."""


def load(folder: Path, family: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a folder, ready for decoding."""
    kind: Any = AutoModelForMaskedLM if family == "masked" else AutoModelForCausalLM
    return kind.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def train(
    characters: str,
    shape: Shape,
    minutes: Mapping[str, float],
    pairs: Callable[[int, int], Iterator[list[Pair]]],
    prepare: Callable[[Any, str], None] = lambda model, family: None,
) -> None:
    """Trains a base as the command line says and writes an ordinary Hugging Face folder.

    `minutes` are the default CPU minutes per family, `pairs(batch_size, seed)` the data, and `prepare(model, family)`
    may change the untrained weights.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, help=f"CPU minutes (default: {dict(minutes)})")
    parser.add_argument("--lr", type=float, default=Recipe.lr)
    parser.add_argument("--resume", type=Path, help="go on from this base: the control 'more pre-training'")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.resume:
        model, tokenizer = load(args.resume, args.family)
    else:
        model, tokenizer = build(args.family, characters, shape, args.seed)
        prepare(model, args.family)
    recipe = Recipe(60 * (args.minutes or minutes[args.family]), lr=args.lr, seed=args.seed)
    stream = pairs(recipe.batch_size, args.seed)
    pretrain(model, tokenizer, shape, stream, recipe, lambda row: print(json.dumps(row), flush=True))
    model.save_pretrained(args.out)
    save_tokenizer(tokenizer, args.out)


def measure(bases: Mapping[str, Path], prompts: Callable[[Any], Rows], length: int, verdict: Verdict) -> None:
    """Prints a `report` per decoder as JSON lines: every prompt 16 times at temperature 1, once greedily."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--base", type=Path, help="folder; default: the shipped base")
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--repeats", type=int, default=16, help="completions per prompt at temperature 1")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load(args.base or bases[args.family], args.family)
    for decoder in decoders(args.family, length):
        rows = prompts(args.split) * (args.repeats if decoder["temperature"] else 1)
        decode = unmask if args.family == "masked" else continue_
        made = decode(model, tokenizer, [row["prompt"] for row in rows], length, seed=args.seed, **decoder)
        line = {name: round(value, 3) for name, value in report(made, rows, verdict).items()}
        print(json.dumps({**decoder, "completions": len(rows), **line}), flush=True)


def report(completions: Sequence[str], rows: Rows, verdict: Verdict) -> dict[str, float]:
    """Means of what `verdict` says, `strict` also per tag, and `pass`, the share of prompts solved by any of their
    completions, also per tag (`rows` may repeat a prompt)."""
    values: dict[str, list[float]] = defaultdict(list)
    solved: dict[tuple[str, str], bool] = defaultdict(bool)
    for completion, row in zip(completions, rows, strict=True):
        scores = verdict(completion, row)
        for name, score in scores.items():
            values[name].append(score)
        values[f"strict/{row['tag']}"].append(scores["strict"])
        solved[row["tag"], row["prompt"]] |= bool(scores["strict"])
    for (tag, _), passed in solved.items():
        values["pass"].append(passed)
        values[f"pass/{tag}"].append(passed)
    return {name: sum(found) / len(found) for name, found in values.items()}


def decoders(family: str, length: int) -> list[dict[str, Any]]:
    """What `measure` compares: both temperatures; a masked model in a quarter, half and as many steps as tokens, both
    orders."""
    if family == "causal":
        return [{"temperature": 1.0}, {"temperature": 0.0}]
    return [
        {"steps": steps, "order": order, "temperature": temperature}
        for temperature in (1.0, 0.0)
        for order in ("random", "confident")
        for steps in (length // 4, length // 2, length)
    ]

"""Does an optical character reader read what the scenes world's verifier reads? On renderings and a base's pictures.

    OMP_NUM_THREADS=1 python -m benchmarks.ocr_agreement --repeats 4

The reader is the reward `ocr` (rapidocr, its models inside its wheel). Prompts of both splits for a word alone are
judged by its strict rule (nothing else is read), those for a word and a shape by Flow-GRPO's (the word is in what is
read), for a circle is an O to a reader of letters; that rule forgives letters too many, which the verifier does not.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from flowrl.worlds.images.measuring import sample
from flowrl.worlds.images.scenes import Metadata
from flowrl.worlds.images.verdict import Word
from flowrl.worlds.scenes import BASE, prompts
from flowrl.worlds.scenes.prompts import asks_for_text
from flowrl.worlds.scenes.scenes import random_scene, render
from flowrl.worlds.scenes.verifier import detect
from rewards.ocr import ocr


def agreement(images: Tensor, rows: list[Metadata], reader: ocr) -> dict[str, float]:
    """Shares of images whose word is right by either reader, of those on which both say the same, and of the words
    that the verifier says are right those that the reader finds right too."""
    wanted = [str(asks_for_text(row)) for row in rows]
    ours = torch.tensor([_reads(found, text) for found, text in zip(detect(images), wanted, strict=True)])
    theirs = reader(images, wanted, wanted) == 1
    return {
        "verifier": float(ours.float().mean()),
        "rapidocr": float(theirs.float().mean()),
        "agree": float((ours == theirs).float().mean()),
        "rapidocr where the verifier is content": float(theirs[ours].float().mean()),
    }


def _reads(found: list, wanted: str) -> bool:
    words = [thing.text for thing in found if isinstance(thing, Word)]
    return words == [wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BASE, help="pipeline folder: the base, or an export of a run")
    parser.add_argument("--repeats", type=int, default=4, help="images per prompt")
    parser.add_argument("--guidance", type=float, default=1.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = StableDiffusion3Pipeline.from_pretrained(options.model, dtype=torch.float32)
    asked = [row for split in ("train", "test") for row in prompts(split) if asks_for_text(row)] * options.repeats
    for tag, rule in (("text", "strict"), ("text_position", "flow_grpo")):
        rows, reader, rng = [row for row in asked if row["tag"] == tag], ocr(mode=rule, workers=1), random.Random(0)
        made = {
            "renderings": render([random_scene(row, rng) for row in rows]),
            "generated": sample(pipeline, rows, 0, options.guidance, steps=8),
        }
        for name, images in made.items():
            values = agreement(images, rows, reader).items()
            line = ", ".join(f"{key} {value:.3f}" for key, value in values)
            print(f"{tag}, {name}, {len(rows)} images: {line}", flush=True)


if __name__ == "__main__":
    main()

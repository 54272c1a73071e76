"""Pictures that the base of the shapes world makes for its training prompts: data for the page ``reward_hacking``.

``python -m benchmarks.evidence.base_pictures`` writes ``runs/base_pictures`` (PNG files and ``metadata.jsonl``), one
picture a prompt, right or wrong: the distribution that the policy begins with, and no more knowledge than that.
"""

from __future__ import annotations

import json

import torch
from diffusers import StableDiffusion3Pipeline

from benchmarks.evidence.runs import ROOT
from flowrl.media import picture
from flowrl.worlds.images.measuring import sample
from flowrl.worlds.shapes import BASE, prompts

FOLDER = ROOT / "runs" / "base_pictures"


def main() -> None:
    """The command."""
    torch.set_num_threads(1)
    rows = prompts("train")
    images = sample(StableDiffusion3Pipeline.from_pretrained(BASE, dtype=torch.float32), rows, 7, steps=8)
    FOLDER.mkdir(parents=True, exist_ok=True)
    named = [{**row, "file_name": f"{n}.png"} for n, row in enumerate(rows)]
    for row, image in zip(named, images, strict=True):
        picture(image).save(FOLDER / row["file_name"])
    (FOLDER / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in named))
    print(f"{len(rows)} pictures in {FOLDER}")


if __name__ == "__main__":
    main()

"""The pictures of the page ``reward_hacking``: the same held-out prompts and noise, of the base and of trained arms.

``python -m benchmarks.evidence.pictures RUN [RUN ...] --out FILE``: a row for the base, and one for the end of each
run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

SCALE, GAP = 2, 4


def rows(runs: list[Path]) -> list[list[Path]]:
    """The files of every row, in the order of the prompts."""
    first, last = ([sorted((run / "heldout").iterdir())[at] for run in runs] for at in (0, -1))
    return [sorted(folder.glob("*.png")) for folder in (first[0], *last)]


def sheet(files: list[list[Path]]) -> Image.Image:
    """All of them, enlarged without smoothing."""
    side = Image.open(files[0][0]).width * SCALE
    whole = Image.new("RGB", ((side + GAP) * len(files[0]) + GAP, (side + GAP) * len(files) + GAP), "white")
    for y, row in enumerate(files):
        for x, file in enumerate(row):
            with Image.open(file) as small:
                large = small.convert("RGB").resize((side, side), Image.Resampling.NEAREST)
            whole.paste(large, (GAP + x * (side + GAP), GAP + y * (side + GAP)))
    return whole


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    sheet(rows(given.runs)).save(given.out, optimize=True)


if __name__ == "__main__":
    main()

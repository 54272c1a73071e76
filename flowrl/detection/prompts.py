"""Prompts of GenEval's six kinds about COCO's objects: `python -m flowrl.detection.prompts --out train.jsonl`.

They are drawn from the benchmark's own distribution, so a model trained on them is measured in-distribution by GenEval:
give the benchmark's prompts as `deny`, hold objects out, and report a benchmark of other templates as well.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowrl.detection.metadata import RELATIONS, TAGS
from flowrl.detection.objects import COLORS, OBJECTS
from flowrl.errors import UserError, did_you_mean, first_line

Row = dict[str, Any]
NUMBERS = {2: "two", 3: "three", 4: "four"}
IRREGULAR = {
    "person": "people",
    "sheep": "sheep",
    "knife": "knives",
    "computer mouse": "computer mice",
    "skis": "pairs of skis",
    "scissors": "pairs of scissors",
}
COLORLESS = "person"
"""Never asked for in a colour."""
PATIENCE = 200
"""Draws in a row per object without a new prompt, after which a tag counts as exhausted."""


def generate(
    seed: int,
    per_tag: int = 100,
    *,
    weights: Mapping[str, float] | None = None,
    without: Collection[str] = (),
    deny: Collection[str] = (),
) -> list[Row]:
    """Different prompts with GenEval metadata, tag by tag; the same for the same arguments.

    ``weights`` multiplies ``per_tag`` for some tags (flow_grpo trains on far more positions than objects), ``without``
    are objects that never occur, ``deny`` prompts (texts) that never occur. A tag that has no more prompts gives fewer:
    single_object has one per object. Raises `UserError` for unknown names.
    """
    for name in without:
        if name not in OBJECTS:
            raise UserError(f"--without: there is no object {name!r}{did_you_mean(name, OBJECTS)}")
    for tag in weights or ():
        if tag not in TAGS:
            raise UserError(f"--weight: GenEval has no tag {tag!r}{did_you_mean(tag, TAGS)}")
    names = [name for name in OBJECTS if name not in without]
    if len(names) < 3:
        raise UserError(f"--without: {len(names)} objects are left, but prompts need at least 3")
    rows: list[Row] = []
    for tag in TAGS:
        number = round(per_tag * (weights or {}).get(tag, 1.0))
        rows += _draw(tag, number, names, set(deny), random.Random(f"{seed}-{tag}"))
    return rows


def plural(name: str) -> str:
    """More than one of an object."""
    if name in IRREGULAR:
        return IRREGULAR[name]
    return name + ("es" if name.endswith(("s", "x", "ch", "sh")) else "s")


def main(arguments: Sequence[str]) -> int:
    """The command: 0 when written, 2 (and one sentence on stderr) when the user can mend something."""
    parser = argparse.ArgumentParser(prog="python -m flowrl.detection.prompts", description=(__doc__ or "")[:66])
    parser.add_argument("--out", type=Path, required=True, help="new .jsonl file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-tag", type=int, default=100)
    parser.add_argument("--weight", action="append", default=[], metavar="TAG=FACTOR")
    parser.add_argument("--without", action="append", default=[], metavar="OBJECT")
    parser.add_argument("--deny", type=Path, action="append", default=[], metavar="FILE.jsonl")
    given = parser.parse_args(arguments)
    try:
        if given.out.exists():
            raise UserError(f"--out: {given.out} already exists; remove it or write elsewhere")
        denied = [text for file in given.deny for text in _texts(file)]
        weights = dict(_weight(text) for text in given.weight)
        rows = generate(given.seed, given.per_tag, weights=weights, without=given.without, deny=denied)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    given.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    counts = Counter(row["tag"] for row in rows)
    print(f"{given.out}: {len(rows)} prompts ({', '.join(f'{counts[tag]} {tag}' for tag in TAGS)})")
    return 0


def _draw(tag: str, number: int, names: Sequence[str], taken: set[str], rng: random.Random) -> list[Row]:
    rows: list[Row] = []
    failures = 0
    while len(rows) < number and failures < PATIENCE * len(names):
        row = _KINDS[tag](rng, names)
        if row["prompt"] in taken:
            failures += 1
        else:
            failures = 0
            taken.add(row["prompt"])
            rows.append({"tag": tag, **row})
    return rows


def _single_object(rng: random.Random, names: Sequence[str]) -> Row:
    name = rng.choice(names)
    return _row([_noun(name)], _article(name))


def _two_object(rng: random.Random, names: Sequence[str]) -> Row:
    a, b = rng.sample(names, 2)
    return _row([_noun(a), _noun(b)], f"{_article(a)} and {_article(b)}")


def _counting(rng: random.Random, names: Sequence[str]) -> Row:
    name, number = rng.choice(names), rng.choice(list(NUMBERS))
    row = _row([_noun(name, number)], f"{NUMBERS[number]} {plural(name)}")
    return {"include": row["include"], "exclude": [_noun(name, number + 1)], "prompt": row["prompt"]}


def _colors(rng: random.Random, names: Sequence[str]) -> Row:
    name, color = rng.choice(_colored(names)), rng.choice(COLORS)
    return _row([_noun(name) | {"color": color}], f"{_article(color)} {name}")


def _position(rng: random.Random, names: Sequence[str]) -> Row:
    subject, reference = rng.sample(names, 2)
    relation = rng.choice(RELATIONS)
    include = [_noun(reference), _noun(subject) | {"position": [relation, 0]}]
    return _row(include, f"{_article(subject)} {relation} {_article(reference)}")


def _color_attr(rng: random.Random, names: Sequence[str]) -> Row:
    (a, b), (x, y) = rng.sample(_colored(names), 2), rng.sample(COLORS, 2)
    include = [_noun(a) | {"color": x}, _noun(b) | {"color": y}]
    return _row(include, f"{_article(x)} {a} and {_article(y)} {b}")


_KINDS: dict[str, Callable[[random.Random, Sequence[str]], Row]] = dict(
    zip(TAGS, (_single_object, _two_object, _counting, _colors, _position, _color_attr), strict=True)
)


def _row(include: list[Row], text: str) -> Row:
    return {"include": include, "prompt": f"a photo of {text}"}


def _noun(name: str, count: int = 1) -> Row:
    return {"class": name, "count": count}


def _article(words: str) -> str:
    if words in ("skis", "scissors"):
        return f"a pair of {words}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _colored(names: Sequence[str]) -> list[str]:
    return [name for name in names if name != COLORLESS]


def _texts(file: Path) -> list[str]:
    if not file.is_file():
        raise UserError(f"--deny: there is no file {file}")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # JSON may hold U+2028, where str.splitlines cuts
        return [json.loads(line)["prompt"] for line in lines if line.strip()]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"--deny: {file} should hold JSON lines with a 'prompt', such as GenEval's metadata ({first_line(error)})"
        ) from error


def _weight(text: str) -> tuple[str, float]:
    tag, _, factor = text.partition("=")
    try:
        return tag, float(factor)
    except ValueError as error:
        raise UserError(f"--weight: give TAG=FACTOR such as position=2, found {text!r}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

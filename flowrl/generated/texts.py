"""Prompts that ask for a text in the picture, between double quotes, as the reward `ocr` reads it."""

from __future__ import annotations

import random
from typing import Any, Literal

SIZE, TEST_SIZE = 4000, 400

CARRIERS = (
    *("a wooden sign above the door of a bakery", "a neon sign in the window of a diner at night"),
    *("a chalkboard outside a small cafe", "a poster on a brick wall", "the cover of an old paperback"),
    *("a banner across a village street", "a birthday cake with icing", "a coffee mug on a desk"),
    *("a postcard pinned to a cork board", "a road sign beside a country lane", "a T-shirt on a hanger"),
    *("a handwritten note on a fridge", "a street name plate on a corner house", "a train station display"),
    *("a label on a jar of jam", "a sticker on a laptop", "a museum plaque under a painting"),
    *("a billboard over a highway at dusk", "a ticket for a concert", "a flag on a sailing boat"),
    *("a tattoo on a forearm", "a newspaper headline on a kitchen table", "a screen in an airport hall"),
    *("a doormat in front of a red door", "a paper bag from a bookshop", "a stone slab in a garden"),
)
VERBS = ("that says", "that reads", "with the words", "showing the text", "with the text")
LOOKS = (
    *("", "", ", seen from the front", ", in soft morning light", ", close-up photograph", ", watercolour painting"),
    *(", on a rainy day", ", photographed with a shallow depth of field", ", flat vector illustration"),
)
FIRST = (
    *("open", "fresh", "quiet", "golden", "lost", "early", "brave", "slow", "bright", "second", "hidden", "last"),
    *("honest", "northern", "silver", "warm", "little", "wild", "simple", "future", "paper", "electric", "green"),
)
SECOND = (
    *("river", "morning", "garden", "bread", "letters", "station", "mountain", "harbour", "summer", "engine", "music"),
    *("window", "market", "signal", "journey", "kitchen", "library", "island", "winter", "lantern", "orchard"),
)
SHORT = (
    "SALE",
    "EXIT",
    "Hello",
    "Welcome",
    "Thank You",
    "No Parking",
    "Wet Paint",
    "Platform 7",
    "Room 12",
    "Est 1998",
)
TAILS = (
    "today",
    "ahead",
    "for two",
    "since 1962",
    "at 9 am",
    "and tea",
    "on Main Street",
    "2049",
    "every Sunday",
    "only",
)


def ocr(split: Literal["train", "test"]) -> list[dict[str, Any]]:
    """4,000 prompts to train on and 400 to test on; the column `text` holds the words wanted, whose first two no
    prompt of the other split asks for."""
    rng = random.Random("ocr")
    pairs = [(first, second) for first in FIRST for second in SECOND]
    rng.shuffle(pairs)
    held = len(pairs) // 8
    own, size = (pairs[:held], TEST_SIZE) if split == "test" else (pairs[held:], SIZE)
    rng = random.Random(f"ocr-{split}")
    found: dict[str, dict[str, Any]] = {}
    while len(found) < size:
        text = rng.choice(SHORT) if split == "train" and rng.random() < 0.1 else _text(rng, own)
        carrier, verb, look = rng.choice(CARRIERS), rng.choice(VERBS), rng.choice(LOOKS)
        prompt = f'{carrier[0].upper()}{carrier[1:]} {verb} "{text}"{look}'
        found.setdefault(prompt, {"prompt": prompt, "text": text})
    return list(found.values())


def _text(rng: random.Random, pairs: list[tuple[str, str]]) -> str:
    words = " ".join(rng.choice(pairs))
    words = f"{words} {rng.choice(TAILS)}" if rng.random() < 0.5 else words
    return rng.choice((str.title, str.upper, str.capitalize))(words)

"""Scripted demonstrations of the world avoid: a sloppy driver that aims at the middle of every gap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from flowrl.environments.protocol import Array
from flowrl.math.random import derive, normal, seeds
from flowrl.types import Prompt
from flowrl.worlds.avoid.board import LIMIT, STEP, Board, observation
from flowrl.worlds.avoid.layout import RADIUS, ROWS, WAYS, gap_centre, way_name

FILE = Path(__file__).parent / "demonstrations.safetensors"
SPEED, PULL, AIM, JITTER = 0.9, 4.0, 0.05, 0.5
"""Speed upwards; speed aside per distance; deviations of where it aims within a gap, and of each command."""
MARGIN, CLEAR = 0.06, 0.06
"""It waits so far below a row of obstacles until the gap is so near to straight ahead."""
PER_WAY = 3
"""Demonstrations of each way that ship."""
CHUNK, HIDDEN = 4, (slice(5, 8), 0.4)
"""Of the base that is cloned from them: actions of a chunk; what is asked is hidden in this share of the pairs, so that
the base also acts where any way counts."""


def drive(count_per_way: int, seed: int) -> tuple[list[Array], list[Array], Array, Array]:
    """Observations and actions of every episode, whether it succeeded, and its way's number."""
    ways = [way for way in range(len(WAYS)) for _ in range(count_per_way)]
    prompts = [Prompt("", i, {"way": way_name(WAYS[way])}) for i, way in enumerate(ways)]
    board, n = Board(len(ways)), len(ways)
    own = seeds(seed, "demonstration", count=n)
    observed = board.reset(own.tolist(), prompts)
    wobble = normal(torch.tensor([derive(int(s), "driver") for s in own]), (LIMIT + 3, 2), stream=0).double().numpy()
    aims = np.stack([gap_centre(row, np.array([WAYS[way][row] for way in ways])) for row in range(3)], axis=1)
    aims = aims + AIM * wobble[:, LIMIT:, 0]
    seen, done = [[] for _ in ways], [[] for _ in ways]
    success, alive = np.zeros(n), np.arange(n)
    for time in range(LIMIT):
        place = observed[:, :2]
        row = (place[:, 1:2] > np.array(ROWS) + RADIUS).sum(axis=1)
        aside = np.where(row < 3, aims[alive, np.minimum(row, 2)] - place[:, 0], 0.0)
        room = np.array([*ROWS, np.inf])[row] - RADIUS - MARGIN - place[:, 1]
        late = (np.abs(aside) > CLEAR) & (room < np.abs(aside))  # wait below the row until the gap is ahead
        asked = np.stack([np.clip(PULL * aside, -1, 1), np.where(late, np.clip(4 * room, -0.5, 0.3), SPEED)], axis=1)
        action = np.clip(asked + JITTER * wobble[alive, time], -1, 1)
        for i, each in enumerate(alive):
            seen[each].append(observed[i])
            done[each].append(action[i])
        observed, reward, ended, cut, _ = board.step(action, alive)
        success[alive] = reward
        kept = ~(ended | cut)
        observed, alive = observed[kept], alive[kept]
        if not len(alive):
            break
    return [np.stack(each) for each in seen], [np.stack(each) for each in done], success, np.array(ways)


PLACES, ACTIONS = 2**13, 127
"""What ships are whole numbers: a place in so many parts of 1, an action in so many."""


def demonstrations() -> tuple[Array, Array, Array]:
    """What ships: observations [T, 8] and actions [T, 2], float32, of all episodes one after another, and the length of
    each."""
    held = load_file(FILE)
    place, action, length, way = held["place"] / PLACES, held["action"], held["length"], held["way"]
    length = length.astype(np.int64)
    first = np.cumsum(length) - length
    velocity = np.diff(place, axis=0, prepend=0) / STEP
    velocity[first] = 0
    observed = observation(place, velocity, np.repeat(way, length).astype(np.int64))
    return observed.astype(np.float32), (action / ACTIONS).astype(np.float32), length


def shown_ways() -> list[str]:
    """The way of every episode of `demonstrations`."""
    return [way_name(WAYS[way]) for way in load_file(FILE)["way"]]


def write(path: Path = FILE, seed: int = 0) -> dict[str, float]:
    """Make the demonstrations again: `PER_WAY` successes of each way. Answers the driver's success and how many there
    are."""
    seen, done, success, ways = drive(8 * PER_WAY, seed)
    numbers = range(len(WAYS))
    kept = [i for way in numbers for i in np.flatnonzero((ways == way) & (success > 0))[:PER_WAY].tolist()]
    arrays = {
        "place": np.concatenate([seen[i][:, :2] * PLACES for i in kept]).round().astype(np.int16),
        "action": np.concatenate([done[i] * ACTIONS for i in kept]).round().astype(np.int8),
        "length": np.array([len(seen[i]) for i in kept], dtype=np.int16),
        "way": ways[kept].astype(np.int8),
    }
    save_file(arrays, path)
    return {"success": float(success.mean()), "episodes": len(kept), "pairs": float(sum(len(seen[i]) for i in kept))}

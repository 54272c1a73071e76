"""Policies that have learned nothing: what the world two_walls begins with, and what demonstrations are learned from.

``python -m flowrl.models.control.untrained avoid --out FOLDER --chunk 16 --execute 8 --history 2`` makes a model of
that shape for demonstrations of a world, or of a .jsonl file with the columns ``observed`` and ``action``, whose
statistics it takes. ``python -m flowrl.models.control.untrained two_walls`` makes that world's base again.
"""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from flowrl.errors import UserError
from flowrl.models.control.load import WEIGHTS, load_control, new_network, save_control
from flowrl.models.control.network import ControlNetwork, Kind
from flowrl.models.control.policy import ControlConfig
from flowrl.models.family import embedded_model

CONFIG = ControlConfig(observation=2, action=2, width=64, depth=3)
SHAPE = ("chunk", "past", "execute", "history", "width", "depth", "steps")


def untrained(config: ControlConfig, seed: int = 0) -> ControlNetwork:
    """A network whose last layer is 0: as a flow its velocity is 0, so that an action is its noise z; as a Gaussian its
    mean is 0 and its deviation 1. Both begin as the same policy, N(0, 1)."""
    torch.manual_seed(seed)
    network = new_network(config)
    last = [layer for layer in network.body if isinstance(layer, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return network


def steps_of(source: str) -> tuple[Tensor, Tensor]:
    """Observations [T, o] and actions [T, d] of all demonstrations of a world or of a .jsonl file. Raises `SystemExit`
    with a sentence where there are none."""
    if not source.endswith(".jsonl"):
        try:
            world: Any = importlib.import_module(f"flowrl.worlds.{source}.demonstrations")
        except ImportError:
            raise SystemExit(f"{source!r} is no world with demonstrations; give avoid, or a .jsonl file") from None
        observed, action, _ = map(torch.from_numpy, world.demonstrations())
        return observed, action
    try:
        rows = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines() if line.strip()]
        parts = [(row["observed"][: len(row["action"])], row["action"]) for row in rows]
        observed, action = (torch.tensor([step for row in part for step in row]) for part in zip(*parts, strict=True))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SystemExit(f"{source}: a line is an episode with the columns observed and action ({error})") from error
    return observed.float(), action.float()


def main() -> None:
    """Write an untrained model."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("source", help="two_walls, a world with demonstrations, or episodes.jsonl")
    options.add_argument("--out", type=Path, help="folder to write; needed for all but two_walls")
    options.add_argument("--kind", choices=get_args(Kind), default="flow")
    defaults = {field.name: field.default for field in fields(ControlConfig)}
    for name in SHAPE:
        options.add_argument(f"--{name}", type=int, default=defaults[name])
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    folder = given.out or (embedded_model("two_walls", "control") if given.source == "two_walls" else None)
    if folder is None:
        raise SystemExit("--out: name the folder that the model is written to")
    if given.source == "two_walls":
        save_control(CONFIG, untrained(CONFIG), folder)
        return
    observed, action = steps_of(given.source)
    shape = {name: getattr(given, name) for name in SHAPE} | ({"steps": 2} if given.kind == "mip" else {})
    config = ControlConfig(kind=given.kind, observation=observed.shape[1], action=action.shape[1], **shape)
    network = untrained(config, given.seed)
    network.observations.fit(observed)
    network.actions.fit(action)
    save_control(config, network, folder)
    try:
        load_control(folder)
    except UserError as error:
        raise SystemExit(str(error)) from error
    print(f"{folder / WEIGHTS}: {sum(p.numel() for p in network.parameters())} parameters, {len(observed)} steps seen")


if __name__ == "__main__":
    main()

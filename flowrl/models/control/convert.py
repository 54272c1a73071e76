"""From a checkpoint of DPPO's authors to a model folder of ours, once:
``python -m flowrl.models.control.convert state_3000.pt normalization.npz FOLDER --activation relu``.

For the policies that see numbers and are MLPs (irom-princeton/dppo cc7234a, model/diffusion/mlp_diffusion.py,
``DiffusionMLP`` with ``predict_epsilon``). Sizes are those of the tensors; what is in none of them is said: the
activation (relu for gym and d3il, mish elsewhere) and the number of denoising steps (20; 100 for furniture).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from flowrl.errors import UserError, first_line
from flowrl.models.control.coordinates import time_grid
from flowrl.models.control.form import ControlConfig
from flowrl.models.control.load import new_network, save_control
from flowrl.models.control.network import Activation, ControlNetwork
from flowrl.models.source import check_finite
from flowrl.paths import expand_user
from flowrl.scorers.convert import open_checkpoint

TUNED = "actor_ft."
NETWORKS = ("network.", "actor.")
"""What the names of a network's weights begin with, the first one that there is."""
SMALL = 1e-6
"""Added to the range of observations, by which they are divided."""
BOUND = 1.0


def convert_dppo(
    checkpoint: str | Path,
    normalization: str | Path,
    folder: str | Path,
    *,
    activation: Activation = "relu",
    steps: int = 20,
    tuned: int | None = None,
) -> ControlConfig:
    """Write the policy of a checkpoint (``ema`` where there is one, else ``model``) with the ranges of observations and
    actions of ``normalization.npz`` to a new folder, as `load_control` reads it, and return its config.

    tuned: of a fine-tuned checkpoint, which holds two networks, how many of the last steps the tuned one makes.

    Raises:
        UserError: for a file that is not there, holds more than tensors, or holds another network.
    """
    source, ranges, target = expand_user(checkpoint), expand_user(normalization), expand_user(folder)
    if target.exists():
        raise UserError(f"{target} already exists; remove it or write elsewhere")
    weights = _weights(open_checkpoint(source), source)
    known = _ranges(ranges)
    learned = any(key.startswith(TUNED) for key in weights)
    if learned != (tuned is not None):
        raise UserError(
            f"{source} holds a tuned network beside its base; give --tuned, how many of the last steps it makes"
            if learned
            else f"{source} holds one network, of which --tuned says nothing; remove it"
        )
    prefix = next((name for name in NETWORKS if any(key.startswith(name) for key in weights)), None)
    if prefix is None:
        raise UserError(f"{source} has no weights called network.* or actor.*, as checkpoints of DPPO do")
    base = _own_names(_below(weights, prefix), source)
    config = _config(base, known, activation, steps, source)
    network = _network(config, base, known, source)
    if tuned is None:
        save_control(config, network, target)
        return config
    if not 0 < tuned < steps:
        raise UserError(f"--tuned {tuned} of {steps} steps; give 1 or more, and fewer than all")
    config = replace(config, tuned_from=float(time_grid(config.kind, config.steps, steps)[steps - tuned]))
    save_control(
        config, _network(config, _own_names(_below(weights, TUNED), source), known, source), target, base=network
    )
    return config


def _weights(found: Any, source: Path) -> dict[str, Tensor]:
    key = next((name for name in ("ema", "model") if isinstance(found, Mapping) and name in found), None)
    weights = found[key] if key else None
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{source} has no weights under 'ema' or 'model', as checkpoints of DPPO do")
    return dict(weights)


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value.float() for key, value in weights.items() if key.startswith(prefix)}


def _ranges(path: Path) -> dict[str, Tensor]:
    names = ("obs_min", "obs_max", "action_min", "action_max")
    try:
        with np.load(path) as file:  # never of pickled objects
            return {name: torch.from_numpy(np.asarray(file[name], dtype=np.float64)).flatten() for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no normalization.npz with {', '.join(names)}: {first_line(error)}") from error


def _own_names(theirs: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Their weights by our names; those of the first layer with their columns as they are."""
    normed = any(".norm_1." in key for key in theirs)
    every = 3 if normed else 2
    found = {}
    for key, value in theirs.items():
        if match := re.fullmatch(r"time_embedding\.([13])\.(weight|bias)", key):
            name = f"embedding.layers.{int(match[1]) - 1}.{match[2]}"
        elif match := re.fullmatch(r"cond_mlp\.moduleList\.(\d+)\.linear_1\.(weight|bias)", key):
            name = f"encoder.{2 * int(match[1])}.{match[2]}"
        elif match := re.fullmatch(r"mlp_mean\.moduleList\.(\d+)\.(linear|norm)_1\.(weight|bias)", key):
            name = f"body.{every * int(match[1]) + (match[2] == 'norm')}.{match[3]}"
        elif match := re.fullmatch(r"mlp_mean\.layers\.(.+)", key):
            name = f"body.{match[1]}"
        else:
            raise UserError(
                f"{source} has weights called {key}, which no DiffusionMLP has; other networks are not read"
            )
        found[name] = value
    return found


def _config(
    weights: Mapping[str, Tensor], ranges: Mapping[str, Tensor], activation: Activation, steps: int, source: Path
) -> ControlConfig:
    """The form of a network, of the shapes of its weights."""
    body, encoder = _layers(weights, "body"), tuple(len(value) for value in _layers(weights, "encoder"))
    blocks = [key for key in weights if key.endswith(".l1.weight")]
    if "embedding.layers.2.bias" not in weights or len(body) < 2:
        raise UserError(f"{source} has no time_embedding or no mlp_mean, as a DiffusionMLP does; nothing else is read")
    embedding, observation = len(weights["embedding.layers.2.bias"]), len(ranges["obs_min"])
    numbers, action = len(body[-1]), len(ranges["action_min"])
    entering = body[0].shape[1] - embedding - numbers
    seen = weights["encoder.0.weight"].shape[1] if encoder else entering
    if numbers % action or seen % observation or not seen:
        raise UserError(
            f"{source} has chunks of {numbers} numbers and looks at {seen}, and the actions of the normalization have "
            f"{action} numbers, its observations {observation}; give the one that the policy was trained with"
        )
    return ControlConfig(
        kind="ddpm",
        observation=observation,
        action=action,
        chunk=numbers // action,
        history=seen // observation,
        width=len(body[0]),
        depth=1 + 2 * len(blocks) if blocks else len(body) - 1,
        steps=steps,
        activation=activation,
        blocks=bool(blocks),
        norm=any(value.dim() == 1 for key, value in weights.items() if key.startswith("body.") and "weight" in key),
        encoder=encoder,
        embedding=embedding,
        bound=BOUND,
    )


def _layers(weights: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """The matrices of the linear layers ``name.0``, ``name.2`` and so on, in order."""
    found = {key: re.fullmatch(rf"{name}\.(\d+)\.weight", key) for key in weights}
    named = sorted((int(match[1]), key) for key, match in found.items() if match)
    return [weights[key] for _, key in named if weights[key].dim() == 2]


def _network(
    config: ControlConfig, weights: Mapping[str, Tensor], ranges: Mapping[str, Tensor], source: Path
) -> ControlNetwork:
    """With the columns of the first layer in our order: observation, chunk, time; theirs is chunk, time, observation.
    Observations are divided by half their range and a little, actions are made of -1 to 1."""
    network = new_network(config)
    cut = config.chunk * config.action + config.embedding
    first = weights["body.0.weight"]
    middle, half = ranges["obs_min"], (ranges["obs_max"] - ranges["obs_min"] + SMALL) / 2
    low, high = ranges["action_min"], ranges["action_max"]
    kept = {
        "observations.mean": middle + half,
        "observations.std": half,
        "actions.mean": (low + high) / 2,
        "actions.std": (high - low) / 2,
        "log_std": network.log_std.detach(),
    }
    ours = {**weights, "body.0.weight": torch.cat([first[:, cut:], first[:, :cut]], dim=1)}
    try:
        network.load_state_dict(ours | {key: value.float() for key, value in kept.items()})
    except RuntimeError as error:
        raise UserError(f"{source} is no DiffusionMLP that is read here: {first_line(error)}") from error
    check_finite(network, str(source))
    return network


def main(arguments: list[str]) -> int:
    """The command: 0 when written, 2 (and one sentence on stderr) when the user can mend something."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("checkpoint")
    options.add_argument("normalization")
    options.add_argument("folder")
    options.add_argument("--activation", choices=get_args(Activation), default="relu")
    options.add_argument("--steps", type=int, default=20, help="denoising steps that it was trained with")
    options.add_argument("--tuned", type=int, help="of a fine-tuned checkpoint: the last steps, which it was tuned at")
    given = options.parse_args(arguments)
    try:
        config = convert_dppo(**vars(given))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.folder}: {config}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

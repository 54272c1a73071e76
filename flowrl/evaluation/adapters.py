"""What a LoRA folder says of itself: the model it adapts, its rank and strength, and the layers it changes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl.errors import UserError

PEFT_CONFIG = "adapter_config.json"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
LORA_FILES = (PEFT_CONFIG, DIFFUSERS_FILE)
METADATA = "lora_adapter_metadata"
"""Key of the safetensors header under which diffusers keeps rank and alpha."""
NETWORKS = ("transformer", "unet")
DOWN = ".lora_A.weight"


@dataclass(frozen=True)
class Adapter:
    """A low-rank adapter on disk."""

    base: str | None
    """None where the folder does not say, as most files of diffusers."""
    rank: int
    alpha: float
    targets: tuple[str, ...] | None


def read_adapter(folder: Path) -> Adapter:
    """From PEFT's or diffusers' files. Raises UserError for files of another kind."""
    file = folder / PEFT_CONFIG
    if file.is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
        targets = config.get("target_modules")
        named = tuple(targets) if isinstance(targets, list) else None
        return Adapter(config.get("base_model_name_or_path"), config.get("r", 8), config.get("lora_alpha", 8), named)
    return _of_diffusers(folder / DIFFUSERS_FILE)


def _of_diffusers(path: Path) -> Adapter:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
            ranks = {key: file.get_slice(key).get_shape()[0] for key in file.keys() if key.endswith(DOWN)}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from error
    network = next((name for name in NETWORKS if any(key.startswith(f"{name}.") for key in ranks)), None)
    if network is None or len(set(_of(network, ranks).values())) != 1:
        raise UserError(
            f"{path} is no LoRA of one rank on a {' or '.join(NETWORKS)} with keys such as "
            f"transformer.NAME{DOWN}; load it in diffusers and save it with save_lora_weights"
        )
    inner = _of(network, ranks)
    stated: Mapping[str, Any] = json.loads(header.get(METADATA, "{}"))
    rank = next(iter(inner.values()))
    # files without metadata were made for alpha == rank: what diffusers itself assumes
    alpha = stated.get(f"{network}.lora_alpha") or rank
    return Adapter(stated.get(f"{network}.base_model_name_or_path"), rank, alpha, tuple(_layers(network, inner)))


def _of(network: str, ranks: Mapping[str, int]) -> dict[str, int]:
    return {key: rank for key, rank in ranks.items() if key.startswith(f"{network}.")}


def _layers(network: str, keys: Iterable[str]) -> list[str]:
    return [key.removeprefix(f"{network}.").removesuffix(DOWN) for key in keys]

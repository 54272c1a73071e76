"""What evaluation knows of the embedded worlds: their base models, and which world a model belongs to."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from flowrl.errors import UserError
from flowrl.worlds import world_names
from flowrl.worlds.images import CALL

INCIDENTAL = ("dtype", "torch_dtype", "transformers_version")
"""Keys of a model's config that say nothing about its architecture, besides those with a leading underscore."""


def base_models(world: str) -> Mapping[str, Path]:
    """The base models of a world by family; none for a word that is no world's name."""
    return getattr(_module(world), "BASES", {}) if world in world_names() else {}


def model_folder(model: str, family: str) -> Path:
    """Where a model's files are: a world's base, or the folder itself."""
    return base_models(model).get(family, Path(model))


def world_of(model: str, family: str) -> str | None:
    """The world a model belongs to: named so, or of the architecture of its base (an export of a run)."""
    if model in world_names():
        return model
    file = Path("transformer") / "config.json" if family == "diffusion" else Path("config.json")
    bases = {world: base / file for world in world_names() if (base := base_models(world).get(family))}
    own = _architecture(Path(model) / file)
    return next((world for world, base in bases.items() if own is not None and own == _architecture(base)), None)


def sample_length(world: str | None) -> int | None:
    """Tokens of a completion, or decisions of an episode at most, in a world that has one; None elsewhere."""
    return None if world is None else getattr(_module(world), "LENGTH", None)


def pipeline_call(
    model: str, call: Mapping[str, Any] | None, guidance: float | None, size: int | None = None
) -> dict[str, Any]:
    """Arguments of the pipeline's call; an export of a world's model is called as the world's own, whatever ``size``.

    The world's call has no guidance, and a pipeline loaded without it has no unconditional branch to turn on later, so
    ``guidance`` is one of the arguments.
    """
    world = world_of(model, "diffusion")
    if world is None or "diffusion" not in base_models(world):
        return {**({"height": size, "width": size} if size else {}), **(call or {})}
    guided = {"guidance_scale": guidance} if guidance not in (None, 1.0) else {}
    return {**CALL, **guided, **(call or {})}


def _module(world: str) -> ModuleType:
    return importlib.import_module(f"flowrl.worlds.{world}")


def _architecture(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        return {key: value for key, value in settings.items() if not key.startswith("_") and key not in INCIDENTAL}
    except (ValueError, RecursionError, AttributeError) as error:
        raise UserError(f"{file} is no model's configuration ({error}); restore it") from error

"""Which family a model is of, told by its files alone."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Literal

from flowrl.errors import UserError
from flowrl.models.hub import is_hub_id, read_json
from flowrl.paths import NEW

Family = Literal["diffusion", "masked", "causal", "control", "reward"]
PIPELINES = ("LLaDA2Pipeline", "DiffusionGemmaPipeline")
"""Diffusers pipelines of masked-diffusion language models."""
MASKED_NAMES = ("llada", "dream", "diffusion_gemma")
"""Beginnings of the model types whose classes do not say that they are masked-diffusion models."""


def base_family(family: str) -> str:
    """The family whose base models a policy of ``family`` starts from: a reward model from an autoregressive one."""
    return "causal" if family == "reward" else family


def is_of(found: str, family: str) -> bool:
    """Whether a model that its files say to be of the family ``found`` can be loaded as one of ``family``."""
    return found in (family, base_family(family))


def embedded_models(name: str) -> dict[str, Path] | None:
    """Base models of the embedded world ``name`` by family; ``None`` where there is no such world."""
    if not name.isidentifier() or Path(name).exists():
        return None
    try:
        world = importlib.import_module(f"flowrl.worlds.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"flowrl.worlds.{name}":  # a package that the world needs is missing
            raise
        return None
    return getattr(world, "BASES", None)


def embedded_model(name: str, family: str) -> Path | None:
    """The folder of the embedded world's base model; ``None`` where there is no such world. Raises `UserError` where
    the world has none of that family."""
    bases, family = embedded_models(name), base_family(family)
    if bases is not None and family not in bases:
        have = ", ".join(sorted(bases)) or "none"
        raise UserError(f"the world {name} has no base model of the family {family}; it has {have}")
    return None if bases is None else bases[family]


def family_of(path: str | Path) -> Family:
    """The family of a model, from its files alone: folder, hub name or embedded world.

    Raises:
        UserError: where the files do not tell, or a world has base models of several families.
    """
    bases = embedded_models(str(path))
    if bases is not None:
        if len(bases) > 1:
            raise UserError(f"the world {path} has base models of the families {', '.join(sorted(bases))}; name one")
        return next(iter(bases))  # pyright: ignore[reportReturnType]
    return declared_family(str(path))[0]


def declared_family(path: str) -> tuple[Family, bool]:
    """``(family, certain)`` by a model's files; remote code may claim to be causal and not be."""
    if path.startswith(NEW):
        return "control", True
    from transformers.models.auto import modeling_auto

    index = read_json(path, "model_index.json")
    if index is not None:
        return ("masked" if index.get("_class_name") in PIPELINES else "diffusion"), True
    config = read_json(path, "config.json")
    if config is None and is_hub_id(path) and not Path(path).is_dir():
        raise UserError(
            f"model {path!r} has neither model_index.json nor config.json on the hub, so it is neither a diffusers"
            " pipeline nor a transformers model; check the name"
        )
    if config is not None and config.get("family") == "control":
        return "control", True
    if config is None or "_class_name" in config:
        return "diffusion", True  # whose loader says what is missing
    kind, architectures = str(config.get("model_type", "")).lower(), [str(a) for a in config.get("architectures") or ()]
    native = config.get("auto_map") is None
    if kind.startswith(MASKED_NAMES) or any(a.endswith("ForMaskedLM") for a in architectures):
        return "masked", True
    if any(a.endswith(("ForCausalLM", "LMHeadModel")) for a in architectures):
        return "causal", native
    if any(a.endswith("ForSequenceClassification") for a in architectures):
        return "reward", True
    offered = set(config.get("auto_map") or ())
    masked = "AutoModelForMaskedLM" in offered or kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    causal = "AutoModelForCausalLM" in offered or kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if masked != causal:
        return ("masked" if masked else "causal"), native
    if "AutoModel" in offered or masked:
        return "masked", False
    raise UserError(
        f"config.json of {path} (model_type {kind!r}) is not that of a language model that flowrl can train"
    )

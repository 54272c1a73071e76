"""What an adapter would sit on, from a model's configuration alone: its layers are built without memory for weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from flowrl.errors import is_out_of_memory
from flowrl.models.family import embedded_model
from flowrl.models.lora import ATTENTION_TARGETS, LANGUAGE_TARGETS, LoRAOptions, describe_layers, target_layers

UNTOLD = (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError)
"""What a configuration raises that cannot be built without its weights; loading will tell then."""

Told = TypeVar("Told")


def told(run: Callable[[], Told]) -> Told | None:
    """What ``run`` returns; ``None`` where it raises one of `UNTOLD`, but that memory ran out."""
    try:
        return run()
    except UNTOLD as error:
        if is_out_of_memory(error):
            raise
        return None


def preview_adapter(path: str, family: str, options: LoRAOptions | None) -> str | None:
    """`describe_layers` for the model in a local folder or embedded world; ``None`` for full fine-tuning, for a hub
    name, for code of the model's own and where the configuration does not tell.

    Raises:
        UserError: for targets that match no layer.
    """
    if options is None:
        return None
    folder = embedded_model(path, family) or Path(path).expanduser()
    if not folder.is_dir():
        return None
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        found = told(
            lambda: untrained_denoiser(folder) if family == "diffusion" else untrained_language_model(folder, family)
        )
    if found is None:
        return None
    network, defaults, excluded = found
    return describe_layers(target_layers(network, options, defaults, excluded), options)


def untrained_denoiser(folder: Path) -> tuple[Any, tuple[str, ...], list[str]] | None:
    """``(network, default targets, spared layers)`` of a pipeline."""
    import diffusers

    from flowrl.models.diffusion.lora_targets import LORA_TARGETS
    from flowrl.models.diffusion.recorder import NETWORKS
    from flowrl.models.diffusion.stages import SECOND, Stages

    if not (folder / "model_index.json").is_file():
        return None
    index = json.loads((folder / "model_index.json").read_text())
    name = next((name for name in NETWORKS if index.get(name, [None])[0] == "diffusers"), None)
    if name is None:
        return None
    kind = getattr(diffusers, index[name][1])
    network = kind.from_config(kind.load_config(folder / name))
    if index.get(SECOND, [None])[0] == "diffusers" and index.get("boundary_ratio") is not None:
        network = Stages(network, kind.from_config(kind.load_config(folder / SECOND)), 0.0)
    return network, LORA_TARGETS.get(kind.__name__, ATTENTION_TARGETS), []


def untrained_language_model(folder: Path, family: str) -> tuple[Any, tuple[str, ...], list[str]] | None:
    """``(network, default targets, spared layers)`` of a language model."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

    from flowrl.models.text.load import untargeted_layers

    if not (folder / "config.json").is_file():
        return None
    config = AutoConfig.from_pretrained(folder)  # code of the model's own is not run: it raises then
    kinds: dict[str, Any] = {"causal": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}
    kind = kinds.get(family, AutoModelForMaskedLM)
    network = kind.from_config(config)
    return network, LANGUAGE_TARGETS, untargeted_layers(network)

"""The fields of PEFT's ``LoraConfig``: which are honoured, which mean nothing once an adapter is trained, which are
refused by name. A field that is not listed is refused unless it has its default."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from flowrl.errors import UserError
from flowrl.models.lora import LoRAOptions

HONOURED = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "target_parameters")
"""Change the strength or shape; kept, and computed by PEFT itself."""
TOLD_BY_TENSORS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""Choose layers: the file's tensors say which were chosen."""
PAST = (
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout", "fan_in_fan_out", "init_lora_weights", "runtime_config", "megatron_core"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "ensure_weight_tying"),
)
"""Say where the adapter comes from or how it began. ``fan_in_fan_out`` is how a layer stores its weight, which is read
off the layer."""
MOVING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of initialisations that take the update's start out of the base weights: on the unchanged base, the
adapter is another model."""
REASONS = {
    "bias": "it also trained biases of the base model",
    "lora_bias": "its updates have biases of their own",
    "modules_to_save": "it replaces whole layers of the base model",
    "trainable_token_indices": "it trains rows of the embeddings",
    "layer_replication": "it repeats layers of the base model",
}


def check_fields(config: Mapping[str, Any], where: str) -> None:
    """Raise `UserError` for a configuration that means more than a low-rank update of layers, naming the field."""
    from peft import LoraConfig

    kind = str(config.get("peft_type") or "LORA").upper().removeprefix("PEFTTYPE.")
    if kind != "LORA":
        raise UserError(f"{where} is a {kind} adapter (peft_type); flowrl reads LORA. {MERGE}")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(MOVING):
        raise UserError(
            f"{where}: init_lora_weights={start!r} changed the base weights, so the adapter does not fit the model "
            "itself; save it with PEFT's path_initial_model_for_weight_conversion, which makes it a plain LoRA"
        )
    defaults = {f.name: _default(f) for f in dataclasses.fields(LoraConfig)}
    for key, value in config.items():
        if key in (*HONOURED, *TOLD_BY_TENSORS, *PAST) or not value or value == defaults.get(key) or value == "none":
            continue
        reason = REASONS.get(key, "flowrl does not know what it changes")
        raise UserError(f"{where}: {key}={str(value)[:60]} is not supported ({reason}). {MERGE}")


LARGEST = 1e9
"""Above every rank and alpha."""
MERGE = "Merge it into its model (merge_and_unload in PEFT, fuse_lora in diffusers), and give that as model.path"


def layer_alphas(config: Mapping[str, Any], ranks: Mapping[str, int], where: str) -> dict[str, float]:
    """Alpha by layer, by PEFT's rule: a pattern of ``alpha_pattern`` that matches the end of the layer's name, else
    ``lora_alpha``. Raises `UserError` for numbers that are none, and ranks that the tensors do not have."""
    rank, alpha = positive_number(config, "r", 8, where), positive_number(config, "lora_alpha", 8, where)
    rank_pattern, alpha_pattern = (_pattern(config, key, where) for key in ("rank_pattern", "alpha_pattern"))
    found = {}
    for layer, own in ranks.items():
        stated = _matching(rank_pattern, layer, rank)
        if stated != own:
            raise UserError(f"{where}: r is {stated:g} for {layer}, whose tensors have the rank {own}; the file and "
                            "its configuration do not belong together")  # fmt: skip
        found[layer] = float(_matching(alpha_pattern, layer, alpha))
    return found


def target_parameter_options(
    config: Mapping[str, Any], layers: Iterable[str], where: str
) -> tuple[LoRAOptions, list[str]]:
    """``(options, layers)`` of an adapter with ``target_parameters``: its own words, and which of ``layers`` are named
    by ``target_modules``; the others belong to parameters. Raises `UserError` for names that are none."""
    modules, parameters = config.get("target_modules") or [], config["target_parameters"]
    for key, value in (("target_modules", modules), ("target_parameters", parameters)):
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise UserError(f"{where}: {key} should be a list of names here, found {repr(value)[:60]}")
    options = LoRAOptions(
        rank=int(positive_number(config, "r", 8, where)),
        alpha=float(positive_number(config, "lora_alpha", 8, where)),
        init="default",
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
        rank_pattern={key: int(value) for key, value in _pattern(config, "rank_pattern", where).items()},
        alpha_pattern=_pattern(config, "alpha_pattern", where),
        parameters=tuple(sorted(parameters)),
    )
    return options, [name for name in layers if any(name == m or name.endswith(f".{m}") for m in modules)]


def positive_number(config: Mapping[str, Any], key: str, default: float, where: str) -> float:
    """A positive number of a configuration. Raises `UserError` for anything else."""
    value = config.get(key, default)
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < LARGEST
    if not good:
        raise UserError(f"{where}: {key} should be a number above 0, found {repr(value)[:60]}")
    return value


def _pattern(config: Mapping[str, Any], key: str, where: str) -> dict[str, float]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: {key} should map layers to numbers, found {str(value)[:60]!r}")
    for name in value:
        try:
            re.compile(str(name))
        except re.error as error:
            raise UserError(
                f"{where}: {key} has {str(name)[:60]!r}, which is no regular expression ({error})"
            ) from error
    return {str(name): positive_number(value, name, 1, f"{where}, {key}") for name in value}


def _matching(pattern: Mapping[str, float], layer: str, default: float) -> float:
    return next((value for key, value in pattern.items() if re.match(rf"^(.*\.)?({key})$", layer)), default)


def _default(of: dataclasses.Field[Any]) -> Any:
    return of.default_factory() if of.default_factory is not dataclasses.MISSING else of.default

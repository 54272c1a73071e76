"""What can be found wrong with a run's base model and adapter from their names and files, before they are loaded."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from flowrl.config import Config
from flowrl.config.model import LoRAConfig, ModelConfig
from flowrl.environments import check_environment
from flowrl.errors import UserError, did_you_mean
from flowrl.paths import NEW, absolute_folder, expand_user
from flowrl.worlds import world_names

if TYPE_CHECKING:  # else torch and diffusers, for which `flowrl config` need not wait
    from flowrl.models.lora import LoRAOptions


def check_model(config: Config, family: str) -> Config:
    """The config, `with_adapter_shape`.

    Raises:
        UserError: a model that is not there, or of another family than the algorithm trains; a ``model.call`` or
            ``model.inputs`` that its pipeline does not take; an attention backend that is not installed; an adapter
            that is not there or does not fit.
    """
    _check_name(config.model.path)
    _check_quantized(config.model)
    if config.model.merge_adapters:
        _check_merging(config.model)
    _check_family(config.model.path, family)
    if config.model.call or config.model.inputs:
        from flowrl.models.diffusion.call_arguments import check_saved_call

        check_saved_call(absolute_folder(config.model.path), config.model.call, config.model.inputs)
    if config.model.inputs and config.model.prompt_cache:
        raise UserError(
            "model.prompt_cache=true keeps what texts become, and model.inputs has pictures; set it to false"
        )
    if config.model.attention is not None:
        _check_attention(config.model.attention, family)
    return with_adapter_shape(config, family)


def _check_attention(name: str, family: str) -> None:
    from flowrl.models.diffusion import attention as of_diffusers  # the libraries: only where a backend is named
    from flowrl.models.text import attention as of_transformers

    (of_diffusers if family == "diffusion" else of_transformers).check_attention(name)


def with_adapter_shape(config: Config, family: str) -> Config:
    """The config with ``model.lora`` of the shape and strength of ``model.adapter``, where the user left them open.

    Raises `UserError` for an adapter that is not there, cannot be read, or has another rank than ``model.lora`` says.
    """
    model, name = config.model, config.model.adapter
    if name is None:
        return config
    from flowrl.models.adapters import read  # torch and diffusers: only where there is an adapter

    place = expand_user(name, "model.adapter")
    try:
        adapter = read(str(place) if place.exists() else name, absolute_folder(model.path), family=family)
    except UserError as error:
        raise UserError(f"model.adapter: {error}") from error
    if model.lora.model_fields_set - {"dropout"}:
        ranks = sorted({adapter.ranks[layer] for layer in adapter.alphas})
        if ranks and not model.lora.rank_pattern and ranks != [model.lora.rank]:
            raise UserError(
                f"model.lora.rank is {model.lora.rank}, and the adapter {name} has the rank"
                f" {', '.join(map(str, ranks))}; leave model.lora out to take the adapter's own shape"
            )
        return config
    lora = _shape_of(adapter.options(), model.lora.dropout)
    return config.model_copy(update={"model": model.model_copy(update={"lora": lora})})


def _shape_of(options: LoRAOptions, dropout: float) -> LoRAConfig:
    """An adapter's shape and strength as a config."""
    return LoRAConfig(
        rank=options.rank,
        alpha=options.alpha,
        targets=list(options.targets or ()),
        dropout=dropout,
        rslora=options.rslora,
        dora=options.dora,
        rank_pattern=dict(options.rank_pattern),
        alpha_pattern=dict(options.alpha_pattern),
        parameters=list(options.parameters),
    )


def _check_quantized(model: ModelConfig) -> None:
    """Raise `UserError` where what quantises is not installed."""
    if model.quantize is None and model.quantize_encoders is None:
        return
    from flowrl.models.quantization import check_quantization

    for key in ("quantize", "quantize_encoders"):
        if getattr(model, key) is not None:
            check_quantization(getattr(model, key), model.full, f"model.{key}")


def _check_merging(model: ModelConfig) -> None:
    """Raise `UserError` where the adapter cannot be merged."""
    from flowrl.models.merging import check_merging

    options = {key: getattr(model, key) for key in ("dtype", "compile", "shard", "quantize", "offload")}
    check_merging(True, model.arguments("diffusion")["lora"], **options)


def _check_name(path: str) -> None:
    """Raise `UserError` if a model's name can be none of a world, a folder and a hub id."""
    if path in world_names():
        return
    if path.startswith(NEW):
        return check_environment(path.removeprefix(NEW))
    folder = expand_user(path, "model.path")
    if folder.is_dir():
        return
    if folder.exists():
        raise UserError(f"model.path: {path} is a file; give the folder that the pipeline was saved to")
    is_path = path.startswith((".", "/", "~")) or path.count("/") > 1
    if is_path:
        raise UserError(f"model.path: there is no folder {path} (looked in {Path.cwd()})")
    if "/" not in path:
        raise UserError(
            f"model.path: {path!r} is neither a folder, nor a hub id (owner/name), nor an embedded world"
            f"{did_you_mean(path, world_names())}"
        )


def _check_family(path: str, family: str) -> None:
    """Raise `UserError` if a model's files show that it is of another family than the algorithm trains."""
    from flowrl.models.family import base_family, declared_family, is_of  # diffusers, transformers: only for a model

    if path in world_names():
        bases = getattr(importlib.import_module(f"flowrl.worlds.{path}"), "BASES", {"diffusion": None})
        if base_family(family) not in bases:
            have, acting = ", ".join(sorted(bases)), family == "diffusion" and "control" in bases
            remedy = "set algorithm.family=control, or change the algorithm" if acting else "change the algorithm"
            raise UserError(f"model.path: the world {path} has no {family} model (it has {have}); {remedy}")
        return
    if path.startswith(NEW) and family != "control":
        raise UserError(
            f"model.path: {path} is an untrained policy that acts, and this algorithm trains {family} models"
        )
    folder = expand_user(path, "model.path")
    if not folder.is_dir():
        return  # a hub name: its loader tells
    if not any((folder / name).is_file() for name in ("config.json", "model_index.json")):
        if (folder / "adapter_config.json").is_file():
            raise UserError(f"model.path: {path} is an adapter; give its base model, and this folder as model.adapter")
        if family != "diffusion":
            raise UserError(
                f"model.path: {path} has no config.json, so it holds no {family} model; give its own folder"
            )
    from flowrl.models.files import check_files

    check_files(folder)
    found, certain = declared_family(path)
    if certain and not is_of(found, family):
        raise UserError(f"model.path: {path} holds a {found} model, and this algorithm trains {family} ones")

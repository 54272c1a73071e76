"""Everything that can be found wrong with a run before its model is loaded."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flowrl.composition import build
from flowrl.config import Config
from flowrl.config.model import LoRAConfig, VLLMConfig
from flowrl.data import PromptFormat, PromptSet, load_prompts
from flowrl.errors import UserError, did_you_mean, missing_package
from flowrl.files import check_writable
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.regularizers import RouterBalance
from flowrl.paths import absolute_folder, expand_user
from flowrl.runtime.trackers import check_trackers
from flowrl.samplers.causal import CausalSampler
from flowrl.score.registry import check_reward
from flowrl.startup.workload import Workload, workload
from flowrl.worlds import world_names


@dataclass(frozen=True)
class CheckedRun:
    """A checked run."""

    config: Config
    algorithm: Algorithm
    workload: Workload
    train: PromptSet
    test: PromptSet | None


def check_run(config: Config) -> CheckedRun:
    """Raises `UserError` for an unknown algorithm or part, an impossible batch, or a missing model, reward or prompt
    file."""
    check_writable(config.directory, "out")
    algorithm = build(config.algorithm)
    counts = workload(config, algorithm)
    unused = config.model.unused_keys(algorithm.family)
    if unused:
        raise UserError(
            f"model.{unused[0]} means nothing for {algorithm.family} models, which this algorithm trains; remove it"
        )
    _check_critic(config, algorithm)
    if config.model.router_loss:
        balanced = RouterBalance(config.model.router_loss)
        algorithm = replace(algorithm, regularizers=(*algorithm.regularizers, balanced))
    try:
        algorithm.sampler.heldout(config.eval.sampling_steps, config.eval.guidance, config.eval.temperature)
    except ValueError as error:
        raise UserError(f"eval: {error}") from error
    if config.eval.prefill is not None and algorithm.family == "diffusion":
        raise UserError("eval.prefill means nothing for diffusion models, which this algorithm trains; remove it")
    check_trackers(config.log.trackers)
    _check_engine(config, algorithm)
    check_model(config.model.path)
    check_family(config.model.path, algorithm.family)
    if config.model.call:
        from flowrl.models.diffusion.call_arguments import check_saved_call

        check_saved_call(absolute_folder(config.model.path), config.model.call)
    config = with_adapter_shape(config, algorithm.family)
    for reward in config.rewards:
        check_reward(reward.use)
    train, test = read_prompts(config, config.data.train), None
    if config.data.test is not None:
        test = read_prompts(config, config.data.test)
    if algorithm.family == "diffusion":
        _check_texts((train, test))
    return CheckedRun(config, algorithm, counts, train, test)


def _check_critic(config: Config, algorithm: Algorithm) -> None:
    """Raise `UserError` for values without a critic, or settings of one that is not there."""
    critic, options = config.model.critic_for(algorithm.valued), config.optimizer
    if algorithm.valued and critic is None:
        raise UserError("this algorithm learns a critic, which the model does not have; set model.critic=network")
    for name, given in (("critic_lr", options.critic_lr is not None), ("critic_warmup", options.critic_warmup > 0)):
        if given and critic is None:
            raise UserError(f"optimizer.{name} is a critic's, which this algorithm does not learn; remove it")
    if options.critic_warmup >= config.train.iterations:
        raise UserError(
            f"optimizer.critic_warmup={options.critic_warmup} leaves no iteration of {config.train.iterations} in which"
            " the policy learns; lower it"
        )


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
    options = adapter.options()
    lora = LoRAConfig(
        rank=options.rank,
        alpha=options.alpha,
        targets=list(options.targets or ()),
        dropout=model.lora.dropout,
        rslora=options.rslora,
        dora=options.dora,
        rank_pattern=dict(options.rank_pattern),
        alpha_pattern=dict(options.alpha_pattern),
        parameters=list(options.parameters),
    )
    return config.model_copy(update={"model": model.model_copy(update={"lora": lora})})


def read_prompts(config: Config, spec: str) -> PromptSet:
    """Prompts in the form that the config gives them. Raises `UserError`."""
    return load_prompts(spec, PromptFormat(config.data.columns, config.data.template))


def _check_texts(sets: Sequence[PromptSet | None]) -> None:
    for prompt in (prompt for found in sets if found is not None for prompt in found.prompts):
        if prompt.chat is not None:
            raise UserError(f"data: prompt {prompt.id + 1} is a conversation, and image models take a text; rewrite it")


def _check_engine(config: Config, algorithm: Algorithm) -> None:
    sampler = algorithm.sampler
    engine = sampler.engine if isinstance(sampler, CausalSampler) else None
    if engine is not None and config.model.dtype == "float32":
        raise UserError(
            f"algorithm.sampler.engine={engine} computes adapters in half precision alone, and model.dtype is float32;"
            " set model.dtype=bfloat16 or float16, or leave engine out"
        )
    if engine is None and config.model.vllm != VLLMConfig():
        raise UserError("model.vllm holds options of an engine that is not used; set algorithm.sampler.engine=vllm")
    if engine is not None and importlib.util.find_spec(engine) is None:
        raise missing_package(f"algorithm.sampler.engine={engine}", engine, "vllm", "leave engine out")


def check_family(path: str, family: str) -> None:
    """Raise `UserError` if a model's files show that it is of another family than the algorithm trains."""
    if path in world_names():
        bases = getattr(importlib.import_module(f"flowrl.worlds.{path}"), "BASES", {"diffusion": None})
        if family not in bases:
            have = ", ".join(sorted(bases))
            raise UserError(f"model.path: the world {path} has no {family} model (it has {have}); change the algorithm")
        return
    folder = expand_user(path, "model.path")
    if not folder.is_dir():
        return  # a hub name: its loader tells
    if not any((folder / name).is_file() for name in ("config.json", "model_index.json")):
        if (folder / "adapter_config.json").is_file():
            raise UserError(f"model.path: {path} is an adapter; give its base model, and this folder as model.adapter")
        if family != "diffusion":
            raise UserError(
                f"model.path: {path} has no config.json, so it holds no language model; give its own folder"
            )
    from flowrl.models.files import check_files

    check_files(folder)
    from flowrl.models.family import declared_family  # diffusers and transformers: only where there is a model

    found, certain = declared_family(path)
    if certain and found != family:
        raise UserError(f"model.path: {path} holds a {found} model, and this algorithm trains {family} ones")


def check_model(path: str) -> None:
    """Raise `UserError` if a model's name can be none of a world, a folder and a hub id."""
    if path in world_names():
        return
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

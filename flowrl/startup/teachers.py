"""The teachers of a run: checked before anything is loaded, and opened beside the policy."""

from __future__ import annotations

from typing import Any, cast

import torch

from flowrl.config import Config
from flowrl.config.model import LoRAConfig
from flowrl.config.teacher import MemberConfig, every_teacher
from flowrl.data import PromptSet
from flowrl.errors import UserError, did_you_mean
from flowrl.models import DiffusionPolicy, LoadedPolicy
from flowrl.models.adapters.adapter import Adapter
from flowrl.models.adapters.load import copy_weights
from flowrl.models.adapters.read import read
from flowrl.models.diffusion.stages import adapted
from flowrl.models.teachers import Guided, Panel, Peer
from flowrl.models.text.policy import TextPolicy
from flowrl.models.weights import LIVE, REFERENCE, Teacher
from flowrl.parts.algorithm import Algorithm
from flowrl.paths import absolute_folder, expand_user
from flowrl.startup.model_checks import check_model
from flowrl.startup.policies import open_policy

EMA = "ema"
TAKEN = (LIVE, REFERENCE, EMA, "old")
"""Names of weight sets that follow the policy."""
PLAIN = {
    "full": False,
    "gradient_checkpointing": False,
    "merge_adapters": False,
    "trained_dtype": "float32",
    "compile": False,
    "shard": "none",
    "critic": "none",
    "router_loss": 0.0,
}
"""Keys of ``model`` as a frozen model has them."""


def check_teachers(config: Config, algorithm: Algorithm, prompts: PromptSet | None = None) -> None:
    """Raise `UserError` for a teacher that the algorithm needs and the config does not give, or the other way round,
    for one whose model or adapter is not there or does not fit, and for ``prompts`` that none of several teaches."""
    named = (*algorithm.weight_sets, *algorithm.estimator.references)
    if config.model.shard != "none" and vars(algorithm.estimator).get("divergence") is not None:
        raise UserError(
            f"algorithm.estimator.divergence keeps a policy's vocabulary layer beside another's, and model.shard="
            f"{config.model.shard} frees it between them; set model.shard=none, or take a method without it (opd)"
        )
    for name in algorithm.teachers:
        if name not in config.teachers:
            raise UserError(
                f"this algorithm learns from a policy called {name!r}: give teachers: {{{name}: {{path: another model}}"
                f"}}, or {{{name}: {{adapter: a LoRA of model.path}}}}"
            )
    for name, teacher in config.teachers.items():
        if name in (*TAKEN, *(each.name for each in algorithm.companions)) or not name.isidentifier():
            raise UserError(f"teachers: {name!r} cannot be a teacher's name; use another word")
        if name not in named:
            raise UserError(
                f"teachers.{name}: nothing in this algorithm compares with it{did_you_mean(name, named)}; name it in a "
                "part's field 'to', or remove it"
            )
        if teacher.members and config.model.shard != "none":
            raise UserError(
                f"teachers.{name}: several teachers are asked unequally often by processes, which model.shard="
                f"{config.model.shard} does not allow; set model.shard=none, or give one teacher"
            )
        if teacher.column is not None and prompts is not None:
            Panel(teacher.column, {value: value for value in teacher.members}).check(prompts.prompts)
    for key, _, member in every_teacher(config.teachers):
        _check_member(config, algorithm, key, member)


def _is_peer(config: Config, member: MemberConfig) -> bool:
    """Whether it is a model of its own: where all weights are trained, an adapter is none of them."""
    return member.is_peer or config.model.full


def _check_member(config: Config, algorithm: Algorithm, key: str, member: MemberConfig) -> None:
    family = algorithm.family
    if member.guidance is not None and family != "diffusion":
        raise UserError(f"{key}.guidance means nothing for {family} models, which this algorithm trains; remove it")
    if member.call is not None and family != "diffusion":
        raise UserError(f"{key}.call is for diffusion pipelines and means nothing for family {family}; remove it")
    try:
        if _is_peer(config, member):
            check_model(_config_of(config, member), family)
        else:
            _read(config, member, family)
    except UserError as error:
        sentence = str(error).replace("model.adapter", "adapter").replace("model.path", "path")
        raise UserError(f"{key}: {sentence}") from error


def _read(config: Config, member: MemberConfig, family: str) -> Adapter:
    """The adapter of a teacher that is a weight set. Raises `UserError`."""
    assert member.adapter is not None
    place = expand_user(member.adapter, "adapter")
    name = str(place) if place.exists() else member.adapter
    adapter = read(name, absolute_folder(config.model.path), family=family)
    if adapter.encoders:
        raise UserError(
            f"the adapter {member.adapter} also adapts text encoders, which all weight sets share; give model.path as "
            "its path as well, which opens it as a model of its own"
        )
    return adapter


def _config_of(config: Config, member: MemberConfig) -> Config:
    """The config with another model in the policy's place."""
    given = {"dtype": member.dtype, "device": member.device, "call": member.call, "path": member.path}
    own = {key: value for key, value in given.items() if value is not None}
    lora = LoRAConfig(rank=1) if member.adapter is None else LoRAConfig()  # of the adapter's shape, or next to nothing
    model = {**PLAIN, "lora": lora, "adapter": member.adapter, "quantize": member.quantize, **own}
    return config.model_copy(update={"model": config.model.model_copy(update=model), "teachers": {}})


def open_weight_sets(config: Config, policy: LoadedPolicy, algorithm: Algorithm) -> list[str]:
    """Let the policy have all weight sets and teachers that a run asks for, and no other ones; what to say of the
    teachers. Raises `UserError` as `open_teachers`."""
    notes = open_teachers(config, policy, algorithm)
    for name in (*algorithm.weight_sets, *([] if config.train.ema is None else [EMA])):
        if name not in config.teachers:
            policy.update_ema(name, 0.0)
    beside = (name for companion in algorithm.companions for name in companion.compared)
    if REFERENCE not in (*algorithm.weight_sets, *algorithm.estimator.references, *beside):
        policy.weights.drop_reference()
    return notes


def open_teachers(config: Config, policy: LoadedPolicy, algorithm: Algorithm) -> list[str]:
    """Let ``policy.using`` know every teacher of the config; what to say of them. Raises `UserError` for one that does
    not fit the policy."""
    teachers: dict[str, Teacher] = {}
    notes = []
    for key, name, member in every_teacher(config.teachers):
        if _is_peer(config, member):
            peer = open_policy(_config_of(config, member))
            peer.weights.drop_reference(hashed=False)
            for parameter in peer.parameters():
                parameter.requires_grad_(False)
            _check_fit(key, policy, peer)
            teachers[name] = Peer(peer, member.guidance)
            notes.append(f"{key}: {member.path or config.model.path}, a frozen model on {peer.device}")
            continue
        stored = name if member.guidance is None else f"{name}.weights"
        _teach(config, policy, stored, member, key, algorithm.family)
        notes.append(f"{key}: the adapter {member.adapter}, a frozen weight set")
        if member.guidance is not None:
            teachers[name] = Guided(stored, member.guidance)
    for name, teacher in config.teachers.items():
        if teacher.column is not None:
            teachers[name] = Panel(teacher.column, {value: f"{name}.{value}" for value in teacher.members})
    policy.teachers = teachers
    return notes


def _teach(config: Config, policy: LoadedPolicy, name: str, member: MemberConfig, key: str, family: str) -> None:
    """Make an adapter a weight set; the live weights are as before."""
    if isinstance(policy, DiffusionPolicy):
        network, adaptation = adapted(policy.network, policy.adaptation)
    else:
        network, adaptation = cast(Any, policy.network).model, policy.adaptation
    adapter = _read(config, member, family)
    prefix = f"{LIVE}/"
    before = {k: v.clone() for k, v in policy.weights.state().items() if k.startswith(prefix)}
    try:
        with torch.no_grad():  # layers that it does not have are the base model's, wherever the policy starts from
            for label, parameter in policy.adaptation.parameters.items():
                if ".lora_B." in label:
                    parameter.zero_()
        copy_weights(network, adaptation, adapter)
        policy.weights.keep_frozen(name)
    except UserError as error:
        raise UserError(
            f"{key}: {error}; or give model.path as its path as well, which opens it as a model of its own"
        ) from error
    finally:
        policy.weights.load(before)


def _check_fit(key: str, policy: LoadedPolicy, peer: LoadedPolicy) -> None:
    """Raise `UserError` where the two do not speak of the same tokens or latents."""
    if isinstance(policy, TextPolicy) and isinstance(peer, TextPolicy):
        mine, other = policy.codec.tokenizer.get_vocab(), peer.codec.tokenizer.get_vocab()
        different = [token for token in mine if other.get(token) != mine[token]]
        if different:
            raise UserError(
                f"{key}: its tokenizer is another one than the policy's: {len(different)} of {len(mine)} tokens have "
                f"another number or none, {different[0]!r} first; take a teacher with the same vocabulary"
            )
    if not (isinstance(policy, DiffusionPolicy) and isinstance(peer, DiffusionPolicy)):
        return
    if peer.latent_shape != policy.latent_shape:
        raise UserError(
            f"{key}: its latents have the shape {tuple(peer.latent_shape)}, and the policy's "
            f"{tuple(policy.latent_shape)}; take a teacher of the same latent space, and the same size in call"
        )

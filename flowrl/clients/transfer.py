"""A rollout as bytes, to come from another process: safetensors, and JSON for what is no tensor. No pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from flowrl.samplers.chunks import TRACE, rows_of
from flowrl.types import Condition, Draw, IncompatibleError, Prompt, Rollout, Steps, TokenTrace, Truncation
from flowrl.types.chats import Chat


def pack(tensors: dict[str, Tensor]) -> bytes:
    """Tensors as safetensors, whatever device or memory they share."""
    return save({name: _alone(tensor.detach()) for name, tensor in tensors.items()})


def _alone(tensor: Tensor) -> Tensor:
    """On the CPU in memory of its own, copied once."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)


def pack_draw(draw: Draw) -> tuple[str, bytes]:
    """A draw with its prompts as JSON and tensors. Raises `IncompatibleError` for columns that are no plain values."""
    prompts = [
        [prompt.text, prompt.id, dict(prompt.columns), None if prompt.chat is None else prompt.chat.content]
        for prompt in draw.prompts
    ]
    numbers = {"iteration": draw.iteration, "shared_seed": draw.shared_seed, "prompts": prompts}
    try:
        header = json.dumps(numbers)
    except TypeError as error:
        raise IncompatibleError(
            f"a prompt's columns have to be plain values to be sent to a worker: {error}"
        ) from error
    return header, pack({"seeds": draw.seeds, "group": draw.group, "place": draw.place})


def unpack_draw(header: str, data: bytes) -> Draw:
    """What `pack_draw` was given."""
    known = json.loads(header)
    prompts = [
        Prompt(text, number, columns, None if chat is None else Chat(chat))
        for text, number, columns, chat in known.pop("prompts")
    ]
    return Draw(**load(data), **known, prompts=tuple(prompts))


def pack_rollout(rollout: Rollout) -> tuple[str, bytes]:
    """A rollout without its condition, which the receiver has, and without its kernel, which its sampler has."""
    own = rows_of(rollout) | {"group": rollout.group, "times": rollout.times}
    header: dict[str, Any] = {"forwards": rollout.forwards, "version": rollout.version, "trace": None}
    trace = rollout.trace
    if trace is not None:
        values = {field.name: getattr(trace, field.name) for field in fields(trace)}
        plain = {k: v for k, v in values.items() if not isinstance(v, Tensor) and v is not None and k != "dynamics"}
        header["trace"] = {k: asdict(v) if isinstance(v, Truncation) else v for k, v in plain.items()}
        header["kind"] = type(trace).__name__
    tensors = {name: value for name, value in own.items() if value is not None}
    header["placed"] = [name for name, value in tensors.items() if value.device.type != "cpu"]
    return json.dumps(header), pack(tensors)


def unpack_rollout(header: str, data: bytes, condition: Condition, sampler: object, device: torch.device) -> Rollout:
    """What `pack_rollout` was given; what was on the worker's device is put on ``device``. Raises `IncompatibleError`
    for recorded steps of a sampler whose kernel is not its field ``dynamics``."""
    known, found = json.loads(header), load(data)
    found = {name: value.to(device) if name in known["placed"] else value for name, value in found.items()}
    own: dict[str, Any] = {name: value for name, value in found.items() if not name.startswith(TRACE)}
    record = {name.removeprefix(TRACE): value for name, value in found.items() if name.startswith(TRACE)}
    trace: Steps | TokenTrace | None = None
    if known["trace"] is not None:
        plain = known["trace"]
        if known["kind"] == Steps.__name__:
            if not hasattr(sampler, "dynamics"):
                raise IncompatibleError(
                    f"{type(sampler).__name__} records steps, whose kernel a worker cannot send: name it in a field "
                    "'dynamics', or set rollouts.workers=0"
                )
            trace = Steps(**record, dynamics=sampler.dynamics, **{"guidance": None, **plain})  # pyright: ignore
        else:
            trace = TokenTrace(**record, **{**plain, "truncation": Truncation(**plain["truncation"])})
    return Rollout(condition, trace=trace, forwards=known["forwards"], version=known["version"], **own)

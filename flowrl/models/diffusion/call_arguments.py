"""The user's extra arguments of a pipeline's call: which are ours to set, and in what form YAML gives the rest."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from flowrl.errors import UserError, did_you_mean, short_repr

_SCHEDULE = "times follow from the pipeline's scheduler and the number of steps; set algorithm.sampler.steps"
_NOISE = "every sample has noise of its own, which follows from train.seed"
_OUTPUT = "flowrl reads the pipeline's output itself"
RESERVED: Mapping[str, str] = {
    "prompt": "prompts come from data.train and data.test",
    "num_inference_steps": "set algorithm.sampler.steps, or eval.sampling_steps",
    "timesteps": _SCHEDULE,
    "sigmas": _SCHEDULE,
    "denoising_start": "sampling starts at pure noise",
    "denoising_end": "sampling ends at the clean picture; a refiner cannot go on from it",
    "generator": _NOISE,
    "latents": _NOISE,
    "output_type": _OUTPUT,
    "return_dict": _OUTPUT,
    "num_images_per_prompt": "set data.group, samples per prompt",
    "num_videos_per_prompt": "set data.group, samples per prompt",
    "callback": "nothing is called between steps",
    "callback_steps": "nothing is called between steps",
    "callback_on_step_end": "nothing is called between steps",
    "callback_on_step_end_tensor_inputs": "nothing is called between steps",
}
"""Arguments that flowrl sets or that would fight with it, and what to do instead."""
SIZES = ("height", "width", "num_frames", "video_length", "frames")
PICTURES = ("image", "mask_image", "control_image", "video")
"""Some pipelines want one of these per prompt, others one for all: a list of one is repeated, anything else is not."""
NUMERIC = {"int", "float", "none", "optional", "nonetype", "union", "typing", "class"}
"""Words of the annotations of parameters that are numbers."""


def check_call(call: Mapping[str, Any], known: Iterable[str] | None = None, pipeline: str = "the pipeline") -> None:
    """Raise `UserError` for an argument that flowrl sets itself, that the pipeline does not have (``known``: those it
    has), or whose value cannot be meant for every prompt."""
    names = None if known is None else [name for name in known if name != "self" and name not in RESERVED]
    if _above_one(call.get("true_cfg_scale")) and not any(key.startswith("negative_prompt") for key in call):
        raise UserError(
            f"model.call.true_cfg_scale={call['true_cfg_scale']} does nothing without model.call.negative_prompt; add "
            "one (it may be ' ')"
        )
    for key, value in call.items():
        where = f"model.call.{key}={short_repr(value)}"
        if key in RESERVED:
            raise UserError(f"{where}: remove it; {RESERVED[key]}")
        if names is not None and key not in names:
            raise UserError(f"{pipeline} takes no argument {key!r} (model.call)" + did_you_mean(key, names))
        if not _finite(value):
            raise UserError(f"{where}: numbers should be finite")
        if "prompt" in key:
            _check_one_row(key, value, where)


def check_inputs(
    columns: Mapping[str, str], call: Mapping[str, Any], known: Mapping[str, inspect.Parameter], kind: str
) -> None:
    """Raise `UserError` for an argument that is not the pipeline's (``known``), takes no picture, or is also in
    ``call``."""
    for name in columns:
        where = f"model.inputs.{name}={columns[name]}"
        if name in call:
            raise UserError(f"{where}: model.call.{name} gives all prompts the same; remove one of them")
        if name in RESERVED or name not in known:
            raise UserError(f"{where}: {kind} takes no argument {name!r}{did_you_mean(name, known)}")
        if name not in PICTURES[:3] and "Image" not in str(known[name].annotation):
            takers = [n for n, p in known.items() if n in PICTURES[:3] or "Image" in str(p.annotation)]
            raise UserError(
                f"{where}: prompts may differ in pictures alone, and {name} takes none; use model.call"
                + (f" (pictures: {', '.join(takers)})" if takers else "")
            )


def check_saved_call(folder: str, call: Mapping[str, Any], inputs: Mapping[str, str] | None = None) -> None:
    """`check_call` and `check_inputs` for a pipeline's folder, whose class is known from its index; nothing is
    loaded."""
    try:
        name = json.loads((Path(folder) / "model_index.json").read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError):
        return check_call(call)  # a name of the hub, or damaged: the loader tells
    import diffusers  # slow, and only needed where a folder names its class

    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if kind is None:
        return check_call(call)
    parameters = inspect.signature(kind.__call__).parameters
    check_call(call, parameters, name)
    check_inputs(inputs or {}, call, parameters, str(name))
    typed_arguments(call, parameters)


def typed_arguments(call: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The arguments in the types that the pipeline's signature names: lists as tuples where it wants tuples, such as
    SDXL's sizes, which it adds up. Raises `UserError` for what is no number where it wants one."""
    return {key: _typed(key, value, str(parameters[key].annotation)) for key, value in call.items()}


def _typed(key: str, value: Any, annotation: str) -> Any:
    words = set(re.findall("[a-z]+", annotation.lower()))
    if isinstance(value, list) and "tuple" in words:
        return tuple(value)
    if key in SIZES and isinstance(value, int | float) and value < 1:
        raise UserError(f"model.call.{key}={short_repr(value)}: should be 1 or more")
    if not words & {"int", "float"} or words - NUMERIC:
        if isinstance(value, bool) and "bool" not in words and words & {"int", "float", "str", "tensor"}:
            raise UserError(f"model.call.{key}={short_repr(value)}: a switch is not what {key} takes")
        return value
    if "int" in words and isinstance(value, float) and value.is_integer() and "float" not in words:
        return int(value)
    kinds = (int, float) if "float" in words else (int,)
    if isinstance(value, bool) or not (isinstance(value, kinds) or (value is None and words & {"none", "optional"})):
        raise UserError(
            f"model.call.{key}={short_repr(value)}: should be {'a' if 'float' in words else 'a whole'} number"
        )
    return value


def batch_call(call: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The user's arguments for ``count`` prompts: a text, an embedding of one row, or a list of one picture is
    repeated."""
    grown: dict[str, Any] = {}
    for key, value in call.items():
        if isinstance(value, str) and "prompt" in key:
            value = [value] * count
        elif isinstance(value, Tensor) and "prompt" in key and len(value) == 1:
            value = value.expand(count, *value.shape[1:])
        elif isinstance(value, list) and len(value) == 1 and ("prompt" in key or key in PICTURES):
            value = value * count
        grown[key] = value
    return grown


def guidance_advice(parameters: Iterable[str], embedded: bool) -> str:
    """How a pipeline that was loaded with one branch gets its second; ``embedded``: its network reads a guidance scale
    as an input, as distilled models do."""
    known = set(parameters)
    if "true_cfg_scale" in known:
        more = " (its guidance_scale is an input of the network and makes no branch)" if embedded else ""
        return f"set model.call.true_cfg_scale above 1 and model.call.negative_prompt to a text{more}, or leave it at 1"
    if embedded:
        return (
            "its network reads the scale as an input: set model.call.guidance_scale, and leave "
            "algorithm.sampler.guidance and eval.guidance out"
        )
    if "guidance_scale" in known:
        return "set model.call.guidance_scale above 1, or leave it at 1"
    return "it has no guidance: leave it at 1"


def _check_one_row(key: str, value: Any, where: str) -> None:
    """Texts and embeddings are for every prompt alike: one row."""
    if isinstance(value, bool | int | float):
        return  # such as a switch or a length
    rows = len(value) if isinstance(value, Tensor | list) and len(value) else 1
    if isinstance(value, Tensor) and value.ndim == 0:
        rows = 0
    if isinstance(value, list) and not value:
        rows = 0
    if rows != 1:
        shape = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"of {len(value)} entries"
        raise UserError(
            f"model.call.{key} {shape}: it is repeated for every prompt, so it should have one row; "
            "prompts that differ come from data.train as texts"
        )


def _above_one(value: Any) -> bool:
    return isinstance(value, int | float) and value > 1


def _finite(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return not isinstance(value, float) or math.isfinite(value)

"""From the word on the command line to what it names: a model, a run, a LoRA or a folder of images."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from flowrl.errors import UserError, did_you_mean
from flowrl.evaluation.target import Target
from flowrl.evaluation.targets.export_settings import read_export_settings
from flowrl.evaluation.targets.models import lora_target, model_target
from flowrl.evaluation.targets.request import Request, Samplers
from flowrl.evaluation.targets.runs import is_checkpoint, run_target
from flowrl.records.sample_files import is_image_folder, read_folder
from flowrl.worlds import world_names

__all__ = ["Request", "Samplers", "find_target"]

LORA_FILES = ("adapter_config.json", "pytorch_lora_weights.safetensors")
MODEL_FILES = ("model_index.json", "config.json")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find_target(text: str, request: Request) -> tuple[Target, Samplers]:
    """The target and the samplers that make its samples.

    Raises UserError for a word that names nothing, or a LoRA whose base model is not known.
    """
    path = Path(text)
    request = _with_export(path, request)
    lora = _is_lora(path, text, request)
    if request.model is not None and not lora:
        raise UserError(f"--model: only a LoRA folder needs to be told its model, and {text} is none; leave it out")
    if lora and not path.is_dir():
        return lora_target(text, request)
    if not path.exists():
        if text in world_names() or HUB_ID.fullmatch(text):
            return model_target(text, request)
        known = did_you_mean(text, world_names())
        raise UserError(f"there is no {text!r} here; give a model, a run, a LoRA or an image folder{known}")
    return _folder(text, request, lora)


def _folder(text: str, request: Request, lora: bool) -> tuple[Target, Samplers]:
    """What a folder is by its files."""
    path = Path(text)
    if (path / "config.yaml").is_file():
        return run_target(path, request)
    checkpoint = next((above for above in (path, path.parent) if is_checkpoint(above)), None)
    if checkpoint is not None:  # RUN/checkpoints/step_000123, or its lora/ or peft/
        return run_target(checkpoint.absolute().parent.parent, replace(request, checkpoint=str(checkpoint)))
    if is_image_folder(path):
        return Target(text, "images", entries=tuple(read_folder(path)), folder=path), {}
    if lora:
        return lora_target(text, request)
    if any((path / name).is_file() for name in MODEL_FILES):
        return model_target(text, request)
    raise UserError(
        f"{text} is none of: a pipeline (model_index.json), a language model (config.json), a run (config.yaml), "
        "a LoRA (adapter_config.json, or a .safetensors file), images in GenEval's layout "
        "(00000/metadata.jsonl), or with prompts.jsonl or prompts.txt"
    )


def _with_export(path: Path, request: Request) -> Request:
    """The request, with what an export says of its run where the user says nothing."""
    if any(is_checkpoint(above) for above in (path, path.parent)):  # its run says it
        return request
    export = read_export_settings(path)
    if export is None:
        return request
    call = export.pipeline_call(next(iter(request.decodings.values())), request.call)
    return replace(request, export=export, family=request.family or export.family, call=call or None)


def _is_lora(path: Path, text: str, request: Request) -> bool:
    """Whether the word names an adapter: by its files, or as a repository of the hub that holds nothing else."""
    if path.is_file():
        return path.suffix == ".safetensors"
    if path.is_dir() and (is_checkpoint(path.parent) or (path / "config.yaml").is_file()):
        return False
    if any((path / name).is_file() for name in LORA_FILES):
        return True
    files = path.is_dir() and any(path.glob("*.safetensors"))
    hub = not path.exists() and text not in world_names() and text.count("/") >= 1
    if not files and not hub:
        return False
    from flowrl.models.adapters import is_adapter_name  # torch and diffusers: only where the name does not tell

    return is_adapter_name(text) or (hub and request.model is not None)

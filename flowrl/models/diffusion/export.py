"""Adapters and merged pipelines on disk, each verified by loading it into a fresh copy of the base model."""

from __future__ import annotations

import copy
import inspect
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flowrl.errors import UserError
from flowrl.models.diffusion import lora
from flowrl.models.diffusion.capture import Recorder
from flowrl.models.diffusion.parity import deviation
from flowrl.models.diffusion.recipe import PROBES

if TYPE_CHECKING:
    from flowrl.models.diffusion.policy import DiffusionPolicy

Format = Literal["diffusers", "peft", "merged"]
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference of a reloaded model's predictions, relative to their largest value (merging rounds)."""
METADATA = "lora_adapter_metadata"
"""Key of the safetensors header under which diffusers keeps rank and alpha."""


def export(policy: DiffusionPolicy, directory: Path, to: Format) -> float:
    """Write the live weights to ``directory`` (new or empty), verified before it appears.

    Returns:
        The largest difference between the policy's predictions and the reloaded model's, relative to the largest value.

    Raises:
        UserError: for a format that cannot hold the weights, an occupied folder, or a reloaded model that differs.
    """
    if to not in get_args(Format):
        raise UserError(f"cannot export to {to!r}; choose one of {', '.join(get_args(Format))}")
    if policy.adaptation.lora is None and to != "merged":
        raise UserError(f"a fully fine-tuned model has no adapter to export to {to!r}; use merged")
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} already exists and is not empty; remove it or export elsewhere")
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        base = _fresh(policy)
        reloaded = _WRITERS[to](policy, base, work)
        if to != "merged":
            _check_adapter(policy, getattr(reloaded, policy.recorder.network_name), to)
        difference = _difference(policy, reloaded)
        if not difference <= TOLERANCE[policy.dtype]:
            raise UserError(
                f"the {to} export differs from the trained model by {difference:.2g} once reloaded; nothing was written"
            )
        if directory.exists():
            directory.rmdir()
        work.chmod(0o755)
        work.rename(directory)
        return difference
    finally:
        shutil.rmtree(work, ignore_errors=True)


def formats(policy: DiffusionPolicy) -> tuple[Format, ...]:
    """The formats this model can be exported to: some pipelines load no LoRA files, a fully trained one has none."""
    if policy.adaptation.lora is None:
        return ("merged",)
    saver = getattr(policy.pipeline, "save_lora_weights", None)
    takes = set() if saver is None else set(inspect.signature(saver).parameters)
    loads = f"{policy.recorder.network_name}_lora_layers" in takes and hasattr(policy.network, "load_lora_adapter")
    return get_args(Format) if loads else ("peft", "merged")


def load_adapter(policy: DiffusionPolicy, directory: Path) -> None:
    """Copy an adapter's weights into the live ones; a different alpha is folded into the weights.

    Raises:
        UserError: for a folder without adapter, or one of another rank or other target modules.
    """
    options = policy.adaptation.lora
    if options is None:
        raise UserError("a fully fine-tuned policy has no adapter to load into; load it with model.lora")
    tensors, scale = _read(directory, policy.recorder.network_name)
    live = policy.adaptation.parameters
    renamed = {_live_name(key): value for key, value in tensors.items()}
    if renamed.keys() != live.keys() or any(renamed[k].shape != live[k].shape for k in live):
        odd = sorted(renamed.keys() ^ live.keys()) or [k for k in live if renamed[k].shape != live[k].shape]
        raise UserError(
            f"the adapter in {directory} does not fit model.lora (rank {options.rank}); first difference: {odd[0]}"
        )
    factor = 1.0 if scale is None else scale / (options.alpha / options.rank)
    with torch.no_grad():
        for key, parameter in live.items():
            parameter.copy_(renamed[key] * (factor if ".lora_B." in key else 1.0))


def _write_diffusers(policy: DiffusionPolicy, base: Any, work: Path) -> Any:
    name = policy.recorder.network_name
    if "diffusers" not in formats(policy):
        raise UserError(f"{type(base).__name__} cannot load LoRA files in diffusers; export to peft or merged")
    # without the metadata diffusers assumes alpha == rank, and the adapter acts at the wrong strength
    base.save_lora_weights(
        work, **{f"{name}_lora_layers": _adapter(policy), f"{name}_lora_adapter_metadata": _config(policy)}
    )
    with _quiet():
        base.load_lora_weights(work)
    return base


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' notes that text encoders have no adapter."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _write_peft(policy: DiffusionPolicy, base: Any, work: Path) -> Any:
    _save_peft(policy, work)
    _load_peft(getattr(base, policy.recorder.network_name), work)
    return base


def _write_merged(policy: DiffusionPolicy, base: Any, work: Path) -> Any:
    from flowrl.models.diffusion.load import Source, open_pipeline

    name = policy.recorder.network_name
    network = getattr(base, name)
    if policy.adaptation.lora is None:
        network.load_state_dict(policy.network.state_dict())
    else:
        with tempfile.TemporaryDirectory() as folder:
            _save_peft(policy, Path(folder))
            _load_peft(network, Path(folder)).merge_and_unload()
    network.requires_grad_(False)
    base.save_pretrained(work, safe_serialization=True)
    return open_pipeline(Source(str(work)), policy.dtype)


_WRITERS = {"diffusers": _write_diffusers, "peft": _write_peft, "merged": _write_merged}


def _save_peft(policy: DiffusionPolicy, folder: Path) -> None:
    save_file({f"{PEFT_PREFIX}{key}": value for key, value in _adapter(policy).items()}, folder / PEFT_FILE)
    network: Any = policy.network
    config = copy.deepcopy(network.peft_config[lora.ADAPTER])
    config.inference_mode = True
    config.base_model_name_or_path = None if policy.source is None else policy.source.path
    config.save_pretrained(str(folder))


def _load_peft(network: nn.Module, folder: Path) -> Any:
    """The adapter put into ``network`` itself, as any PEFT user would."""
    from peft import PeftModel

    return PeftModel.from_pretrained(network, str(folder))  # pyright: ignore[reportArgumentType]


def _adapter(policy: DiffusionPolicy) -> dict[str, Tensor]:
    """Live LoRA tensors by PEFT's file names, on the CPU."""
    suffix = f".{lora.ADAPTER}"
    return {k.replace(suffix, ""): p.detach().cpu().contiguous() for k, p in policy.adaptation.parameters.items()}


def _config(policy: DiffusionPolicy) -> dict[str, Any]:
    network: Any = policy.network
    config = network.peft_config[lora.ADAPTER].to_dict()
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}


def _fresh(policy: DiffusionPolicy) -> Any:
    """A base pipeline with an untrained denoiser and the original scheduler; the frozen parts are the policy's own, so
    that only the denoiser is read again."""
    from flowrl.models.diffusion.load import open_pipeline

    name = policy.recorder.network_name
    if policy.source is not None:
        shared = {k: v for k, v in policy.pipeline.components.items() if k not in (name, "scheduler")}
        return open_pipeline(policy.source, policy.dtype, shared).to(policy.device)
    base = copy.copy(policy.pipeline)
    network: Any = copy.deepcopy(policy.network)
    if policy.adaptation.lora is not None:
        network.unload_lora()
    setattr(base, name, network)
    return base


def _check_adapter(policy: DiffusionPolicy, network: nn.Module, to: Format) -> None:
    """Every adapted layer of the reloaded network has the live tensors and their strength. Early in training the
    adapter's effect is below rounding, so predictions alone would not tell an ignored file from a good one."""
    ours, theirs = _layers(policy.network), _layers(network)
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        raise UserError(f"the {to} export does not reach {len(odd)} layers after reloading ({odd[0]}, ...)")
    for name, (scale, *tensors) in ours.items():
        other_scale, *other = theirs[name]
        same = abs(scale - other_scale) <= 1e-6 * scale and all(
            torch.allclose(a.float(), b.to(a.device).float(), rtol=1e-2, atol=1e-6)
            for a, b in zip(tensors, other, strict=True)
        )
        if not same:
            raise UserError(f"the {to} export reloads {name} with other weights or another strength")


def _layers(network: nn.Module) -> dict[str, tuple[Any, ...]]:
    """``(scale, A, B)`` of every adapted layer; the adapter's name differs between loaders."""
    found = {}
    for name, module in network.named_modules():
        scaling: Any = getattr(module, "scaling", None)
        down: Any = getattr(module, "lora_A", None)
        up: Any = getattr(module, "lora_B", None)
        if isinstance(scaling, dict) and down and up:
            key = next(iter(down))
            found[name] = (scaling[key], down[key].weight.detach(), up[key].weight.detach())
    return found


def _difference(policy: DiffusionPolicy, reloaded: Any) -> float:
    from flowrl.models.diffusion.load import Placement, prepare

    prepare(reloaded, Placement(policy.device, policy.dtype))
    theirs = Recorder(reloaded, policy.recorder.call).record(PROBES, 2)
    ours = policy.recorder.record(PROBES, 2)
    return max(deviation(a.model_output, b.model_output) for a, b in zip(ours.steps, theirs.steps, strict=True))


def _read(directory: Path, network_name: str) -> tuple[dict[str, Tensor], float | None]:
    """``(tensors by name without prefix, alpha / rank)``."""
    if (directory / PEFT_FILE).is_file():
        config = json.loads((directory / "adapter_config.json").read_text())
        tensors, _ = _tensors(directory / PEFT_FILE)
        return _without_prefix(tensors, PEFT_PREFIX), config["lora_alpha"] / config["r"]
    if (directory / DIFFUSERS_FILE).is_file():
        tensors, header = _tensors(directory / DIFFUSERS_FILE)
        metadata = json.loads(header.get(METADATA, "{}"))
        alpha, rank = metadata.get(f"{network_name}.lora_alpha"), metadata.get(f"{network_name}.r")
        # files without metadata were made for alpha == rank: what diffusers itself assumes
        return _without_prefix(tensors, f"{network_name}."), 1.0 if alpha is None or rank is None else alpha / rank
    raise UserError(f"{directory} holds no LoRA adapter ({DIFFUSERS_FILE} or {PEFT_FILE})")


def _tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items()}


def _live_name(key: str) -> str:
    for side in ("lora_A", "lora_B"):
        key = key.replace(f".{side}.", f".{side}.{lora.ADAPTER}.")
    return key

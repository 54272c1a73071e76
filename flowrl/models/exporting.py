"""What every family's exports share: a folder that appears whole or not at all, PEFT's files, their verification."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flowrl.errors import UserError
from flowrl.models.loading import Source
from flowrl.models.lora import ADAPTER, Adaptation

PEFT_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference of a reloaded model's predictions, relative to their largest value (merging rounds)."""


def deviation(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest value; NaN counts as infinite."""
    ours, theirs = ours.detach(), theirs.detach()
    gap = (ours.double() - theirs.double().to(ours.device)).abs().max() / theirs.double().abs().max().clamp(min=1e-12)
    return float(gap) if torch.isfinite(gap) else float("inf")


def into_folder(
    directory: Path, to: str, known: tuple[str, ...], adaptation: Adaptation, dtype: torch.dtype,
    write: Callable[[Path], float],
) -> float:  # fmt: skip
    """Let ``write`` fill a new folder and compare, and move it to ``directory`` (new or empty) if it is good.

    Returns:
        What ``write`` returned: the largest difference between the policy's predictions and the reloaded model's,
        relative to the largest value.

    Raises:
        UserError: for a format that cannot hold the weights, an occupied folder, or a reloaded model that differs.
    """
    if to not in known:
        raise UserError(f"cannot export to {to!r}; choose one of {', '.join(known)}")
    if adaptation.lora is None and to != "merged":
        raise UserError(f"a fully fine-tuned model has no adapter to export to {to!r}; use merged")
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} already exists and is not empty; remove it or export elsewhere")
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        difference = write(work)
        if not difference <= TOLERANCE[dtype]:
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


def adapter_tensors(adaptation: Adaptation) -> dict[str, Tensor]:
    """Live LoRA tensors by PEFT's file names, on the CPU."""
    suffix = f".{ADAPTER}"
    return {k.replace(suffix, ""): p.detach().cpu().contiguous() for k, p in adaptation.parameters.items()}


def save_peft(network: Any, adaptation: Adaptation, source: Source | None, folder: Path) -> None:
    """Write the live adapter as PEFT does."""
    tensors = {f"{PEFT_PREFIX}{key}": value for key, value in adapter_tensors(adaptation).items()}
    save_file(tensors, folder / PEFT_FILE)
    config = copy.deepcopy(network.peft_config[ADAPTER])
    config.inference_mode = True
    config.base_model_name_or_path = None if source is None else source.path
    config.save_pretrained(str(folder))


def load_peft(network: nn.Module, folder: Path) -> Any:
    """The adapter put into ``network`` itself, as any PEFT user would."""
    from peft import PeftModel

    with warnings.catch_warnings():
        # PEFT asks by a name that transformers 5.23 replaced
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return PeftModel.from_pretrained(network, str(folder))  # pyright: ignore[reportArgumentType]


def merge(network: nn.Module, adapted: nn.Module, adaptation: Adaptation) -> Any:
    """``network``, a fresh copy of the base, with the trained weights of ``adapted`` in its own."""
    if adaptation.lora is None:
        network.load_state_dict(adapted.state_dict())
        return network
    with tempfile.TemporaryDirectory() as folder:
        save_peft(adapted, adaptation, None, Path(folder))
        return load_peft(network, Path(folder)).merge_and_unload()


def check_adapter(ours: nn.Module, theirs: nn.Module, to: str) -> None:
    """Every adapted layer of the reloaded network has the live tensors and their strength. Early in training the
    adapter's effect is below rounding, so predictions alone would not tell an ignored file from a good one."""
    live, reloaded = _layers(ours), _layers(theirs)
    if live.keys() != reloaded.keys():
        odd = sorted(live.keys() ^ reloaded.keys())
        raise UserError(f"the {to} export does not reach {len(odd)} layers after reloading ({odd[0]}, ...)")
    for name, (scale, *tensors) in live.items():
        other_scale, *other = reloaded[name]
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


def read_peft(directory: Path) -> tuple[dict[str, Tensor], float]:
    """``(tensors by name without prefix, alpha / rank)`` of a PEFT folder. Raises `UserError` if there is none."""
    if not (directory / PEFT_FILE).is_file():
        raise UserError(f"{directory} holds no LoRA adapter ({PEFT_FILE})")
    config = json.loads((directory / "adapter_config.json").read_text())
    tensors, _ = read_tensors(directory / PEFT_FILE)
    return {key.removeprefix(PEFT_PREFIX): value for key, value in tensors.items()}, config["lora_alpha"] / config["r"]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """``(tensors, header)`` of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def load_adapter(adaptation: Adaptation, directory: Path, read: tuple[Mapping[str, Tensor], float]) -> None:
    """Copy an adapter's weights into the live ones; a different alpha / rank is folded into the weights.

    Raises:
        UserError: for an adapter of another rank or other target modules.
    """
    options, live = adaptation.lora, adaptation.parameters
    if options is None:
        raise UserError("a fully fine-tuned policy has no adapter to load into; load it with model.lora")
    tensors, scale = read
    renamed = {_live_name(key): value for key, value in tensors.items()}
    if renamed.keys() != live.keys() or any(renamed[k].shape != live[k].shape for k in live):
        odd = sorted(renamed.keys() ^ live.keys()) or [k for k in live if renamed[k].shape != live[k].shape]
        raise UserError(
            f"the adapter in {directory} does not fit model.lora (rank {options.rank}); first difference: {odd[0]}"
        )
    factor = scale / (options.alpha / options.rank)
    with torch.no_grad():
        for key, parameter in live.items():
            parameter.copy_(renamed[key] * (factor if ".lora_B." in key else 1.0))


def _live_name(key: str) -> str:
    for side in ("lora_A", "lora_B"):
        key = key.replace(f".{side}.", f".{side}.{ADAPTER}.")
    return key

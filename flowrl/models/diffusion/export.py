"""Adapters and merged pipelines on disk, each verified by loading it into a copy of the base model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flowrl.errors import UserError, first_line, is_out_of_memory
from flowrl.models.adapters import kohya, peft, read
from flowrl.models.adapters.adapter import DOWN, UP
from flowrl.models.adapters.diffusion import ENCODERS, without_log
from flowrl.models.adapters.peft import PEFT_PREFIX
from flowrl.models.adapters.read import DIFFUSERS_FILE
from flowrl.models.adapters.text_encoders import fold_alphas
from flowrl.models.adapters.verify import check_adapter, check_merged, check_updates, swapped_in
from flowrl.models.deviation import deviation
from flowrl.models.diffusion.denoiser_spec import PROBES
from flowrl.models.diffusion.load import open_pipeline
from flowrl.models.diffusion.policy import DiffusionPolicy
from flowrl.models.diffusion.recorder import DenoiserCall, prediction_of
from flowrl.models.diffusion.stages import adaptation_of, denoisers, rejoined
from flowrl.models.export_folder import Difference, into_folder
from flowrl.models.lora import ADAPTER, Adaptation
from flowrl.models.quantization import check_mergeable, is_quantized
from flowrl.models.source import ModelSource

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FORMATS = ("diffusers", "peft", "kohya", "merged")


def export(policy: DiffusionPolicy, directory: Path, to: str) -> float:
    """Write the live weights to ``directory`` (new or empty), verified before it appears: see `into_folder`. Adapters
    are loaded into a copy of the network that shares the base's tensors; merged weights are read back on the CPU and
    take the network's place on its device."""

    def write(work: Path) -> Difference:
        reloaded = _network(policy, _WRITERS[to](policy, work, directory.name))
        if to == "kohya":
            check_updates(policy.network, reloaded, to)
        elif to == "merged":
            check_merged(policy.network, reloaded)
        else:
            check_adapter(policy.network, reloaded, to)
        return _difference(policy, reloaded)

    return into_folder(directory, to, FORMATS, policy.adaptation, policy.dtype, write, policy.origin)


def formats(policy: DiffusionPolicy) -> tuple[str, ...]:
    """The formats this model can be exported to: some pipelines load no LoRA files, kohya's names are those of few
    models and have no magnitudes of DoRA that diffusers reads, a fully trained model has no adapter, and a base in a
    few bits no room for merged weights."""
    lora = policy.adaptation.lora
    if lora is None:
        return ("merged",)
    whole = () if is_quantized(policy.network) else ("merged",)
    saver = getattr(policy.pipeline, "save_lora_weights", None)
    takes = set() if saver is None else set(inspect.signature(saver).parameters)
    network = next(iter(_denoisers(policy).values()))
    loads = f"{policy.recorder.network_name}_lora_layers" in takes and hasattr(network, "load_lora_adapter")
    if not loads:
        return ("peft", *whole)
    named = kohya.module_of(type(policy.pipeline).__name__) is not None and not lora.dora and network is policy.network
    return ("diffusers", "peft", *(("kohya",) if named else ()), *whole)


def _denoisers(policy: DiffusionPolicy) -> dict[str, nn.Module]:
    return denoisers(policy.network, policy.recorder.network_name)


def _network(policy: DiffusionPolicy, pipeline: DiffusionPipeline) -> nn.Module:
    """The denoiser of a pipeline that was loaded anew; where it has two, as one."""
    network = rejoined(policy.network, [getattr(pipeline, name) for name in _denoisers(policy)])
    if hasattr(policy.pipeline, "set_pag_applied_layers"):  # the processors that the policy's network was given
        ours = dict(policy.network.named_modules())
        for name, module in network.named_modules():
            if hasattr(module, "processor"):
                module.processor = getattr(ours[name.removeprefix(PEFT_PREFIX)], "processor", module.processor)
    return network


@dataclass(frozen=True)
class _Part:
    """One of the denoisers, and where its adapter is written: the export's folder, or with two, one of its own."""

    name: str
    network: nn.Module
    adaptation: Adaptation
    folder: Path


def _parts(policy: DiffusionPolicy, work: Path) -> list[_Part]:
    found, parts = _denoisers(policy), []
    for name, network in found.items():
        folder = work / name if len(found) > 1 else work
        folder.mkdir(exist_ok=True)
        parts.append(_Part(name, network, adaptation_of(policy.adaptation, policy.network, name), folder))
    return parts


def _write_diffusers(policy: DiffusionPolicy, work: Path, name: str) -> DiffusionPipeline:
    network = policy.recorder.network_name
    if "diffusers" not in formats(policy):
        raise UserError(
            f"{type(policy.pipeline).__name__} cannot load LoRA files in diffusers; export to peft or merged"
        )
    base = _shared_base(policy)
    for part in _parts(policy, work):
        # without the metadata diffusers assumes alpha == rank, and the adapter acts at the wrong strength
        given = {
            f"{network}_lora_layers": peft.adapter_tensors(part.adaptation),
            f"{network}_lora_adapter_metadata": _config(policy, part.network),
        }
        base.save_lora_weights(part.folder, **given, **_encoders(policy))
        peft.sort_header(part.folder / DIFFUSERS_FILE)
        with without_log():  # diffusers' own switch for a second denoiser
            base.load_lora_weights(part.folder, **({} if part.name == network else {f"load_into_{part.name}": True}))
    return base


def _write_peft(policy: DiffusionPolicy, work: Path, name: str) -> DiffusionPipeline:
    base = _shared_base(policy)
    for part in _parts(policy, work):
        peft.save_peft(part.network, part.adaptation, policy.source, part.folder)
        peft.load_peft(getattr(base, part.name), part.folder)
    return base


def _write_kohya(policy: DiffusionPolicy, work: Path, name: str) -> DiffusionPipeline:
    """One file, loaded again as users of diffusers would; what diffusers has no converter for (SD3), by our own."""
    kind = type(policy.pipeline).__name__
    if "kohya" not in formats(policy):
        raise UserError(f"kohya's names have none for {kind}, or no DoRA; export to diffusers or peft")
    if any(getattr(policy.pipeline.components.get(encoder), "peft_config", None) for encoder in ENCODERS):
        raise UserError("kohya's form of an adapter with text encoders is not written; export to diffusers")
    file = work / f"{name}.safetensors"
    named = _kohya_tensors(policy, kind)
    lora = policy.adaptation.lora
    assert lora is not None
    facts = {"ss_network_module": str(kohya.module_of(kind)), "ss_network_dim": str(lora.rank),
             "ss_network_alpha": f"{lora.alpha:g}"}  # fmt: skip
    save_file(named, file, {"format": "pt", **facts})
    peft.sort_header(file)
    base = _shared_base(policy)
    if kohya.is_sd3(named):
        adapter = read(str(file), str(policy.source.path) if policy.source else None, policy.recorder.network_name)
        state = {f"{policy.recorder.network_name}.{key}": value for key, value in adapter.tensors.items()}
        with without_log():
            base.load_lora_weights(state)
        return base
    try:
        with without_log():
            base.load_lora_weights(work)
    except (ValueError, AssertionError, KeyError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"diffusers cannot read kohya's names of this adapter ({first_line(error)}); export to diffusers, or adapt"
            " attention"
        ) from error
    return base


def _kohya_tensors(policy: DiffusionPolicy, kind: str) -> dict[str, Tensor]:
    """The live adapter in kohya's names for a pipeline of the class ``kind``."""
    network: Any = policy.network
    tensors = peft.adapter_tensors(policy.adaptation)
    downs = {name.removesuffix(DOWN): value for name, value in tensors.items() if name.endswith(DOWN)}
    updates = {layer: (down, tensors[f"{layer}{UP}"]) for layer, down in downs.items()}
    scales = {layer: network.get_submodule(layer).scaling[ADAPTER] for layer in updates}
    layers_per_block = getattr(getattr(network, "config", None), "layers_per_block", 2)
    return kohya.to_kohya(
        kind, updates, scales, lambda layer: network.get_submodule(layer).out_features, layers_per_block
    )


def _write_merged(policy: DiffusionPolicy, work: Path, name: str) -> DiffusionPipeline:
    check_mergeable(policy.network)
    base = _fresh(policy)
    for part_name, network in _denoisers(policy).items():
        adaptation = adaptation_of(policy.adaptation, policy.network, part_name)
        peft.merge(getattr(base, part_name), network, adaptation).requires_grad_(False)
    for encoder in ENCODERS:
        if getattr(base.components.get(encoder), "peft_config", None):
            setattr(base, encoder, _merged_encoder(base.components[encoder]))
    base.save_pretrained(work, safe_serialization=True)
    return open_pipeline(ModelSource(str(work)), policy.dtype, _frozen(policy))


_WRITERS = {"diffusers": _write_diffusers, "peft": _write_peft, "kohya": _write_kohya, "merged": _write_merged}


def _config(policy: DiffusionPolicy, network: nn.Module) -> dict[str, Any]:
    config = peft.configuration(network, policy.source).to_dict()
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}


def _encoders(policy: DiffusionPolicy) -> dict[str, Any]:
    """Arguments for what the pipeline's text encoders were adapted with, by a file that the policy started from."""
    from peft import get_peft_model_state_dict

    found: dict[str, Any] = {}
    for name in ENCODERS:
        encoder: Any = policy.pipeline.components.get(name)
        if getattr(encoder, "peft_config", None):
            config = copy.deepcopy(encoder.peft_config[ADAPTER])
            config.target_modules = sorted(config.target_modules)
            tensors = {f"{name}.{k}": v for k, v in get_peft_model_state_dict(encoder, adapter_name=ADAPTER).items()}
            found[f"{name}_lora_layers"] = {
                key.removeprefix(f"{name}."): value for key, value in fold_alphas(tensors, {}, name).items()
            }
            found[f"{name}_lora_adapter_metadata"] = {k: sorted(v) if isinstance(v, set) else v
                                                      for k, v in config.to_dict().items()}  # fmt: skip
    return found


def _merged_encoder(encoder: nn.Module) -> nn.Module:
    from peft.tuners.tuners_utils import BaseTunerLayer

    other = copy.deepcopy(encoder)
    for module in other.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    return peft.without_adapter(other)


def _shared_base(policy: DiffusionPolicy) -> DiffusionPipeline:
    """The pipeline with a denoiser (and adapted text encoders) of modules of its own on the policy's tensors, without
    adapters."""
    base = copy.copy(policy.pipeline)
    for name, network in _denoisers(policy).items():
        setattr(base, name, peft.shared_base(network))
    for name in ENCODERS:
        if getattr(policy.pipeline.components.get(name), "peft_config", None):
            setattr(base, name, peft.shared_base(policy.pipeline.components[name]))
    return base


def _frozen(policy: DiffusionPolicy) -> dict[str, Any]:
    """The parts that are not trained, which need not be read again."""
    names = (*_denoisers(policy), "scheduler")
    return {key: value for key, value in policy.pipeline.components.items() if key not in names}


def _fresh(policy: DiffusionPolicy) -> DiffusionPipeline:
    """A base pipeline with an untrained denoiser in the host's memory and the original scheduler."""
    if policy.source is not None:
        return open_pipeline(policy.source, policy.dtype, _frozen(policy))
    base = copy.copy(policy.pipeline)
    for name, network in _denoisers(policy).items():
        setattr(base, name, peft.without_adapter(copy.deepcopy(network).to("cpu")))
    return base


def _difference(policy: DiffusionPolicy, network: nn.Module) -> Difference:
    """How far the reloaded network's predictions are, at the inputs of two steps of the pipeline."""
    calls = [call for step in policy.recorder.record(PROBES, 2).steps for call in step.calls]

    def rounding() -> float:
        with policy.recorder.precision(), peft.as_merged(policy.network):
            return _gap(calls, policy.network)

    with policy.recorder.precision(), swapped_in(policy.network, network):
        return Difference(_gap(calls, network), rounding)


@torch.no_grad()
def _gap(calls: Sequence[DenoiserCall], network: nn.Module) -> float:
    gaps = []
    for call in calls:
        assert call.prediction is not None
        gaps.append(deviation(call.prediction, prediction_of(network.eval()(**call.inputs))))
    return max(gaps)

"""From a model folder, a hub name or a pipeline object to a policy, refusing early what cannot work."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from flowrl.errors import UserError, first_line, is_out_of_memory
from flowrl.models.diffusion.components import load_networks
from flowrl.models.diffusion.coordinates import has_flow_sigmas
from flowrl.models.diffusion.denoiser_spec import calibrate
from flowrl.models.diffusion.lora_targets import LORA_TARGETS
from flowrl.models.diffusion.parity import check, predictions
from flowrl.models.diffusion.policy import DiffusionPolicy
from flowrl.models.diffusion.recorder import Recorder, denoiser_name
from flowrl.models.family import embedded_model
from flowrl.models.files import check_files, read_object, variant_of
from flowrl.models.load_errors import load_error
from flowrl.models.lora import ATTENTION_TARGETS, LoRAOptions, adapt, lora_or_full, trained_parameters
from flowrl.models.pace import Pace
from flowrl.models.placement import Placement, compile_blocks, place
from flowrl.models.sharding import Shard, check_exchange, check_shard, split
from flowrl.models.source import ModelSource, check_finite, check_model_name, without_progress_bars
from flowrl.worlds.shapes import CALL

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def load_policy(
    path_or_pipeline: str | Path | DiffusionPipeline,
    *,
    call: Mapping[str, Any] | None = None,
    lora: LoRAOptions | None = None,
    full: bool = False,
    dtype: str = "float32",
    device: str = "auto",
    gradient_checkpointing: bool = False,
    attention: str | None = None,
    compile: bool = False,
    trust_remote_code: bool = False,
    decode_batch: int = 16,
    shard: Shard = "none",
    parity: Literal["check", "skip"] = "check",
) -> DiffusionPolicy:
    """A policy from any diffusers text-to-image or text-to-video pipeline that can be replayed.

    Args:
        path_or_pipeline: a folder written by ``save_pretrained``, a hub name, the name of an embedded world
            (``"shapes"``), or a pipeline object, which is then the policy's own.
        call: extra arguments of the pipeline's ``__call__``: ``guidance_scale``, ``height``, ``num_frames``,
            ready-made ``prompt_embeds``, ...
        lora: the adapter to train (default: rank 32 on the attention projections); exclusive with ``full``.
        full: train every parameter of the denoiser.
        dtype: precision of the frozen parts; trained parameters are always float32.
        attention: a backend of diffusers' attention dispatcher, such as ``"flash"`` or ``"xformers"``.
        compile: compile the denoiser's repeated blocks.
        decode_batch: images decoded at once.
        shard: ``"fsdp"``: split the denoiser over the processes (`flowrl.models.sharding`).

    Raises:
        UserError: for a model that is missing, unsuitable or not replayable, or options that exclude each other.
    """
    placement = place(dtype, device)
    options = lora_or_full(full, lora)
    check_shard(shard)
    source, pipeline, defaults = _open(path_or_pipeline, placement, trust_remote_code)
    network = getattr(pipeline, denoiser_name(pipeline))
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    adapt(network, options, LORA_TARGETS.get(type(network).__name__, ATTENTION_TARGETS))
    _switch_on(network, gradient_checkpointing, attention, compile)
    label = str(path_or_pipeline) if source else type(pipeline).__name__
    pace = _place(pipeline, network, placement, label, shard, full)
    adaptation = trained_parameters(network, options)
    recorder = Recorder(pipeline, {**defaults, **(call or {})}, placement.precision)
    spec = calibrate(recorder).to(placement.device)
    policy = DiffusionPolicy(
        recorder, spec, adaptation, dtype=placement.dtype, decode_batch=decode_batch, source=source
    )
    policy.pace = pace
    if parity == "check":
        check(policy)
    if shard != "none":
        check_exchange(policy.weights, partial(predictions, policy), type(network).__name__)
    return policy


def open_pipeline(
    where: ModelSource, dtype: torch.dtype, components: Mapping[str, Any] | None = None
) -> DiffusionPipeline:
    """The pipeline saved at ``where``, safetensors only; given ``components`` are used instead of reading them.

    Raises:
        UserError: when there is none.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    source = where.path
    folder = Path(source)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise UserError(
            f"{source} has no model_index.json, so it is not a diffusers pipeline; pass the pipeline's root folder"
        )
    check_model_name(source)
    common: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": where.trust_remote_code}
    given = dict(components or {})
    try:
        with without_progress_bars():
            if not folder.is_dir():
                folder = Path(DiffusionPipeline.download(source, **common, **given))
            check_files(folder)
            index = read_object(folder / "model_index.json")
            variant = variant_of(folder)
            common |= {} if variant is None else {"variant": variant}
            # parts a folder was saved without (text encoders, for ready-made embeddings) are named to be left out
            absent = {key: None for key, value in index.items() if value == [None, None]}
            parts = {**absent, **load_networks(folder, index, dtype, given), **given}
            pipeline = DiffusionPipeline.from_pretrained(str(folder), dtype=dtype, **common, **parts)
    except Exception as error:  # whatever the library raises for files that are not as it wrote them
        raise load_error(source, error) from error
    if "safety_checker" in pipeline.components:  # it blacks out images behind the reward's back
        pipeline.register_modules(safety_checker=None)
        pipeline.register_to_config(requires_safety_checker=False)
    return pipeline


def _place(
    pipeline: DiffusionPipeline, network: torch.nn.Module, placement: Placement, label: str, shard: Shard, full: bool
) -> Pace | None:
    """Move the pipeline to its device, its denoiser split over the processes where that is asked for. Raises
    `UserError` for weights that are not finite."""
    pace = None
    if shard != "none":
        check_finite(network, label, denoiser_name(pipeline))  # the last time that it is whole
        pace = split(network, placement.device, full)
    prepare(pipeline, placement)
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module) and (pace is None or part is not network):
            check_finite(part, label, name)
    return pace


def prepare(pipeline: DiffusionPipeline, placement: Placement) -> None:
    """Move a pipeline to its device and give it a scheduler with a noise-free single step."""
    pipeline.to(placement.device)
    pipeline.scheduler = single_step(pipeline.scheduler)


def single_step(scheduler: Any) -> Any:
    """Higher-order, stochastic or clipping DDPM schedulers become DDIM or Euler with the same training schedule (no
    policy gradient is defined through the history of a multi-step solver). Flow schedulers are kept: only their
    sigmas are used."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    name, config = type(scheduler).__name__, scheduler.config
    if name.startswith("FlowMatch") or has_flow_sigmas(config) or not hasattr(scheduler, "alphas_cumprod"):
        return scheduler
    if name.startswith("CogVideoX"):
        return CogVideoXDDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=True)
    if float(scheduler.init_noise_sigma) > 1.5:  # latents in the exploding scale
        plain = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
        return EulerDiscreteScheduler.from_config(config, **plain)
    return DDIMScheduler.from_config(config, clip_sample=False, thresholding=False, set_alpha_to_one=True)


def _open(
    given: str | Path | DiffusionPipeline, placement: Placement, trust: bool
) -> tuple[ModelSource | None, DiffusionPipeline, Mapping[str, Any]]:
    """``(source, pipeline, default call)``."""
    if not isinstance(given, (str, Path)):
        if not hasattr(given, "components") or not callable(given):
            raise UserError(
                f"load_policy takes a folder, a hub name or a diffusers pipeline, got {type(given).__name__}"
            )
        pipeline: Any = given
        origin = str(pipeline.config.get("_name_or_path") or "")
        known = (Path(origin) / "model_index.json").is_file()
        return (ModelSource(origin, trust) if known else None), pipeline.to(placement.dtype), {}
    embedded = embedded_model(str(given), "diffusion")
    where = ModelSource(str(embedded or given), trust)
    return where, open_pipeline(where, placement.dtype), {} if embedded is None else CALL


def _switch_on(network: Any, gradient_checkpointing: bool, attention: str | None, compile: bool) -> None:
    kind = type(network).__name__
    if gradient_checkpointing:
        if not getattr(network, "_supports_gradient_checkpointing", False):
            raise UserError(f"{kind} does not support gradient checkpointing; set model.gradient_checkpointing: false")
        network.enable_gradient_checkpointing()
    if attention is not None:
        try:
            network.set_attention_backend(attention)
        except (ValueError, RuntimeError, ImportError) as error:
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"attention backend {attention!r} is not available for {kind}: {first_line(error)}"
            ) from error
    if compile:
        compile_blocks(network)

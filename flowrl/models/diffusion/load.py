"""From a model folder, a hub name or a pipeline object to a policy, refusing early what cannot work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from flowrl.errors import UserError
from flowrl.models.diffusion.attention import keep_processors, use_attention
from flowrl.models.diffusion.components import load_networks
from flowrl.models.diffusion.coordinates import has_flow_sigmas
from flowrl.models.diffusion.denoiser_spec import calibrate
from flowrl.models.diffusion.lora_targets import LORA_TARGETS
from flowrl.models.diffusion.offload import Offload, check_offload, decode_in_parts, place_parts
from flowrl.models.diffusion.parity import check, predictions
from flowrl.models.diffusion.policy import DiffusionPolicy
from flowrl.models.diffusion.prompt_inputs import prompt_inputs
from flowrl.models.diffusion.recorder import Recorder, denoiser_name
from flowrl.models.diffusion.stages import denoiser_of, denoisers
from flowrl.models.family import embedded_model
from flowrl.models.files import check_files, read_object, variant_of
from flowrl.models.load_errors import load_error
from flowrl.models.lora import ATTENTION_TARGETS, LoRAOptions, adapt, lora_or_full, trained_parameters
from flowrl.models.merging import MergedAdapter, check_merging
from flowrl.models.pace import Pace
from flowrl.models.placement import Placement, compile_blocks, place, trained_precision
from flowrl.models.quantization import FULL_PRECISION, Method, Quantized, check_device, check_quantization
from flowrl.models.sharding import Shard, check_exchange, check_shard, split
from flowrl.models.source import ModelSource, check_finite, check_model_name, without_progress_bars
from flowrl.worlds.images import CALL

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def load_policy(
    path_or_pipeline: str | Path | DiffusionPipeline,
    *,
    call: Mapping[str, Any] | None = None,
    inputs: Mapping[str, str] | None = None,
    lora: LoRAOptions | None = None,
    full: bool = False,
    merge_adapters: bool = False,
    dtype: str = "float32",
    trained_dtype: str = "float32",
    device: str = "auto",
    gradient_checkpointing: bool = False,
    attention: str | None = None,
    compile: bool = False,
    trust_remote_code: bool = False,
    decode_batch: int = 16,
    vae_slicing: bool = False,
    vae_tiling: bool = False,
    offload: Offload = "none",
    prompt_cache: bool = False,
    quantize: Method | None = None,
    quantize_encoders: Method | None = None,
    shard: Shard = "none",
    parity: Literal["check", "skip"] = "check",
) -> DiffusionPolicy:
    """A policy from any diffusers text-to-image or text-to-video pipeline that can be replayed.

    Args:
        path_or_pipeline: a folder, a hub name, an embedded world (``"shapes"``), or a pipeline, then the policy's own.
        call: extra arguments of the pipeline's ``__call__`` (``height``, ...); inputs: columns of prompts' pictures.
        lora: the adapter to train (default: rank 32 on the attention projections); ``full``: every parameter instead;
            merge_adapters: predict without gradient with merged weights (`flowrl.models.merging`).
        dtype: precision of the frozen parts; ``trained_dtype``: of the trained ones, float32 or this one's bfloat16.
        attention: a backend of diffusers' attention dispatcher (``"sdpa"``, ``"flash"``, ``"xformers"``, ...);
            compile: the denoiser's repeated blocks, once for all numbers of rows.
        decode_batch: images decoded at once; vae_slicing, vae_tiling, offload: `flowrl.models.diffusion.offload`;
            prompt_cache: keep encoded prompts on disk (`flowrl.models.diffusion.prompt_cache`).
        quantize, quantize_encoders: hold linear layers of the denoiser, and of the encoders, in ``nf4`` or ``int8``.
        shard: ``"fsdp"``: split the denoiser over the processes (`flowrl.models.sharding`).

    Raises:
        UserError: for a model that is missing, unsuitable or not replayable, or options that exclude each other.
    """
    placement = place(dtype, device)
    options, trained = lora_or_full(full, lora), trained_precision(trained_dtype, placement.dtype)
    check_offload(offload, options, compile=compile, shard=shard, quantize=quantize)
    check_merging(merge_adapters, options, dtype, compile=compile, shard=shard, quantize=quantize, offload=offload)
    quantized = _quantized(quantize, quantize_encoders, full, shard, placement)
    source, pipeline, defaults = _open(path_or_pipeline, placement, trust_remote_code, quantized)
    network = keep_processors(pipeline, denoiser_of(pipeline, shard))
    _adapt(pipeline, network, options, trained, gradient_checkpointing)
    decode_in_parts(pipeline, vae_slicing, vae_tiling)
    release, pace = _place(pipeline, network, placement, source, shard, full, offload)
    adaptation = trained_parameters(network, options)  # before it runs: FSDP then leaves gathered ones in their place
    recorder = Recorder(pipeline, {**defaults, **(call or {})}, placement.precision, release)
    facts: dict[str, Any] = {"dtype": placement.dtype, "decode_batch": decode_batch, "source": source}
    facts["inputs"] = prompt_inputs(recorder, inputs, prompt_cache)  # before it is watched: stand-ins join its call
    policy = DiffusionPolicy(recorder, calibrate(recorder), adaptation, **facts)
    _speed_up(policy, attention, compile, prompt_cache, merge_adapters)
    return _checked(policy, parity, pace)


def _checked(policy: DiffusionPolicy, parity: Literal["check", "skip"], pace: Pace | None) -> DiffusionPolicy:
    """The policy after the start-up checks, its network run at this pace from here on."""
    policy.pace = pace
    if parity == "check":
        check(policy)
    if policy.is_split:
        check_exchange(policy.weights, partial(predictions, policy), type(policy.network).__name__)
    return policy


def _adapt(
    pipeline: DiffusionPipeline,
    network: torch.nn.Module,
    options: LoRAOptions | None,
    trained_dtype: torch.dtype,
    gradient_checkpointing: bool,
) -> None:
    """Freeze the pipeline but for what is trained of its denoiser."""
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    for denoiser in denoisers(network, "").values():
        targets = LORA_TARGETS.get(type(denoiser).__name__, ATTENTION_TARGETS)
        adapt(denoiser, options, targets, trained_dtype=trained_dtype)
    if gradient_checkpointing:
        _checkpoint(network)


def _quantized(
    network: Method | None, encoders: Method | None, full: bool, shard: Shard, placement: Placement
) -> Quantized:
    check_shard(shard)
    for key, method in (("model.quantize", network), ("model.quantize_encoders", encoders)):
        if method is not None:
            check_quantization(method, full, key, shard)
            check_device(method, placement.device, key)
    return Quantized(network, encoders, placement.device)


def open_pipeline(
    where: ModelSource,
    dtype: torch.dtype,
    components: Mapping[str, Any] | None = None,
    quantized: Quantized = FULL_PRECISION,
) -> DiffusionPipeline:
    """The pipeline saved at ``where``, safetensors only; given ``components`` are used instead of reading them.
    ``quantized``: which of its networks are held in a few bits.

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
            parts = {**absent, **load_networks(folder, index, dtype, given, quantized), **given}
            pipeline = DiffusionPipeline.from_pretrained(str(folder), dtype=dtype, **common, **parts)
    except Exception as error:  # whatever the library raises for files that are not as it wrote them
        raise load_error(source, error) from error
    if "safety_checker" in pipeline.components:  # it blacks out images behind the reward's back
        pipeline.register_modules(safety_checker=None)
        pipeline.register_to_config(requires_safety_checker=False)
    return pipeline


def _place(
    pipeline: DiffusionPipeline,
    network: torch.nn.Module,
    placement: Placement,
    source: ModelSource | None,
    shard: Shard,
    full: bool,
    offload: Offload,
) -> tuple[Callable[[], None], Pace | None]:
    """Move the pipeline to its device, its denoiser split over the processes where that is asked for, and give it a
    scheduler with a noise-free single step: what sends parts that wait on the host back there,
    and the pace of a split one. Raises `UserError` for weights that are not finite."""
    pace = None
    label = source.path if source else type(pipeline).__name__
    if shard != "none":
        check_finite(network, label, denoiser_name(pipeline))  # the last time that it is whole
        pace = split(network, placement.device, full)
    pipeline.scheduler = single_step(pipeline.scheduler)
    release = place_parts(pipeline, denoiser_name(pipeline), placement.device, offload)
    parts = {id(part): (name, part) for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    for name, part in parts.values():
        if pace is None or part is not network:
            check_finite(part, label, name)
    return release, pace


def single_step(scheduler: Any) -> Any:
    """Higher-order, stochastic or clipping DDPM schedulers become DDIM or Euler with the same training schedule (no
    policy gradient is defined through the history of a multi-step solver). Flow and consistency schedulers are kept:
    only their sigmas or timesteps are used."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    name, config = type(scheduler).__name__, scheduler.config
    if name.startswith("FlowMatch") or has_flow_sigmas(config) or not hasattr(scheduler, "alphas_cumprod"):
        return scheduler
    if name in ("LCMScheduler", "TCDScheduler"):  # their own few times, for which networks are distilled, and no steps
        return scheduler
    if name.startswith("CogVideoX"):
        return CogVideoXDDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=True)
    if float(scheduler.init_noise_sigma) > 1.5:  # latents in the exploding scale
        plain = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
        return EulerDiscreteScheduler.from_config(config, **plain)
    if config.get("variance_type", None) is not None:  # DeepFloyd IF hands a learned variance on unless told otherwise
        config = {**config, "variance_type": "fixed_small"}
    return DDIMScheduler.from_config(config, clip_sample=False, thresholding=False, set_alpha_to_one=True)


def _open(
    given: str | Path | DiffusionPipeline, placement: Placement, trust: bool, quantized: Quantized
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
        pipeline = pipeline.to(placement.dtype)
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                quantized.finish(name, part)
        return (ModelSource(origin, trust) if known else None), pipeline, {}
    embedded = embedded_model(str(given), "diffusion")
    where = ModelSource(str(embedded or given), trust)
    opened = open_pipeline(where, placement.dtype, quantized=quantized)
    return where, opened, {} if embedded is None else CALL


def _speed_up(policy: DiffusionPolicy, attention: str | None, compile: bool, prompt_cache: bool, merge: bool) -> None:
    """What is switched on once it is known how the pipeline calls its denoiser."""
    if prompt_cache:
        policy.encoder.keep()
    if attention is not None:
        use_attention(policy, attention)
    if compile:
        compile_blocks(policy.network)
    if merge:
        policy.merged = MergedAdapter(policy.network, policy.weights)


def _checkpoint(network: Any) -> None:
    if not getattr(network, "_supports_gradient_checkpointing", False):
        kind = type(network).__name__
        raise UserError(f"{kind} does not support gradient checkpointing; set model.gradient_checkpointing: false")
    network.enable_gradient_checkpointing()

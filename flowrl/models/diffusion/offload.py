"""Parts of a pipeline that wait on the host until they are called, and how its VAE decodes in little memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from flowrl.errors import UserError
from flowrl.models.host_layers import fetch_layers
from flowrl.models.lora import LoRAOptions

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Offload = Literal["none", "encoders", "sequential"]
"""Everything stays on the device; text encoders, image encoders and VAE wait on the host; the denoiser's frozen layers
do, too, and the encoders come layer by layer as they do."""


def check_offload(
    mode: Offload, lora: LoRAOptions | None, *, compile: bool, shard: str = "none", quantize: str | None = None
) -> None:
    """Raise `UserError` where an adapter (``None``: full fine-tuning) cannot be trained with layers on the host."""
    if mode != "sequential":
        return
    reasons = {
        f"model.shard={shard} has layers on several devices": shard != "none",
        f"model.quantize={quantize} has weights that are no plain tensors": quantize is not None,
        "model.full trains every layer": lora is None,
        "model.compile keeps a layer's tensors": compile,
        "model.lora.dora reads a layer's weights without calling it": lora is not None and lora.dora,
    }
    for reason, found in reasons.items():
        if found:
            raise UserError(f"model.offload=sequential fetches a layer for its call, and {reason}; set it to encoders")


def place_parts(pipeline: DiffusionPipeline, network: str, device: torch.device, mode: Offload) -> Callable[[], None]:
    """Put a pipeline's parts where they wait: a function that sends back what was fetched.

    Parts but the denoiser named ``network`` come to the device when they are called, one at a time; with
    ``sequential``, the VAE alone comes whole, because an encoder may be larger than the device. Accelerate's hooks,
    which do that for diffusers' ``enable_model_cpu_offload``, are not used because diffusers' adapter loaders remove
    them, and put one on the denoiser. Raises `UserError` for a denoiser whose layers cannot wait.
    """
    if mode == "none":
        pipeline.to(device)
        return lambda: None
    denoiser: nn.Module = getattr(pipeline, network)
    held = set(denoiser.modules())  # of one that stands for several, those too
    parts = [p for p in pipeline.components.values() if isinstance(p, nn.Module) and p not in held]
    waiting = [_Waiting(part, device, mode == "sequential" and not hasattr(part, "decode")) for part in parts]

    def release() -> None:
        for part in waiting:
            part.release()

    for part in waiting:
        part.fetched_by_calls(release)
    if mode == "sequential":
        fetch_layers(denoiser, device)
    elif next(denoiser.parameters()).device.type != device.type:  # where it is quantised or split, it is there
        denoiser.to(device)
    return release


class _Waiting:
    """A part on the host that is copied to the device, whole or ``by_layer``; its own tensors stay, so going back costs
    nothing."""

    def __init__(self, part: nn.Module, device: torch.device, by_layer: bool) -> None:
        if any(type(parameter) is not nn.Parameter for parameter in part.parameters()):
            raise UserError(
                f"model.offload cannot move the quantised weights of {type(part).__name__}; set it to none, or leave "
                "model.quantize_encoders out"
            )
        if by_layer:
            fetch_layers(part, device)
        self._part, self._device, self._by_layer = part, device, by_layer
        self._kept: list[tuple[dict[str, Any], str, Tensor]] = []

    def fetched_by_calls(self, release: Callable[[], None]) -> None:
        """Fetch it when it, a module directly in it, or a VAE's methods are called; after ``release`` of the others."""

        from accelerate.utils import send_to_device

        def fetch(_: Any, args: Any, kwargs: Any) -> Any:
            if not self._kept:
                release()
            if not self._kept and not self._by_layer:
                self._fetch()
            return send_to_device((args, kwargs), self._device)  # pipelines send inputs where a part says that it is

        for module in (self._part, *self._part.children()):
            module.register_forward_pre_hook(fetch, with_kwargs=True)
        for method in ("encode", "decode"):
            if hasattr(self._part, method):
                self._part.__dict__[method] = _after(fetch, getattr(self._part, method))

    def _fetch(self) -> None:
        made: dict[int, Any] = {}  # tied weights stay tied
        for module in self._part.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        self._kept.append((tensors, name, tensor))
                        if id(tensor) not in made:
                            made[id(tensor)] = _copied(tensor, self._device)
                        tensors[name] = made[id(tensor)]

    def release(self) -> None:
        """Back to the host."""
        for tensors, name, tensor in self._kept:
            tensors[name] = tensor
        self._kept.clear()


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    there = tensor.detach().to(device)
    return nn.Parameter(there, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else there


def _after(fetch: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        there, named = fetch(None, args, kwargs)
        return method(*there, **named)

    return call


def decode_in_parts(pipeline: DiffusionPipeline, slicing: bool, tiling: bool) -> None:
    """Switch on diffusers' decoding row by row (``slicing``: the same numbers) and tile by tile (``tiling``: seams are
    blended, so large images change a little). Raises `UserError` for a pipeline whose decoder cannot."""
    vae: Any = getattr(pipeline, "vae", None)
    for key, wanted in (("slicing", slicing), ("tiling", tiling)):
        if not wanted:
            continue
        try:
            getattr(vae, f"enable_{key}")()
        except (AttributeError, NotImplementedError) as error:
            found = "has no VAE" if vae is None else f"has a {type(vae).__name__}, which cannot"
            raise UserError(
                f"model.vae_{key}: {type(pipeline).__name__} {found}; set it to false and lower model.decode_batch"
            ) from error

"""Which kernels compute attention: a backend of diffusers' dispatcher, tried on the network before anything is sampled
or trained with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowrl.errors import UserError, did_you_mean, first_line, is_out_of_memory
from flowrl.models.deviation import TOLERANCE, deviation
from flowrl.models.diffusion.denoiser_spec import PROBES
from flowrl.models.diffusion.policy import DiffusionPolicy
from flowrl.models.diffusion.stages import Stages

ALIASES = {"sdpa": "native", "flash_attention_2": "flash"}
"""What transformers calls the same: the dispatcher's names by those."""
GRADIENT = 4
"""How much further gradients may be apart than predictions."""
OFF = "set model.attention: null for torch's own, which takes its flash kernel itself where it can"


def check_attention(name: str) -> str:
    """The dispatcher's name of a backend. Raises `UserError` where it has none of that name, or where the package that
    the backend needs is not installed."""
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    backend = ALIASES.get(name.lower(), name.lower())
    known = sorted({*(each.value for each in AttentionBackendName if not each.value.startswith("_")), *ALIASES})
    try:
        with attention_backend(backend):
            return backend
    except (ValueError, RuntimeError, ImportError) as error:
        if is_out_of_memory(error):
            raise
        unknown = backend not in {each.value for each in AttentionBackendName}
        hint = did_you_mean(name, known)
        said = f"there is none of that name{hint}" if unknown else f"{first_line(error).rstrip('. ')}; or {OFF}"
        raise UserError(f"model.attention: attention backend {name!r} is not available: {said}") from error


def use_attention(policy: DiffusionPolicy, name: str) -> float:
    """Compute the denoiser's attention with a backend, and compare with what it computed before: one row's velocity and
    its gradient. Returns the largest deviation.

    Raises:
        UserError: as `check_attention`; for a network that does not go through the dispatcher; for a backend that fails
            on this device or in this precision, has no gradient, or gives other numbers.
    """
    backend, network = check_attention(name), policy.network
    before = _answer(policy)
    try:
        _switch(network, backend)
        after = _answer(policy)
    except UserError:
        raise
    except Exception as error:  # whatever a kernel raises
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"attention backend {name!r} cannot compute {type(network).__name__} on {policy.device} in"
            f" {str(policy.dtype).removeprefix('torch.')}: {first_line(error)}; {OFF}"
        ) from error
    gaps = [deviation(new, old) for new, old in zip(after, before, strict=True)]
    if not (gaps[0] <= TOLERANCE[policy.dtype] and gaps[1] <= GRADIENT * TOLERANCE[policy.dtype]):
        raise UserError(
            f"attention backend {name!r} does not compute what torch's own does in {type(network).__name__}: a velocity"
            f" deviates by {gaps[0]:.2g}, its gradient by {gaps[1]:.2g}; a backend for inference alone cannot train;"
            f" {OFF}"
        )
    return max(gaps)


def _switch(network: Any, backend: str) -> None:
    """Have all attention of a network computed by a backend. Processors of before the dispatcher, such as those of
    UNets and of SD3, call torch's own; of other backends they know xformers alone."""
    from diffusers.models.attention_dispatch import attention_backend

    parts = [getattr(module, "processor", None) for module in network.modules()]
    if any(hasattr(part, "_attention_backend") for part in parts):
        with attention_backend("native"):  # diffusers would also make it the default of every other network
            network.set_attention_backend(backend)
    elif backend == "xformers":
        network.enable_xformers_memory_efficient_attention()
    elif backend != "native":
        raise UserError(
            f"attention backend {backend!r} would change nothing: {type(network).__name__} does not ask diffusers'"
            f" dispatcher; {OFF}"
        )


def _answer(policy: DiffusionPolicy) -> tuple[Tensor, Tensor]:
    """Velocity and a gradient at one point, [1, ...] each, or at one of each stage."""
    noise = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    x, t = noise.to(policy.device).requires_grad_(), policy.times(4)[1:2]
    if isinstance(policy.network, Stages):  # a row for each of its denoisers
        x, t = x.detach().repeat(2, *[1] * (x.ndim - 1)).requires_grad_(), policy.times(4)[[0, 3]]
    scale = None if policy.spec.guidance.weights else 1.0
    with torch.enable_grad():
        velocity = policy.velocity(x, t, policy.probe(PROBES[: len(x)]), guidance=scale)
        (gradient,) = torch.autograd.grad(velocity.square().sum(), x)
    return velocity.detach(), gradient


def keep_processors(pipeline: Any, network: Any) -> Any:
    """``network``, which keeps the processors of perturbed attention (arXiv:2403.17377): its pipelines put them in at
    the beginning of a call and the former ones back at its end, but a replay needs them between calls."""
    if hasattr(pipeline, "set_pag_applied_layers"):
        network.set_attn_processor = _keep
    return network


def _keep(processors: Any) -> None:
    """In place of a network's ``set_attn_processor``."""

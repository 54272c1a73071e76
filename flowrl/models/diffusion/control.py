"""A denoiser and the ControlNet beside it, as one network: what a pipeline computes of them in turn, in one forward."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowrl.errors import UserError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TOLD, PART = "what a ControlNet is told", "which of its outputs"
"""Keys of what stands for a ControlNet's outputs until the denoiser is called."""


class Controlled(nn.Module):
    """A ControlNet (arXiv:2302.05543) reads the latents and the time of its denoiser, which adds its outputs to its own
    activations. A pipeline calls one and then the other; here the first call only notes what it was told (its picture,
    strength and text), and the denoiser's call computes both. So all that changes from step to step is the denoiser's
    own latents and time. Attributes are those of the denoiser, which is held by its component's name."""

    def __init__(self, denoiser: nn.Module, control: nn.Module, name: str, real: Callable[..., Any]) -> None:
        super().__init__()
        self.add_module(name, denoiser)
        self.controlnet = control
        self.call_signature = inspect.signature(denoiser.forward)
        self._real = real
        """The ControlNet's own forward."""
        self._latents = "sample" if "sample" in self.call_signature.parameters else "hidden_states"
        self.held_as = name

    @property
    def denoiser(self) -> Any:
        """The denoiser alone."""
        return self._modules[self.held_as]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "held_as" not in self.__dict__:  # it is being made
                raise
            return getattr(self.denoiser, name)

    def with_denoiser(self, other: nn.Module) -> Controlled:
        """Another denoiser with the same ControlNet."""
        return Controlled(other, self.controlnet, self.held_as, self._real)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the denoiser returns."""
        given = dict(self.call_signature.bind(*args, **kwargs).arguments)
        places = {key: value[PART] for key, value in given.items() if isinstance(value, dict) and PART in value}
        if places:
            stand_in = next(value for value in given.values() if isinstance(value, dict) and TOLD in value)
            told = stand_in[TOLD]
            self._check_same(stand_in, given)
            shared = {self._latents: given[self._latents], "timestep": given["timestep"]}
            outputs = self._real(**shared, **told, return_dict=False)
            given |= {key: outputs[part] if part < len(outputs) else None for key, part in places.items()}
        return self.denoiser(**given)

    def _check_same(self, stand_in: dict[str, Any], given: dict[str, Any]) -> None:
        """Raise `UserError` unless the ControlNet was called with the denoiser's latents and time, where it is a
        pipeline that has just called it, and not a replay."""
        noting: Any = self.controlnet.forward
        noted: dict[str, Any] = noting.keywords["noted"]
        if noted.pop("stand_in", None) is not stand_in:
            return
        for key, value in noted.items():
            if not torch.equal(torch.as_tensor(value), torch.as_tensor(given[key])):
                raise UserError(
                    f"{type(self.controlnet).__name__} is not called with the {key} of its denoiser; this pipeline"
                    " cannot be replayed"
                )


def join_control(pipeline: DiffusionPipeline, name: str) -> nn.Module:
    """Put a `Controlled` in the place of the denoiser called ``name``, and have the pipeline's ControlNet note what it
    is told. Raises `UserError` for several ControlNets."""
    control: Any = pipeline.components["controlnet"]
    denoiser = getattr(pipeline, name)
    if isinstance(denoiser, Controlled):
        return denoiser
    if "Multi" in type(control).__name__:
        raise UserError(f"{type(pipeline).__name__} has several ControlNets; load it with one of them")
    joined = Controlled(denoiser, control, name, control.forward)
    latents = "sample" if "sample" in inspect.signature(control.forward).parameters else "hidden_states"
    control.forward = functools.partial(_note, inspect.signature(control.forward), latents, noted={})
    setattr(pipeline, name, joined)
    return joined


def _note(
    signature: inspect.Signature, latents: str, *args: Any, noted: dict[str, Any], **kwargs: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """In place of a ControlNet's forward: stands for its outputs."""
    told = dict(signature.bind(*args, **kwargs).arguments)
    if told.get("guess_mode"):
        raise UserError("model.call.guess_mode=true gives the ControlNet half of the batch; remove it")
    noted |= {key: _copied(told.pop(key)) for key in (latents, "timestep")}
    told.pop("return_dict", None)
    noted["stand_in"] = {PART: 0, TOLD: told}
    return noted["stand_in"], {PART: 1}


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value

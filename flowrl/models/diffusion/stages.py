"""Two denoisers that share a run's steps, as one network: every row goes to one of them by its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowrl.errors import UserError
from flowrl.models.diffusion.control import Controlled, join_control
from flowrl.models.diffusion.recorder import denoiser_name
from flowrl.models.lora import Adaptation

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FIRST, SECOND = "transformer", "transformer_2"
"""A pipeline's components, and the beginnings of parameters' names in `Stages`."""


class Stages(nn.Module):
    """Wan 2.2's denoisers (arXiv:2503.20314; repository of Wan 2.2, 2025-07): ``transformer`` takes the rows whose
    timestep is ``boundary`` or later, ``transformer_2`` the rest. A forward whose rows are all of one stage is that
    denoiser's own; otherwise each computes its rows, and an adapter of either has a gradient of those alone."""

    _supports_gradient_checkpointing = True

    def __init__(self, first: nn.Module, second: nn.Module, boundary: float) -> None:
        super().__init__()
        self.transformer: Any = first
        self.transformer_2: Any = second
        self.boundary = boundary
        """In the scheduler's timesteps."""

    @property
    def config(self) -> Any:
        """Of the first denoiser: pipelines read shapes off it."""
        return self.transformer.config

    @property
    def dtype(self) -> torch.dtype:
        """The denoisers' precision."""
        return self.transformer.dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.transformer.device

    @property
    def _repeated_blocks(self) -> Any:
        return self.transformer._repeated_blocks

    def cache_context(self, *args: Any, **kwargs: Any) -> Any:
        """Where a pipeline names the branch that it computes: nothing is cached here, so either's does for both."""
        return self.transformer.cache_context(*args, **kwargs)

    def enable_gradient_checkpointing(self) -> None:
        """Of both."""
        self.transformer.enable_gradient_checkpointing()
        self.transformer_2.enable_gradient_checkpointing()

    def set_attention_backend(self, backend: str) -> None:
        """Of both."""
        self.transformer.set_attention_backend(backend)
        self.transformer_2.set_attention_backend(backend)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor]:
        """The predictions [N, ...] alone, whatever ``return_dict`` asks for; every tensor has N rows, ``timestep`` is
        [N] or, one for each token, [N, tokens]."""
        given = {
            "hidden_states": hidden_states,
            "timestep": timestep,
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_hidden_states_image": encoder_hidden_states_image,
        }
        early = timestep.reshape(len(timestep), -1)[:, 0] >= self.boundary
        found, rows = [], []
        for network, mine in ((self.transformer, early), (self.transformer_2, ~early)):
            count = int(mine.sum())
            if count == len(early):
                return network(**given, attention_kwargs=attention_kwargs, return_dict=False)
            if count:
                rows.append(mine.nonzero()[:, 0])
                own = {key: None if value is None else value[rows[-1]] for key, value in given.items()}
                found.append(network(**own, attention_kwargs=attention_kwargs, return_dict=False)[0])
        return (torch.cat(found)[torch.cat(rows).argsort()],)


def denoiser_of(pipeline: DiffusionPipeline, shard: str = "none") -> nn.Module:
    """A pipeline's denoiser. Where it has two, one `Stages` is put in the place of both, and its own call goes on as
    ever: it asks either by turns, with the guidance of that stage. Where it has a ControlNet, a `Controlled` is.

    Raises:
        UserError: for a pipeline with none, for two denoisers that are not Wan's, or that should be split over
            processes (``shard``).
    """
    first, second = (pipeline.components.get(name) for name in (FIRST, SECOND))
    if isinstance(pipeline.components.get("controlnet"), nn.Module):
        if shard != "none":
            raise UserError(f"model.shard={shard}: {type(pipeline).__name__} has a ControlNet besides; set it to none")
        return join_control(pipeline, denoiser_name(pipeline))
    if not isinstance(first, nn.Module) or not isinstance(second, nn.Module) or first is second:
        return getattr(pipeline, denoiser_name(pipeline))
    ratio = pipeline.config.get("boundary_ratio")
    name = type(pipeline).__name__
    if type(first).__name__ != "WanTransformer3DModel" or type(second) is not type(first):
        raise UserError(f"{name} splits its steps between two denoisers, which is supported for Wan 2.2's alone")
    if ratio is None:
        raise UserError(
            f"{name} has two denoisers and no boundary_ratio in its model_index.json, so its second is never used; set "
            f"boundary_ratio, or load the pipeline with {SECOND}=None"
        )
    if shard != "none":
        raise UserError(
            f"model.shard={shard} needs every process to call the same layers, and of the two denoisers of {name} the "
            "rows of a process may need either; set it to none"
        )
    stages = Stages(first, second, float(ratio) * int(pipeline.scheduler.config.num_train_timesteps))
    setattr(pipeline, FIRST, stages)
    setattr(pipeline, SECOND, stages)
    return stages


def denoisers(network: nn.Module, name: str) -> dict[str, nn.Module]:
    """The denoisers by their components' names: one, called ``name``, that in `Controlled`, or those of `Stages`."""
    if isinstance(network, Controlled):
        return {network.held_as: network.denoiser}
    return (
        {FIRST: network.transformer, SECOND: network.transformer_2} if isinstance(network, Stages) else {name: network}
    )


def adaptation_of(adaptation: Adaptation, network: nn.Module, name: str) -> Adaptation:
    """What is trained of one of ``network``'s denoisers, by that denoiser's own names."""
    if not isinstance(network, Stages | Controlled):
        return adaptation
    own = {k.removeprefix(f"{name}."): p for k, p in adaptation.parameters.items() if k.startswith(f"{name}.")}
    return replace(adaptation, parameters=own)


def rejoined(network: nn.Module, found: Sequence[nn.Module]) -> nn.Module:
    """Other denoisers, those of a copy of the pipeline, as one network like ``network``."""
    if isinstance(network, Stages):
        first, second = found
        return Stages(first, second, network.boundary)
    return network.with_denoiser(found[0]) if isinstance(network, Controlled) else found[0]


def adapted(network: nn.Module, adaptation: Adaptation) -> tuple[nn.Module, Adaptation]:
    """Where an adapter's file goes, whose names are a denoiser's own, or those of both with their components'."""
    if not isinstance(network, Controlled):
        return network, adaptation
    return network.denoiser, adaptation_of(adaptation, network, network.held_as)

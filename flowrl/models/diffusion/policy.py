"""A diffusers pipeline as a policy: canonical velocities from its denoiser, images from its own code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowrl.errors import UserError
from flowrl.models.diffusion.condition import REST, DiffusionCondition, Encoder
from flowrl.models.diffusion.coordinates import time_grid
from flowrl.models.diffusion.decoder import ImageDecoder
from flowrl.models.diffusion.denoiser_spec import DenoiserSpec
from flowrl.models.diffusion.image_encoder import ImageEncoder
from flowrl.models.diffusion.inputs import LeafPath, join
from flowrl.models.diffusion.prompt_inputs import PromptInputs
from flowrl.models.diffusion.recorder import Recorder, prediction_of
from flowrl.models.host_layers import computing_device
from flowrl.models.lora import Adaptation
from flowrl.models.merging import MergedAdapter
from flowrl.models.sharding import weight_sets
from flowrl.models.source import ModelSource
from flowrl.models.weights import HasWeightSets
from flowrl.types import CfgGrad, Prompt, PromptRows


class DiffusionPolicy(HasWeightSets):
    """Implements :class:`flowrl.types.FlowPolicy`; made by :func:`flowrl.models.diffusion.load_policy`."""

    family: ClassVar[str] = "diffusion"

    def __init__(
        self,
        recorder: Recorder,
        spec: DenoiserSpec,
        adaptation: Adaptation,
        *,
        inputs: PromptInputs | None = None,
        dtype: torch.dtype,
        decode_batch: int,
        source: ModelSource | None,
    ) -> None:
        self.pipeline = recorder.pipeline
        self.network: nn.Module = recorder.network
        self.device = computing_device(self.network)
        self.network_calls = 0
        """Network rows evaluated so far."""
        self.latent_shape = spec.latent_shape
        self.spec = spec
        self.recorder = recorder
        self.adaptation = adaptation
        self.encoder = Encoder(recorder, spec, inputs)
        self.weights = weight_sets(self.network, adaptation.parameters)
        self.dtype = dtype
        self.origin: dict[str, Any] | None = None
        """Of a run's policy, the settings that its exports remember."""
        self.source = source
        """Where the base model is; ``None`` when a pipeline object was given."""
        self.decoder = ImageDecoder(recorder, spec, decode_batch)
        self.image_encoder = ImageEncoder(recorder, spec, decode_batch, self.device)
        self._schedules: dict[int, tuple[Tensor, float]] = {}
        """By number of steps: times, and the deviation of the pipeline's first latents."""
        self.merged: MergedAdapter | None = None
        """What predicts without gradient, where adapters are merged for it."""
        self._network_takes_return_dict = recorder.network_takes_return_dict

    # ------------------------------------------------------------------------------------------------ conditioning
    def condition(self, prompts: Sequence[Prompt]) -> DiffusionCondition:
        """What the denoiser is told about each prompt; every unique text, with its pictures where the pipeline was
        loaded with ``inputs``, is encoded once and remembered."""
        made = self.encoder([self.encoder.inputs.told(prompt) for prompt in prompts])
        return replace(made, origin=PromptRows.of(prompts)) if self.teachers else made

    def probe(self, texts: Sequence[str]) -> DiffusionCondition:
        """The condition of texts for checks of the policy itself: with a stand-in where prompts have pictures."""
        return self.encoder([(text,) for text in texts])

    # -------------------------------------------------------------------------------------------------------- time
    def times(self, steps: int) -> Tensor:
        """[steps + 1] float64 descending to 0: the pipeline's own schedule for so many steps at its resolution."""
        if steps < 1:
            raise UserError(f"a sampler needs at least 1 step, got {steps}")
        return self._schedule(steps)[0].clone()

    def snap(self, t: Tensor) -> Tensor:
        """The nearest discrete times of DDPM models; flow models take any time."""
        return self.spec.coordinates.snap(t)

    def initial(self, noise: Tensor, times: Tensor) -> Tensor:
        """Canonical starting point [N, ...] at ``times[0]`` that the pipeline makes of standard normal ``noise``."""
        _, deviation = self._schedule(len(times) - 1)
        return self.spec.coordinates.initial(noise, times[0], deviation)

    def _schedule(self, steps: int) -> tuple[Tensor, float]:
        if steps not in self._schedules:
            trace = self.recorder.schedule(steps)
            assert trace.timesteps is not None
            times = time_grid(self.spec.coordinates.levels(trace.timesteps, trace.sigmas)).clamp(
                max=1
            )  # but for rounding
            self._schedules[steps] = (times, trace.init_noise_sigma)
        return self._schedules[steps]

    # ---------------------------------------------------------------------------------------------------- velocity
    def velocity(
        self,
        x: Tensor,
        t: Tensor,
        condition: DiffusionCondition,
        *,
        guidance: float | None = None,
        cfg_grad: CfgGrad = "cond",
    ) -> Tensor:
        """Canonical velocity [N, ...] float32 at ``x`` [N, ...] and ``t`` [N] in (0, 1].

        ``guidance`` is the scale of ``uncond + guidance * (cond - uncond)``; ``None`` is the pipeline's own scale,
        1 computes the conditional branch only. With ``cfg_grad="cond"`` the unconditional branch runs without
        gradient (what detaching it would give, at less cost), with ``"both"`` gradient passes through both.
        """
        x, t = x.float(), t.to("cpu", torch.float64)
        native = self.native(x, t, condition, guidance, cfg_grad)
        return self.spec.coordinates.velocity(native, x, t)

    def native(
        self, x: Tensor, t: Tensor, condition: DiffusionCondition, guidance: float | None, cfg_grad: CfgGrad
    ) -> Tensor:
        """What the pipeline would hand to its scheduler, float32."""
        mixing = self.spec.guidance
        read = self.spec.coordinates.to_network(x, t).to(self.dtype)
        timestep = self.spec.coordinates.network_time(t)
        scale = mixing.scale_at(timestep) if guidance is None else self._scale(guidance)
        if mixing.weights:
            return mixing.mix_all(self._every_branch(read, timestep, condition), detached=cfg_grad == "cond")
        cond, other = mixing.conditional, mixing.unconditional
        if other is None or (isinstance(scale, float) and scale == 1.0):
            return mixing.mix(self._evaluate([cond], read, timestep, condition)[0], None, 1.0)
        # split calls stay split: rows of one call have equal shapes, those of two calls may not
        together = self.spec.branches[cond] is self.spec.branches[other]
        if together and (cfg_grad == "both" or not torch.is_grad_enabled()):
            first, second = self._evaluate(sorted((cond, other)), read, timestep, condition)
            conditional, unconditional = (first, second) if cond < other else (second, first)
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and cfg_grad == "both"):
                unconditional = self._evaluate([other], read, timestep, condition)[0]
            conditional = self._evaluate([cond], read, timestep, condition)[0]
        return mixing.mix(conditional, unconditional, scale)

    def check_guidance(self, guidance: float | None) -> float | None:
        """The scale that the user gave in ``model.call`` and that ``guidance`` takes the place of; None if there is
        none. Raises `UserError` for a guidance scale that needs a branch this pipeline was loaded without."""
        scale, own = self._scale(guidance), self.spec.guidance
        given = "guidance_scale" in self.recorder.call or "true_cfg_scale" in self.recorder.call
        overridden = given and own.unconditional is not None and not math.isclose(scale, own.scale, rel_tol=1e-3)
        return own.scale if overridden else None

    def _scale(self, guidance: float | None) -> float:
        mixing = self.spec.guidance
        if guidance is None:
            return mixing.scale
        if mixing.weights:
            raise UserError(
                f"guidance {guidance:g} takes the place of one scale, and {type(self.pipeline).__name__} mixes"
                f" {len(mixing.weights)} predictions; leave it out, and set the scales in model.call"
            )
        if mixing.unconditional is None and guidance != 1.0:
            raise UserError(
                f"guidance {guidance:g} needs the unconditional branch, which {type(self.pipeline).__name__} was loaded"
                f" without; {self.recorder.guidance_advice}"
            )
        return float(guidance)

    def _every_branch(self, read: Tensor, timestep: Tensor, condition: DiffusionCondition) -> list[Tensor]:
        """Predictions [N, ...] float32 of all branches, those of one call in one batch: attention may look at all."""
        found, start = [], 0
        for call in self.spec.calls:
            found += self._evaluate(list(range(start, start + call.branches)), read, timestep, condition)
            start += call.branches
        return found

    def _evaluate(
        self, branches: list[int], read: Tensor, timestep: Tensor, condition: DiffusionCondition
    ) -> list[Tensor]:
        """Predictions [N, ...] float32 of some branches of one denoiser call, as one batch."""
        call = self.spec.branches[branches[0]]
        count = len(branches)
        leaves = _gather([condition.branches[b].take(condition.index) for b in branches])
        rest = leaves.pop(REST, None)
        if count > 1:
            read = torch.cat([read] * count)
            timestep = torch.cat([timestep] * count)
        kinds, whole = call.layout.batched, call.branches
        values: dict[LeafPath, Any] = {path: join(rows, kinds[path], whole) for path, rows in leaves.items()}
        latent = call.latent.fill(read, rest)
        values[call.latent.path] = join(latent, call.latent.kind, whole)
        for slot in call.times:
            values[slot.path] = slot.fill(timestep, read.device)
        inputs = call.layout.build(condition.branches[branches[0]].template, values)
        if self._network_takes_return_dict:
            inputs["return_dict"] = False
        if self.pace is not None:
            self.pace.announce(lambda: self._run(inputs))
        output = self._run(inputs)
        self.network_calls += len(read)
        return list(self.spec.prediction(prediction_of(output)).float().chunk(count))

    def _run(self, inputs: Mapping[str, Any]) -> Any:
        merged = nullcontext() if self.merged is None else self.merged.predicting()
        with self.recorder.precision(), self.adaptation.dropout(torch.is_grad_enabled()), merged:
            return self.network(**inputs)

    # ------------------------------------------------------------------------------------------------------ images
    def decode(self, final: Tensor, graph: bool = False) -> Tensor:
        """Images [N, 3, H, W] (videos [N, F, 3, H, W]) in [0, 1] of clean latents, by the pipeline's own code; float32
        on the host, so that a device holds no more of them than are decoded at once. With ``graph`` they are where they
        were made, with a gradient to the latents (none where a pixel lies outside of [0, 1])."""
        if graph:
            return self.decoder.with_gradient(final)
        made = self.decoder(final)
        self.recorder.release()
        return made

    def encode(self, images: Sequence[Tensor], seeds: Tensor) -> Tensor:
        """Clean latents [N, ...] that `decode` makes these images of, each [3, h, w] in [0, 1] and resized to the
        pipeline's size; what an encoder draws at random follows from ``seeds`` [N]. Raises `UserError`."""
        made = self.image_encoder(images, seeds)
        self.recorder.release()
        return made

    # ----------------------------------------------------------------------------------------------------- weights
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in the network's order."""
        return list(self.adaptation.parameters.values())


def _gather(branches: list[dict[LeafPath, Any]]) -> dict[LeafPath, Any]:
    if len(branches) == 1:
        return branches[0]
    return {
        path: torch.cat([b[path] for b in branches])
        if isinstance(value, Tensor)
        else [v for b in branches for v in b[path]]
        for path, value in branches[0].items()
    }

"""How to call a pipeline's denoiser as the pipeline does: where latents and times go, read off a watched run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowrl.devices import put, wide
from flowrl.errors import UserError
from flowrl.models.diffusion.coordinates import (
    Coordinates,
    FlowCoordinates,
    measured_shift,
    scheduler_coordinates,
)
from flowrl.models.diffusion.guidance import Guidance, check_guider, probe_outputs, recover, with_late_scale
from flowrl.models.diffusion.inputs import BatchAxis, InputLayout, LeafPath, same, split
from flowrl.models.diffusion.recorder import DenoiserCall, RecordedRun, RecordedStep, Recorder
from flowrl.models.diffusion.stages import Stages

PROBES = ("a red circle above a blue square", "two dogs")
"""Two prompts of different length; a third run with one repeated tells what grows with the batch."""


@dataclass(frozen=True)
class LatentSlot:
    """Where the latents go. ``shape`` is one row of the input; a wider ``axis`` holds other, constant channels too."""

    path: LeafPath
    kind: BatchAxis
    shape: tuple[int, ...]
    axis: int | None = None
    """Axis of the row along which the latents are the first or last part; ``None`` when they are all of it."""
    start: int = 0
    latent: tuple[int, ...] = ()
    """The latents' own shape in that input."""

    def fill(self, x: Tensor, rest: Tensor | None) -> Any:
        """Input rows [N, ...] from latents [N, ...] and the constant remainder."""
        rows = x.reshape(len(x), *(self.latent or self.shape))
        if self.axis is not None and rest is not None:
            parts = [rows, rest] if self.start == 0 else [rest, rows]
            rows = torch.cat(parts, dim=self.axis + 1)
        return list(rows) if self.kind.axis is None else rows

    def constant(self, rows: Tensor) -> Tensor:
        """The part of captured input rows that is not latents."""
        assert self.axis is not None
        size = self.latent[self.axis]
        start = size if self.start == 0 else 0
        return rows.narrow(self.axis + 1, start, rows.shape[self.axis + 1] - size)


@dataclass(frozen=True)
class TimeSlot:
    """Where a time goes: ``scale * timestep + offset``, one value per row."""

    path: LeafPath
    scale: float
    offset: float
    dtype: torch.dtype
    shape: tuple[int, ...]
    """Of one row: () or (tokens,)."""

    def fill(self, timestep: Tensor, device: torch.device) -> Tensor:
        """The input for ``timestep`` [N] float64, one value per row."""
        value = put((self.scale * timestep + self.offset).to(self.dtype), device)
        return value.reshape(-1, *[1] * len(self.shape)).expand(-1, *self.shape)


@dataclass(frozen=True)
class CallSpec:
    """One denoiser call of a step."""

    layout: InputLayout
    latent: LatentSlot
    times: tuple[TimeSlot, ...]

    @property
    def branches(self) -> int:
        """Branches that share the call: 2 where guidance doubles the batch."""
        return self.latent.kind.branches

    def latents(self, inputs: dict[str, Any]) -> Tensor:
        """[N, ...]: what the network read of the scheduler's sample, in the rows of the first branch."""
        value = dict(self.layout.leaves(inputs))[self.latent.path]
        stacked = torch.stack(list(value)) if self.latent.kind.axis is None else value
        rows = split(stacked, self.latent.kind, self.branches)[0]
        if self.latent.axis is None:
            return rows
        return rows.narrow(self.latent.axis + 1, self.latent.start, self.latent.latent[self.latent.axis])

    @property
    def varying(self) -> set[LeafPath]:
        """Leaves that are filled at every step."""
        return {self.latent.path, *(slot.path for slot in self.times)}


@dataclass(frozen=True)
class DenoiserSpec:
    """All that replay needs to know about a pipeline."""

    calls: tuple[CallSpec, ...]
    guidance: Guidance
    coordinates: Coordinates
    latent_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    """The denoiser's output for one row (learned variances included)."""
    latent_dtype: torch.dtype

    @property
    def branches(self) -> list[CallSpec]:
        """The call each branch belongs to, in order."""
        return [call for call in self.calls for _ in range(call.branches)]

    def blank(self, inputs: dict[str, Any]) -> Tensor:
        """Zeros of the shape that the denoiser returns for the ``inputs`` of a call."""
        call = self.calls[0]
        latents = dict(call.layout.leaves(inputs))[call.latent.path]
        axis = call.latent.kind.axis
        first, rows = (latents[0], len(latents)) if axis is None else (latents, latents.shape[axis])
        return first.new_zeros((rows, *self.output_shape))

    def as_sample(self, final: Tensor) -> Tensor:
        """Clean latents [N, ...] as the scheduler holds them."""
        return self.coordinates.to_sample(final, torch.zeros(len(final), dtype=torch.float64))

    def prediction(self, output: Tensor) -> Tensor:
        """The part of the denoiser's output [N, ...] that is the prediction, in the latents' shape: channels of a
        learned variance, or tokens that are not the image's, come after it."""
        return _cut(output, self.latent_shape)


def calibrate(recorder: Recorder) -> DenoiserSpec:
    """Watch three steps on two prompts with numbers of our own in place of the denoiser's output, and the first call on
    three prompts. Those numbers make the mixing formula unambiguous, whatever the network's weights.

    Raises:
        UserError: when something the pipeline does is not understood.
    """
    name = type(recorder.pipeline).__name__
    check_guider(recorder.pipeline)
    plain = scheduler_coordinates(recorder.pipeline.scheduler, False)  # raises for kinds without any
    trace = recorder.record(PROBES, 3, outputs=probe_outputs())
    first = trace.steps[0]
    seen = first.calls[0].prediction
    assert seen is not None
    blank = seen.new_zeros((len(seen) // len(PROBES) * (len(PROBES) + 1), *seen.shape[1:]))
    many = recorder.calls([*PROBES, PROBES[0]], len(first.calls), lambda _: blank)
    if len(many) != len(first.calls):
        raise UserError(f"{name} calls its denoiser {len(first.calls)} or {len(many)} times, depending on the batch")
    ticks = plain.ticks([step.timestep for step in trace.steps])
    calls = tuple(_call_recipe(trace, i, more.inputs, ticks, name) for i, more in enumerate(many))
    shape = tuple(first.sample.shape[1:])
    coordinates = scheduler_coordinates(recorder.pipeline.scheduler, _reads_shrunk_sample(first, calls[0]))
    guidance = _guidance(recorder, trace, calls, coordinates, name)
    assert trace.timesteps is not None
    if isinstance(coordinates, FlowCoordinates):
        coordinates = measured_shift(coordinates, trace.timesteps, trace.sigmas)
    return DenoiserSpec(calls, guidance, coordinates, shape, tuple(seen.shape[1:]), first.sample.dtype)


def canonical(step: RecordedStep, t: Tensor, call: CallSpec, coordinates: Coordinates) -> Tensor:
    """The canonical point at which a pipeline called its denoiser in a step at ``t``, float32."""
    x = call.latents(step.calls[0].inputs).reshape(step.sample.shape).float()
    return coordinates.from_network(x, t.expand(len(x)))


def received(step: RecordedStep, t: Tensor, call: CallSpec, coordinates: Coordinates) -> Tensor:
    """The denoiser's prediction, its branches mixed, of what the scheduler received in a step at ``t``."""
    x = canonical(step, t, call, coordinates)
    return coordinates.predicted(step.model_output, x, t.expand(len(x)))


def _call_recipe(trace: RecordedRun, index: int, many: dict[str, Any], ticks: Sequence[float], name: str) -> CallSpec:
    inputs = [step.calls[index].inputs for step in trace.steps if len(step.calls) > index]
    if len(inputs) != len(trace.steps):
        raise UserError(
            f"{name} does not call its denoiser equally often in every step; switch that off with model.call"
        )
    layout = InputLayout(inputs[0], many, len(PROBES), len(PROBES) + 1)
    latent = _latent_slot(layout, inputs[0], trace.steps[0].sample, name)
    times = []
    series = zip(*[layout.leaves(step) for step in inputs], strict=True)
    for leaves in series:
        path, values = leaves[0][0], [value for _, value in leaves]
        if path == latent.path or all(same(values[0], value) for value in values[1:]):
            continue
        times.append(_time_slot(path, layout.batched.get(path), values, ticks, name))
    if not times:
        raise UserError(f"none of the denoiser inputs of {name} follows the scheduler's timestep")
    return CallSpec(layout, latent, tuple(times))


def _latent_slot(layout: InputLayout, inputs: dict[str, Any], sample: Tensor, name: str) -> LatentSlot:
    """The batched input that holds the scheduler's sample up to a positive factor, alone or among other channels."""
    for path, value in layout.leaves(inputs):
        kind = layout.batched.get(path)
        if kind is None or (kind.axis is None and not isinstance(value[0], Tensor)):
            continue
        if kind.axis is None and len({v.shape for v in value}) > 1:
            continue
        rows = split(torch.stack(list(value)) if kind.axis is None else value, kind, kind.branches)[0]
        if not rows.is_floating_point():
            continue
        shape = tuple(rows.shape[1:])
        if _parallel(rows, sample):
            return LatentSlot(path, kind, shape)
        for axis in range(len(shape)):
            if rows.ndim != sample.ndim or shape[axis] <= sample.shape[axis + 1]:
                continue
            size = sample.shape[axis + 1]
            for start in (0, shape[axis] - size):
                if _parallel(rows.narrow(axis + 1, start, size), sample):
                    return LatentSlot(path, kind, shape, axis, start, tuple(sample.shape[1:]))
    raise UserError(
        f"none of the denoiser inputs of {name} is the scheduler's sample; this pipeline cannot be replayed"
    )


def _time_slot(
    path: LeafPath, kind: BatchAxis | None, values: Sequence[Any], timesteps: Sequence[float], name: str
) -> TimeSlot:
    label = ".".join(map(str, path))
    tensors = [torch.as_tensor(value) for value in values]
    if any(t.numel() == 0 or not torch.all(t == t.flatten()[0]) for t in tensors):
        raise UserError(f"denoiser input {label} of {name} changes from step to step and is not a time; unsupported")
    seen = [float(t.flatten()[0]) for t in tensors]
    scale, offset = _affine(timesteps, seen)
    tolerance = 1e-4 if tensors[0].dtype in (torch.float32, torch.float64, torch.int64) else 2e-2
    gap = max(abs(scale * t + offset - u) for t, u in zip(timesteps, seen, strict=True))
    if gap > tolerance * max(map(abs, seen)):
        raise UserError(
            f"denoiser input {label} of {name} is not an affine function of the scheduler's timestep; unsupported"
        )
    dtype = tensors[0].dtype if tensors[0].is_floating_point() else torch.float32
    shape = tuple(tensors[0].shape[1:]) if kind is not None else ()
    return TimeSlot(path, scale, offset, dtype, shape)


def _affine(timesteps: Sequence[float], seen: Sequence[float]) -> tuple[float, float]:
    """``(scale, offset)``: the usual ones where they fit, which rounding in half precision would hide, else a fit."""
    for scale, offset in ((1, 0), (1e-3, 0), (-1e-3, 1), (-1, 1000), (1e-3, 1), (1, 1)):
        gap = max(abs(scale * t + offset - u) for t, u in zip(timesteps, seen, strict=True))
        if gap <= 4e-3 * max(map(abs, seen)):
            return scale, offset
    low, high = min(range(len(seen)), key=timesteps.__getitem__), max(range(len(seen)), key=timesteps.__getitem__)
    scale = (seen[high] - seen[low]) / (timesteps[high] - timesteps[low])
    return scale, seen[low] - scale * timesteps[low]


def _guidance(
    recorder: Recorder,
    trace: RecordedRun,
    calls: Sequence[CallSpec],
    coordinates: Coordinates,
    name: str,
) -> Guidance:
    rescale = float(recorder.call.get("guidance_rescale", 0.0) or 0.0)
    seen, shape = [], tuple(trace.steps[0].sample.shape[1:])
    for step in trace.steps:
        t = coordinates.levels(torch.tensor([step.timestep], dtype=torch.float64), None)
        output = received(step, t[0], calls[0], coordinates)
        branches = [part for call, spec in zip(step.calls, calls, strict=True) for part in _parts(call, spec, shape)]
        seen.append((branches, output.reshape(branches[0].shape)))
    if getattr(recorder.pipeline, "do_perturbed_attention_guidance", False) and len(seen[0][0]) == 2:
        # without the unconditional branch; its attention needs both rows in one batch, which plain guidance may split
        return recover(seen, rescale, name, together=True)
    if not isinstance(recorder.network, Stages):
        return recover(seen, rescale, name)
    boundary = recorder.network.boundary
    stages: tuple[list[Any], list[Any]] = ([], [])
    for step, recorded in zip(trace.steps, seen, strict=True):
        stages[step.timestep < boundary].append(recorded)
    found = recover(stages[0] or stages[1], rescale, name)
    return with_late_scale(found, boundary, recorder.call.get("guidance_scale_2"), stages[1], name)


def _parts(call: DenoiserCall, spec: CallSpec, shape: tuple[int, ...]) -> list[Tensor]:
    assert call.prediction is not None
    return [_cut(part, shape) for part in call.prediction.chunk(spec.branches)]


def _cut(output: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(output.shape[1:]) == shape:
        return output
    if output[0].numel() == torch.Size(shape).numel():
        return output.reshape(len(output), *shape)
    if output.ndim == len(shape) + 1:
        for axis, size in enumerate(shape):
            output = output.narrow(axis + 1, 0, min(size, output.shape[axis + 1]))
        if tuple(output.shape[1:]) == shape:
            return output
    raise UserError(f"the denoiser returns {tuple(output.shape[1:])} where the scheduler takes {shape}; unsupported")


def _parallel(rows: Tensor, sample: Tensor) -> bool:
    if rows.numel() != sample.numel():
        return False
    left, right = wide(rows.reshape(sample.shape)), wide(sample)
    scale = (left * right).sum() / (right * right).sum()
    tolerance = 1e-5 if rows.dtype == sample.dtype == torch.float32 else 2e-2
    return bool(scale > 0 and (left - scale * right).abs().max() <= tolerance * left.abs().max())


def _reads_shrunk_sample(step: RecordedStep, spec: CallSpec) -> bool:
    """Whether the denoiser reads the sample shrunk: the latents are ``clean + ratio * noise``."""
    rows = spec.latents(step.calls[0].inputs)
    read, sample = wide(rows).flatten(), wide(step.sample).flatten()
    scale = (read @ sample) / sample.square().sum()
    return bool(abs(scale - 1) > 1e-2)

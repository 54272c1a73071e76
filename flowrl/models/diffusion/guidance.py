"""How a pipeline mixes its denoiser's branches into one prediction: recovered from what it did with known numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowrl.devices import put, wide
from flowrl.errors import UserError

Correction = Callable[[Tensor, Tensor], Tensor]


def plain(mixed: Tensor, conditional: Tensor) -> Tensor:
    """Classifier-free guidance (arXiv:2207.12598)."""
    return mixed


def last_axis_norm(mixed: Tensor, conditional: Tensor) -> Tensor:
    """Lumina2, Qwen-Image: the conditional prediction's norm along the last axis."""
    return mixed * (conditional.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True))


def last_axis_norm_limit(mixed: Tensor, conditional: Tensor) -> Tensor:
    """LongCat-Image: no longer than the conditional prediction along the last axis."""
    return mixed * (conditional.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True)).clamp(max=1)


def sample_norm_limit(mixed: Tensor, conditional: Tensor) -> Tensor:
    """Z-Image: no longer than the conditional prediction, per sample."""
    axes = tuple(range(1, mixed.ndim))
    limit = torch.linalg.vector_norm(conditional, dim=axes, keepdim=True)
    return mixed * (limit / torch.linalg.vector_norm(mixed, dim=axes, keepdim=True)).clamp(max=1)


def three_channels(mixed: Tensor, conditional: Tensor) -> Tensor:
    """Lumina: guidance on the first three channels only."""
    return torch.cat([mixed[:, :3], conditional[:, 3:]], dim=1)


GUIDANCE_CORRECTIONS: tuple[Correction, ...] = (
    plain,
    last_axis_norm,
    last_axis_norm_limit,
    sample_norm_limit,
    three_channels,
)


@dataclass(frozen=True)
class Guidance:
    """``sign * correction(other + scale * (conditional - other), conditional)`` over the captured branches."""

    sign: float
    scale: float = 1.0
    conditional: int = 0
    """Index of the conditional branch in the order of the denoiser's rows and calls."""
    unconditional: int | None = None
    """``None``: the pipeline runs one branch only."""
    correction: Correction = plain
    rescale: float = 0.0
    """Share of the prediction whose standard deviation is set to the conditional's (arXiv:2305.08891, 3.4)."""
    boundary: float = 0.0
    """The scheduler's timestep below which ``late_scale`` takes the place of ``scale``: Wan 2.2's
    ``guidance_scale_2``."""
    late_scale: float = 1.0
    weights: tuple[float, ...] = ()
    """Of branches that are mixed with factors of the pipeline's own, such as those of perturbed attention: the factor
    of each. They add up to 1 or, with ``sign``, -1, and ``conditional`` has the largest."""

    def mix_all(self, branches: Sequence[Tensor], detached: bool = False) -> Tensor:
        """The pipeline's prediction from all branches' [n, ...] by their `weights`; ``detached``: with a gradient of
        the conditional one alone."""
        parts = [
            weight * (branch.detach() if detached and index != self.conditional else branch)
            for index, (weight, branch) in enumerate(zip(self.weights, branches, strict=True))
        ]
        return torch.stack(parts).sum(dim=0)

    def scale_at(self, timestep: Tensor) -> float | Tensor:
        """The pipeline's own scale at ``timestep`` [n]: one for all, or [n] float32."""
        if not self.boundary or self.late_scale == self.scale:
            return self.scale
        return torch.where(timestep >= self.boundary, self.scale, self.late_scale).float()

    def mix(self, conditional: Tensor, unconditional: Tensor | None, scale: float | Tensor) -> Tensor:
        """The pipeline's prediction from the branches' [n, ...]; without the unconditional one, guidance is off.
        ``scale``: one for all rows, or [n]."""
        if unconditional is None:
            return conditional * self.sign
        if isinstance(scale, Tensor):
            scale = put(scale, conditional).reshape(-1, *[1] * (conditional.ndim - 1))
        mixed = self.correction(unconditional + scale * (conditional - unconditional), conditional)
        if self.rescale:
            axes = tuple(range(1, mixed.ndim))
            matched = mixed * (conditional.std(dim=axes, keepdim=True) / mixed.std(dim=axes, keepdim=True))
            mixed = self.rescale * matched + (1 - self.rescale) * mixed
        return mixed * self.sign


def check_guider(pipeline: Any) -> None:
    """Raise `UserError` for a guider object whose mixing changes during a run, as those of adaptive projected guidance
    do from some step on: a few watched steps cannot show it."""
    for name, part in pipeline.components.items():
        if not hasattr(part, "prepare_inputs_from_block_state"):  # not diffusers' BaseGuidance
            continue
        kind, config = type(part).__name__, part.config
        if kind != "ClassifierFreeGuidance" or config.get("start", 0.0) > 0 or config.get("stop", 1.0) < 1:
            raise UserError(
                f"{type(pipeline).__name__}.{name} is a {kind} whose mixing may change during a run; load the pipeline"
                f" and set pipeline.{name} to a ClassifierFreeGuidance for all steps"
            )


def probe_outputs() -> Callable[[Tensor], Tensor]:
    """Numbers to put in place of a denoiser's output. Branches share a part, whose size differs between samples and
    positions, so that mixing them lengthens some and shortens others: only then do norm corrections tell apart."""
    generator = torch.Generator("cpu").manual_seed(1)
    shared: dict[torch.Size, Tensor] = {}

    def draw(output: Tensor) -> Tensor:
        rows, rest = output.shape[:1], output.shape[1:]
        if rest not in shared:
            shared[rest] = torch.randn(rest, generator=generator)
        ones = (1,) * len(rest)
        by_sample = 2 * torch.rand((*rows, *ones), generator=generator)
        by_position = 0.5 + torch.rand((*output.shape[:-1], 1), generator=generator)
        noise = 0.3 * torch.randn(output.shape, generator=generator)
        return (shared[rest] * by_sample * by_position + noise).to(output)

    return draw


def recover(
    steps: Sequence[tuple[Sequence[Tensor], Tensor]], rescale: float, name: str, together: bool = False
) -> Guidance:
    """The guidance that turns the branches' predictions (numbers of our own) into what the scheduler saw, in all
    ``steps`` of ``(branches, seen)``. ``together``: two branches can only be computed in one batch.

    Raises:
        UserError: when no known formula does.
    """
    branches, seen = steps[0]
    candidates = [Guidance(sign) for sign in (1.0, -1.0)] if len(branches) == 1 else []
    if len(branches) == 2:
        candidates = _two_branches(branches, seen, rescale)
    if len(branches) == 3 or together:
        candidates = [weighted(branches, seen)]
    for candidate in candidates:
        if all(_explains(candidate, *step) for step in steps):
            return candidate
    raise UserError(
        f"{name} mixes the {len(branches)} predictions of its denoiser in a way flowrl does not know, or not the same"
        " way at every step; switch its guidance off with model.call (such as guidance_scale: 1.0)"
    )


def with_late_scale(
    found: Guidance, boundary: float, scale: float | None, late: Sequence[tuple[Sequence[Tensor], Tensor]], name: str
) -> Guidance:
    """``found`` with the ``scale`` (None: its own) of steps below a timestep, which must explain the ``late`` steps.

    Raises:
        UserError: when it does not.
    """
    if found.unconditional is None:
        return found
    below = replace(found, scale=found.scale if scale is None else float(scale))
    if not all(_explains(below, *step) for step in late):
        raise UserError(f"{name} mixes the predictions of its second denoiser in a way flowrl does not know")
    return replace(found, boundary=boundary, late_scale=below.scale)


def weighted(branches: Sequence[Tensor], seen: Tensor) -> Guidance:
    """Branches with the factors that come closest to what was ``seen``."""
    columns = torch.stack([wide(branch).flatten() for branch in branches], dim=1)
    found = torch.linalg.lstsq(columns, wide(seen).flatten()[:, None]).solution.flatten()
    weights = tuple(round(float(factor), 4) for factor in found)
    sign = 1.0 if sum(weights) > 0 else -1.0
    return Guidance(sign, conditional=max(range(len(weights)), key=lambda i: sign * weights[i]), weights=weights)


def _explains(candidate: Guidance, branches: Sequence[Tensor], seen: Tensor) -> bool:
    if candidate.weights:
        adds_up = abs(sum(candidate.weights) - candidate.sign) < 1e-2
        return adds_up and _equal(candidate.mix_all(branches), seen)
    other = None if candidate.unconditional is None else branches[candidate.unconditional]
    return _equal(candidate.mix(branches[candidate.conditional], other, candidate.scale), seen)


def _two_branches(branches: Sequence[Tensor], seen: Tensor, rescale: float) -> list[Guidance]:
    """Candidates; corrections scale the mix by a positive factor, so the ratio of its coefficients gives the scale."""
    found: list[Guidance] = []
    for sign in (1.0, -1.0):
        for conditional in (0, 1):
            cond, uncond = wide(branches[conditional]), wide(branches[1 - conditional])
            for scale in _scales(cond, uncond, sign * wide(seen)):
                base = Guidance(sign, scale, conditional, 1 - conditional)
                found += [replace(base, correction=c) for c in GUIDANCE_CORRECTIONS]
                found.append(replace(base, rescale=rescale))
    return found


def _scales(cond: Tensor, uncond: Tensor, seen: Tensor) -> list[float]:
    """Guidance scales above 1 for which ``seen`` is parallel to ``uncond + scale * (cond - uncond)``, over the whole
    sample or over its last axis."""
    scales = []
    for rows in (1, seen.ndim - 1):
        pair = [branch.flatten(end_dim=rows - 1)[0].flatten() for branch in (cond, uncond)]
        solution = torch.linalg.lstsq(
            torch.stack(pair, dim=1), seen.flatten(end_dim=rows - 1)[0].flatten()[:, None]
        ).solution
        a, b = (float(v) for v in solution.flatten())
        if a + b > 0 and a / (a + b) > 1:
            scales.append(round(a / (a + b), 4))
    return scales


def _equal(ours: Tensor, seen: Tensor) -> bool:
    """Equal up to the rounding of the pipeline's own arithmetic (bfloat16 keeps 8 bits)."""
    if ours.shape != seen.shape:
        return False
    tolerance = 1e-4 if seen.dtype == torch.float32 else 5e-2
    gap = (wide(ours) - wide(seen)).abs().max()
    return bool(gap <= tolerance * wide(seen).abs().max())

"""What a control policy is made of: ``config.json`` of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flowrl.models.control.network import Activation, Kind
from flowrl.types import Acting, Beside, IncompatibleError


@dataclass(frozen=True)
class Share:
    """One of several policies that act as one."""

    weight: float
    width: int
    depth: int


@dataclass(frozen=True)
class Ascent:
    """How single actions are moved towards the data before they are executed."""

    rate: float = 0.1
    """Of a step, in standardised actions; see `flowrl.models.control.scoring.fit`."""
    steps: int = 10
    """0 leaves actions as they are."""


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """``config.json`` of a model."""

    family: str = "control"
    kind: Kind = "flow"
    observation: int
    """o, numbers of one observation."""
    action: int
    """d, numbers of one action; choices of a categorical policy."""
    chunk: int = 1
    """h, actions that are decided at once and executed one after another."""
    past: int = 0
    """Of them, how many are those before the present one (PTP); these are not executed."""
    execute: int = 0
    """How many of the others are executed before it decides again; 0 for all."""
    history: int = 1
    """Observations that are looked at, the newest last."""
    width: int = 128
    depth: int = 3
    steps: int = 10
    """Integration steps with which it acts (`ControlPolicy.select_action`); the times of a DDPM; 2 of a MIP."""
    activation: Activation = "silu"
    blocks: bool = False
    """Hidden layers but the first in blocks of two around which their input is added; ``depth`` is then odd."""
    norm: bool = False
    """Layer norms between the layers."""
    encoder: tuple[int, ...] = ()
    """Widths of the layers that observations pass first."""
    embedding: int = 0
    """Size of a learned embedding of the time; 0 has sines and cosines of it."""
    bound: float | None = None
    """Of a DDPM: the clean chunk that it predicts is moved into ``-bound`` to ``bound``, in standardised actions,
    wherever it is asked, so also by the errors of `flowrl.estimators.matching` (irom-princeton/dppo,
    ``denoised_clip_value`` 1)."""
    tuned_from: float | None = None
    """Time (1 is noise, 0 the chunk) up to which the network acts; at larger ones a second network of the same form
    does, ``base.*`` of the weights, which does not learn (DPPO). None: it acts at all times."""
    residual: float = 0.0
    """How much of a second network's answer is added to every action when it is executed (ResiP); 0: there is none."""
    conditions: int = 0
    """Labels that the network hears, or none: 1 where it has learned what is better than the rest (CFGRL)."""
    guidance: float = 1.0
    """w with which a network that hears a label acts: ``v_0 + w (v_1 - v_0)``."""
    policies: tuple[Share, ...] = ()
    """Of a model that several policies make up, their weights and sizes (`flowrl.models.control.composed`)."""
    score: Ascent | None = None
    """Of a model with a score of its data (`flowrl.models.control.scoring`)."""
    beside: Mapping[str, Beside] = field(default_factory=dict)
    """Networks beside its own, by name."""
    acting: Acting | None = None
    """How it acts, where it does not act by its flow or its mean alone."""

    @property
    def present(self) -> slice:
        """Which actions of a chunk are executed."""
        return slice(self.past, self.past + self.execute if self.execute else self.chunk)

    @property
    def executes(self) -> int:
        """How many these are."""
        return self.execute or self.chunk - self.past

    def scale(self, guidance: float | None) -> float:
        """The w of a guidance, `guidance` where that is ``None``; 0 of a network that hears no label. Raises
        `IncompatibleError` for guidance of such a one."""
        if self.conditions:
            return self.guidance if guidance is None else guidance
        if guidance not in (None, 1.0):
            raise IncompatibleError(
                f"guidance={guidance} has no meaning for a control policy that hears no label; leave it at 1, or train "
                "one with algorithm cfgrl"
            )
        return 0.0

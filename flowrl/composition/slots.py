"""Which parts fit where: the keys of a config that hold a part, and the parts that come with flowrl."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import sys
from dataclasses import dataclass

from flowrl import renamed
from flowrl.composition.contract import has, members, takes_calls
from flowrl.errors import UserError, did_you_mean
from flowrl.estimators.times import TimeDraw
from flowrl.estimators.views import ViewDraw
from flowrl.importing import Place
from flowrl.parts.companions import CompanionWeights
from flowrl.parts.ema import Decay, EmaWeights
from flowrl.samplers.windows import Window
from flowrl.types import (
    Advantage,
    Aggregation,
    Coefficient,
    Combination,
    Dynamics,
    Estimator,
    LossMask,
    LossWeight,
    Objective,
    PenaltyWeight,
    Regularizer,
    Replay,
    Sampler,
    Selection,
    TokenAdvantage,
)

KIND = "algorithm"
"""What messages call a file with users' own parts and presets; one file is one module, whatever stands in it."""


@dataclass(frozen=True)
class Slot:
    """A field that holds a part."""

    protocol: type
    """What the part has to be."""
    modules: tuple[str, ...]
    """Where the parts that come with flowrl are."""


SLOTS: dict[str, Slot] = {
    "sampler": Slot(
        Sampler,
        (
            "flowrl.samplers.flow",
            "flowrl.samplers.branching",
            "flowrl.samplers.previews",
            "flowrl.samplers.masked",
            "flowrl.samplers.masked_tree",
            "flowrl.samplers.editing",
            "flowrl.samplers.hinted",
            "flowrl.samplers.causal",
            "flowrl.samplers.budgets",
            "flowrl.samplers.rivals",
            "flowrl.samplers.recorded",
            "flowrl.samplers.mixed",
            "flowrl.samplers.alternating",
            "flowrl.samplers.episodes",
            "flowrl.samplers.gaussian",
            "flowrl.samplers.categorical",
            "flowrl.samplers.noisy",
            "flowrl.samplers.perturbed",
            "flowrl.samplers.demonstrations",
            "flowrl.samplers.deployed",
            "flowrl.samplers.residual",
            "flowrl.samplers.verified",
        ),
    ),
    "dynamics": Slot(Dynamics, ("flowrl.math.flow",)),
    "window": Slot(Window, ("flowrl.samplers.windows",)),
    "estimator": Slot(
        Estimator,
        (
            "flowrl.estimators.transitions",
            "flowrl.estimators.shared_steps",
            "flowrl.estimators.states",
            "flowrl.estimators.matching",
            "flowrl.estimators.directions",
            "flowrl.estimators.masked",
            "flowrl.estimators.tokens",
            "flowrl.estimators.ratings",
            "flowrl.estimators.pathwise",
            "flowrl.estimators.renoise",
            "flowrl.estimators.adjoint",
            "flowrl.estimators.episodes",
            "flowrl.estimators.gaussian",
            "flowrl.estimators.categorical",
            "flowrl.estimators.noisy",
            "flowrl.estimators.imitation",
            "flowrl.estimators.perturbed",
            "flowrl.estimators.q_learning",
            "flowrl.estimators.q_candidates",
            "flowrl.estimators.decoupled_q",
            "flowrl.estimators.adjoint_q",
            "flowrl.estimators.distribution",
            "flowrl.estimators.trajectory_matching",
        ),
    ),
    "views": Slot(
        ViewDraw,
        (
            "flowrl.estimators.views",
            "flowrl.estimators.path_views",
            "flowrl.estimators.bound_views",
            "flowrl.estimators.tree_views",
        ),
    ),
    "times": Slot(TimeDraw, ("flowrl.estimators.times",)),
    "advantage": Slot(
        Advantage,
        (
            "flowrl.parts.advantages",
            "flowrl.parts.comparisons",
            "flowrl.parts.tree_advantages",
            "flowrl.parts.step_advantages",
            "flowrl.parts.group_advantages",
            "flowrl.parts.several_rewards",
            "flowrl.parts.novelty",
            "flowrl.parts.records",
            "flowrl.parts.episodes",
        ),
    ),
    "token_advantage": Slot(
        TokenAdvantage,
        (
            "flowrl.parts.token_advantages",
            "flowrl.parts.divergences",
            "flowrl.parts.shaping",
            "flowrl.parts.distillation",
            "flowrl.parts.episodes",
        ),
    ),
    "selection": Slot(Selection, ("flowrl.parts.selections",)),
    "replay": Slot(Replay, ("flowrl.samplers.replayed",)),
    "loss_weight": Slot(LossWeight, ("flowrl.parts.loss_weights",)),
    "loss_masks": Slot(LossMask, ("flowrl.parts.loss_masks",)),
    "objective": Slot(
        Objective,
        (
            "flowrl.parts.objectives",
            "flowrl.parts.bounds",
            "flowrl.parts.regressions",
            "flowrl.parts.labels",
            "flowrl.parts.evidence",
            "flowrl.parts.contrasts",
            "flowrl.parts.surrogates",
            "flowrl.parts.set_objectives",
            "flowrl.parts.distillation",
            "flowrl.parts.preferences",
            "flowrl.parts.mixtures",
            "flowrl.parts.q_learning",
            "flowrl.parts.q_candidates",
            "flowrl.parts.decoupled_q",
        ),
    ),
    "regularizers": Slot(
        Regularizer, ("flowrl.parts.regularizers", "flowrl.parts.trust_regions", "flowrl.parts.distillation")
    ),
    "penalty_weight": Slot(PenaltyWeight, ("flowrl.parts.penalty_weights",)),
    "aggregation": Slot(Aggregation, ("flowrl.parts.aggregations",)),
    "combination": Slot(Combination, ("flowrl.parts.combinations",)),
    "demonstrations": Slot(Objective, ("flowrl.parts.mixtures", "flowrl.parts.objectives")),
    "coefficients": Slot(Coefficient, ("flowrl.parts.controllers", "flowrl.parts.schedules")),
    "companions": Slot(CompanionWeights, ("flowrl.parts.companions",)),
    "ema_weights": Slot(EmaWeights, ("flowrl.parts.ema",)),
    "decay": Slot(Decay, ("flowrl.parts.ema",)),
}
"""The fields of an algorithm and of its parts that hold a part, by name."""


def shipped_parts(slot: str) -> dict[str, type]:
    """The parts that come with flowrl and fit a slot, by class name."""
    modules = [importlib.import_module(name) for name in SLOTS[slot].modules]
    return {
        name: kind
        for module in modules
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if kind.__module__ == module.__name__ and dataclasses.is_dataclass(kind) and _fits(kind, slot)
    }


def shipped_part(slot: str, name: str, path: str) -> type:
    """The part of a class name, in either style (``GroupCentred``, ``group_centred``). Raises `UserError` that names
    the key ``path``, with a suggestion."""
    known = shipped_parts(slot)
    for found, kind in known.items():
        if renamed.plain(found) == renamed.plain(name):
            return kind
    remedy = (
        f"{did_you_mean(name, known)} (or give path.py:Class)"
        if known
        else ", and none comes with flowrl; give path.py:Class"
    )
    raise UserError(f"{path}.use: there is no {name!r}{remedy}")


def part_name(kind: type) -> str:
    """What a config calls a part: its class name, or ``path.py:Class`` or ``module:Class`` of a user's own."""
    if not is_own(kind):
        return kind.__name__
    module = sys.modules[kind.__module__]
    if not kind.__module__.startswith(f"flowrl_{KIND}_"):
        return f"{kind.__module__}:{kind.__qualname__}"
    path = os.path.relpath(module.__file__ or "")
    return f"{module.__file__ if path.startswith('..') else path}:{kind.__qualname__}"


def is_own(kind: type) -> bool:
    """Whether a part is a user's own."""
    return not kind.__module__.startswith("flowrl.")


def own_place(use: str, path: str) -> Place | None:
    """The place of a user's own part or preset; None for the name of one that comes with flowrl. Raises `UserError`
    that names the key ``path``."""
    try:
        return Place.of(use, KIND)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _fits(kind: type, slot: str) -> bool:
    """Whether a dataclass of a slot's modules is one of its parts, and not data that they pass on."""
    protocol = SLOTS[slot].protocol
    return all(has(kind, name) for name in members(protocol)) and takes_calls(kind, protocol)

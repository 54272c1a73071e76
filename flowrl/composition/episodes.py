"""Presets for images put on episodes: ``family: control`` of a preset that has no such argument."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from flowrl.errors import UserError
from flowrl.estimators.episodes import PerDecision
from flowrl.estimators.matching import ContrastedMatching, Matching
from flowrl.estimators.transitions import Transitions
from flowrl.parts.aggregations import DecisionMean, SampleMean
from flowrl.parts.algorithm import Algorithm, Family
from flowrl.parts.loss_weights import Uniform
from flowrl.parts.novelty import WithNovelty
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler

OPTIONS: dict[str, object] = {"family": Family, "environment": str, "decisions": int}
"""What a config may say of every preset that has no such arguments, and their types."""


def on_episodes(algorithm: Algorithm, environment: str = "avoid", decisions: int = 40) -> Algorithm:
    """An algorithm for images, on the decisions of episodes: its sampler makes each chunk of actions, its estimator is
    asked about each decision, and the advantage of an episode, from its return, is that of all its decisions. No critic
    takes part: groups are episodes of one prompt.

    A mean over a sample's decisions becomes one over all decisions (`DecisionMean`), the gradient of the return but for
    a constant, as the decisions of a long episode otherwise count less than those of a short one. Of episodes of one
    decision both are the image preset's loss. Raises `ValueError` where a part compares or weighs the steps of pictures
    in a way that has no meaning in episodes.
    """
    for why in _refusals(algorithm):
        raise ValueError(f"it does not act: {why}; 'flowrl algorithms --family control' lists those that do")
    mean = isinstance(algorithm.aggregation, SampleMean)
    return replace(
        algorithm,
        sampler=EpisodeSampler(sampler=algorithm.sampler, environment=environment, decisions=decisions),
        estimator=PerDecision(estimator=algorithm.estimator),
        aggregation=DecisionMean() if mean else algorithm.aggregation,
        families=("control",),
    )


def acts(algorithm: Algorithm) -> bool:
    """Whether `on_episodes` takes an algorithm."""
    return not any(_refusals(algorithm))


def for_family(algorithm: Algorithm, name: str, given: Mapping[str, Any]) -> Algorithm:
    """The algorithm of a preset without a choice of families, for ``given["family"]``: its own, or ``control`` with the
    other `OPTIONS`. Raises `UserError` for others."""
    family, further = given.get("family", algorithm.family), [key for key in given if key != "family"]
    if family == "control" and family not in algorithm.families:
        return on_episodes(algorithm, **{key: given[key] for key in further})
    if family not in algorithm.families:
        acting = ", and with family: control in an environment" if acts(algorithm) else ""
        raise UserError(f"algorithm.family={family}: {name} trains {' or '.join(algorithm.families)} models{acting}")
    if further:
        raise UserError(f"algorithm.{further[0]}: {name} acts in an environment with family: control alone; set that")
    return algorithm


def _refusals(algorithm: Algorithm) -> Iterator[str]:
    """Why an algorithm cannot be put on episodes."""
    sampler, estimator = algorithm.sampler, algorithm.estimator
    if algorithm.families != ("diffusion",):
        yield f"it trains {' or '.join(algorithm.families)} models, and none of images"
    if type(sampler) is not FlowSampler:
        yield f"sampler {type(sampler).__name__} makes more than single samples from noise"
    elif sampler.record_mean or sampler.share_noise:
        yield "its sampler records means or shares noise in a group, which the record of an episode has no place for"
    if not isinstance(estimator, Matching | ContrastedMatching | Transitions):
        yield f"estimator {type(estimator).__name__} needs the gradient of a reward, or weights beside the policy"
    elif isinstance(estimator, Transitions) and (estimator.measure == "noise" or estimator.path_error):
        yield "its estimator compares recorded means or paths of a data set"
    elif getattr(estimator, "share", "sample") != "sample":
        yield "its estimator shares times and noises in a group, whose episodes have decisions of their own"
    if algorithm.objective.coupled:
        yield f"objective {type(algorithm.objective).__name__} compares samples decision by decision"
    parts = (*algorithm.token_advantage, *algorithm.loss_masks, *algorithm.companions, *algorithm.teachers)
    if parts or algorithm.combination or algorithm.replay or not isinstance(algorithm.loss_weight, Uniform):
        yield "it weighs the steps of a picture, or learns from other weights or samples than its own"
    if isinstance(algorithm.advantage, WithNovelty) or algorithm.penalty_weight is not None or algorithm.coefficients:
        yield "it follows statistics of pictures"

"""Suites that are prompts and one frozen image scorer, whose version is part of the result."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from flowrl.errors import UserError, did_you_mean, short_repr
from flowrl.evaluation.prompt_files import benchmark_prompts
from flowrl.evaluation.score_cache import ScoreCache, files_digest
from flowrl.evaluation.suite import Options, SuiteScores, prompt_tags
from flowrl.evaluation.target import Target
from flowrl.score.registry import find_reward
from flowrl.types import Prompt, Samples
from flowrl.values import argument_problem

PROMPTS = "prompts"
"""Option of every such suite beside those of its scorer."""


@dataclass(frozen=True)
class ScorerSuite:
    """One number per image, in the scorer's own units, averaged over prompts (over tags where prompts have them)."""

    name: str
    prompts: Sequence[Prompt]
    source: str
    scorer: Callable[[Samples], Tensor]
    """[n] one number per image."""
    cache: ScoreCache
    primary: str
    title: str
    version: str
    tags: Sequence[str]
    size: int

    def score(self, samples: Samples) -> SuiteScores:
        """NaN where the scorer could not score; images and prompts that were scored before are not scored again."""
        return self.cache.score(samples, self._score)

    def close(self) -> None:
        """Nothing is held but memory."""

    def _score(self, samples: Samples) -> SuiteScores:
        return SuiteScores.of({self.primary: self.scorer(samples)}, len(samples))


def scorer_suite(
    name: str,
    reward: str,
    target: Target,
    data: Path | None,
    options: Options,
    *,
    version: str = "1",
    prompts: tuple[Sequence[Prompt], str] | None = None,
) -> ScorerSuite:
    """A suite of the reward ``reward``; ``options`` are its own and ``prompts``, a file or ``hf:name:split``.

    ``prompts`` (and where they are from) replace what the user would have to give. Raises UserError for an option
    that does not exist, weights that cannot be loaded, or prompts that cannot be read.
    """
    settings = dict(options)
    spec = settings.pop(PROMPTS, None)
    found, source = prompts or benchmark_prompts(name, target, data, spec)
    scorer = load_scorer(name, reward, settings)
    full = f"{version}:{scorer.version}{files_digest(settings)}"

    def score(samples: Samples) -> Tensor:
        texts = [prompt.text for prompt in samples.prompts]
        names = dict.fromkeys(key for prompt in samples.prompts for key in prompt.columns)
        columns = {key: [prompt.columns.get(key) for prompt in samples.prompts] for key in names}
        return scorer(samples.images, texts, **columns)

    return ScorerSuite(
        name=name,
        prompts=found,
        source=source,
        scorer=score,
        cache=ScoreCache(full),
        primary=reward,
        title=name,
        version=full,
        tags=prompt_tags(found),
        size=len(found),
    )


def load_scorer(suite: str, reward: str, settings: Options) -> Any:
    """A reward class of ours with its options. Raises UserError for an option that it does not have."""
    kind = find_reward(reward)
    check_options(suite, kind, settings, PROMPTS)
    try:
        inspect.signature(kind).bind(**settings)
    except TypeError as error:
        raise UserError(f"suite {suite}: {error}; give it as an option, such as --option {suite}.path=FILE") from error
    return kind(**settings)


def check_options(suite: str, function: Callable[..., Any], options: Options, *further: str) -> None:
    """Raise `UserError` for an option that is neither a parameter of ``function`` nor one of ``further``, or whose type
    does not fit the parameter."""
    known = [*inspect.signature(function).parameters, *further]
    for key, value in options.items():
        if key not in known:
            raise UserError(f"suite {suite} has no option {key!r}{did_you_mean(key, known)}")
        if wrong := argument_problem(function, key, value):
            raise UserError(f"--option {suite}.{key}: {short_repr(value)} will not do: {wrong}")

"""Suites that ask a vision-language model several questions about every image: DPG-Bench, T2I-CompBench; and
opening the model, for GenEval 2 too.

They have the benchmarks' prompts and arithmetic, but another model answers than in the papers, which their titles say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from flowrl.errors import UserError
from flowrl.evaluation.score_cache import ScoreCache, files_digest
from flowrl.evaluation.scorer_suite import check_options
from flowrl.evaluation.suite import Options, SuiteScores, prompt_tags
from flowrl.media import quantise
from flowrl.scorers.endpoint import EndpointOptions
from flowrl.types import Prompt, Samples
from rewards._vlm import Backend, open_backend

QUESTIONS = "questions"
"""Column with a prompt's questions."""
WORDS = ("Yes", "No")


@dataclass(frozen=True)
class Question:
    """One question about an image, to be answered with yes or no."""

    text: str
    id: int
    parents: tuple[int, ...] = ()
    """Questions that must be answered with yes for this one to count."""
    category: str = ""


@dataclass(frozen=True)
class VqaSuite:
    """Asks every question of a prompt and puts the answers together; answers are kept by content."""

    name: str
    title: str
    version: str
    prompts: Sequence[Prompt]
    source: str
    primary: str
    tags: Sequence[str]
    size: int
    backend: Backend
    cache: ScoreCache
    batch_size: int
    product: bool
    """The product of the probabilities of yes (T2I-CompBench), else the mean of the answers (DPG)."""

    def score(self, samples: Samples) -> SuiteScores:
        """The suite's measure, and of DPG one for every category; NaN where an answer is missing."""
        return self.cache.score(samples, self._score)

    def close(self) -> None:
        """Nothing is held but memory."""

    def _score(self, samples: Samples) -> SuiteScores:
        assert samples.images is not None
        lists = [questions_of(prompt) for prompt in samples.prompts]
        rows = self._answers(samples.images, lists)
        if self.product:
            scores = [{self.primary: float(torch.tensor(row, dtype=torch.float64).prod())} for row in rows]
        else:
            scores = [graph_scores(*one, self.primary) for one in zip(lists, rows, strict=True)]
        names = dict.fromkeys(name for score in scores for name in score)
        categories = dict.fromkeys(q.category for prompt in self.prompts for q in questions_of(prompt) if q.category)
        names |= {} if self.product else categories
        measures = {name: torch.tensor([score.get(name, torch.nan) for score in scores]) for name in names}
        reasons = [_denied(*one) for one in zip(lists, rows, strict=True)]
        return SuiteScores(measures, reasons, [{"yes": row} for row in rows])

    @torch.inference_mode()
    def _answers(self, images: Tensor, lists: Sequence[Sequence[Question]]) -> list[list[float]]:
        """Probability of yes, against no, of every question about images [n, 3, H, W]."""
        jobs = [(row, question.text) for row, questions in enumerate(lists) for question in questions]
        pixels = quantise(images)
        answers: list[float] = []
        for start in range(0, len(jobs), self.batch_size):
            part = jobs[start : start + self.batch_size]
            chances = self.backend.chances(pixels[[row for row, _ in part]], [text for _, text in part], WORDS)
            answers += (chances[:, 0] / chances.sum(dim=1)).tolist()
        rest = iter(answers)
        return [[next(rest) for _ in questions] for questions in lists]


@dataclass(frozen=True)
class VqaOptions:
    """The options of a suite of questions: who answers them."""

    path: str | None = None
    """Folder or hub name of a local model."""
    url: str | None = None
    """Or an OpenAI-compatible endpoint."""
    model: str | None = None
    device: str | None = None
    dtype: str = "bfloat16"
    batch_size: Annotated[int, Field(ge=1)] = 8
    key_variable: str | None = None
    concurrency: Annotated[int, Field(ge=1)] = 8


@dataclass(frozen=True)
class Judge:
    """Who answers the questions of a suite."""

    backend: Backend
    title: str
    """Such as ``vqa=Qwen/Qwen3-VL-8B-Instruct``."""
    version: str
    """Changes where it would answer otherwise."""
    batch_size: int


def open_judge(name: str, options: Options) -> Judge:
    """The model that a suite's options give (see `VqaOptions`). Raises UserError where none is given."""
    check_options(name, VqaOptions, options)
    chosen = VqaOptions(**options)
    if chosen.path is None and chosen.url is None:
        raise UserError(
            f"suite {name} asks a vision-language model: give --option {name}.path=FOLDER (a local one), or "
            f"{name}.url and {name}.model (an OpenAI-compatible endpoint)"
        )
    endpoint = EndpointOptions(
        chosen.url or "", chosen.model or "", chosen.key_variable, concurrency=chosen.concurrency
    )
    backend = open_backend(name, chosen.path, chosen.device, chosen.dtype, endpoint)
    version = f"{backend.name}{files_digest(options)}"
    return Judge(backend, f"vqa={chosen.model or chosen.path}", version, chosen.batch_size)


def vqa_suite(
    name: str, prompts: Sequence[Prompt], source: str, options: Options, *, version: str, product: bool
) -> VqaSuite:
    """A suite of prompts that carry questions. ``options``: `path`, or `url` and `model`; `device`, `dtype`,
    `batch_size`, `key_variable`, `concurrency`. Raises UserError where no model is given."""
    judge = open_judge(name, options)
    judge.backend.check(WORDS)
    for prompt in prompts:
        questions_of(prompt)
    full = f"{version}:{judge.version}"
    return VqaSuite(
        name=name,
        title=f"{name}-like[{judge.title}]",
        version=full,
        prompts=prompts,
        source=source,
        primary=name,
        tags=prompt_tags(prompts),
        size=len(prompts),
        backend=judge.backend,
        cache=ScoreCache(f"{name}:{full}"),
        batch_size=judge.batch_size,
        product=product,
    )


def graph_scores(questions: Sequence[Question], chances: Sequence[float], name: str) -> dict[str, float]:
    """``{name: score, category: share of yes, ...}`` of one image.

    A question is answered with yes if that is more likely than no. The score is the share of yes among all, where a
    question below one that is answered with no counts as no, through all generations; categories leave that out. NaN
    where an answer is not known.
    """
    if any(chance != chance for chance in chances):
        return {name: float("nan")}
    yes = {question.id: chance > 0.5 for question, chance in zip(questions, chances, strict=True)}
    parents = {question.id: question.parents for question in questions}

    def holds(id_: int) -> bool:
        return yes[id_] and all(holds(parent) for parent in parents[id_])

    scores = {name: sum(holds(question.id) for question in questions) / len(questions)}
    for category in dict.fromkeys(question.category for question in questions if question.category):
        own = [yes[question.id] for question in questions if question.category == category]
        scores[category] = sum(own) / len(own)
    return scores


def questions_of(prompt: Prompt) -> list[Question]:
    """A prompt's questions, from its column. Raises UserError where they are missing or refer to nothing."""
    rows = prompt.columns.get(QUESTIONS)
    where = f"prompt {prompt.text[:40]!r}"
    if not isinstance(rows, list | tuple) or not rows:
        raise UserError(f"{where} has no list of {QUESTIONS!r}; make the images with this suite, or give --data")
    try:
        found = [
            Question(str(row["text"]), int(row["id"]), tuple(row.get("parents", ())), str(row.get("category", "")))
            for row in rows
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{where}: its {QUESTIONS!r} should be a list of {{'text', 'id', 'parents', 'category'}}"
        ) from error
    _check_graph(found, where)
    return found


def _check_graph(questions: Sequence[Question], where: str) -> None:
    known: set[int] = set()
    waiting = list(questions)
    while waiting:
        ready = [question for question in waiting if {*question.parents} <= known]
        if not ready:
            raise UserError(f"{where}: question {waiting[0].id} depends on one that does not exist, or on itself")
        known |= {question.id for question in ready}
        waiting = [question for question in waiting if question not in ready]


def _denied(questions: Sequence[Question], chances: Sequence[float]) -> list[str]:
    return [f"no: {question.text}" for question, chance in zip(questions, chances, strict=True) if chance <= 0.5]

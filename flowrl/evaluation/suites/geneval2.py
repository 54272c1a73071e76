"""GenEval 2 (arXiv:2512.16853): is every object, count, attribute, relation and action of the prompt in the image?

As released (facebookresearch/GenEval2 at a6e82d2, code and data CC BY-NC 4.0, so the user brings the prompts): a
vision-language model, Qwen3-VL-8B-Instruct, is asked each of a prompt's questions, followed by "Answer in one word.".
The score of an answer is the probability that its first token is one of the answer's spellings: the word, small or with
a capital, with or without a space before it, and the digit of a number. Soft-TIFA AM is the mean of a prompt's scores,
Soft-TIFA GM their geometric mean; both are averaged over prompts, and the scores of a skill over all its questions.
Papers print 100 times that.

Two departures: a spelling's first token counts once, and not where it is a bare space (the release adds both up). An
endpoint tells twenty alternatives, and an answer that is not among them counts as 0, so that GM is a lower bound.

The release says nothing of how images are made. Size, steps, guidance and noise by the prompt's words are those of
Tencent-Hunyuan/UniRL (pull request 236): 512 x 512, 40 steps, guidance 1, one image per prompt. Its random numbers and
its grid of times are not ours, so single images differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowrl.errors import UserError, did_you_mean
from flowrl.evaluation.prompt_files import benchmark_prompts
from flowrl.evaluation.score_cache import ScoreCache
from flowrl.evaluation.scorer_suite import PROMPTS
from flowrl.evaluation.suite import Options, SamplingProtocol, SuiteEntry, SuiteScores, prompt_tags
from flowrl.evaluation.target import Target
from flowrl.evaluation.vqa_suite import Judge, open_judge
from flowrl.media import quantise
from flowrl.types import Prompt, Samples

PRIMARY, ARITHMETIC = "soft_tifa_gm", "soft_tifa_am"
SKILLS = ("object", "attribute", "count", "position", "verb")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
OFFICIAL = {f"{atoms} atoms": 100 for atoms in range(3, 11)}
"""Prompts of the benchmark by tag: how much a prompt asks for."""
PROTOCOL = SamplingProtocol(steps=40, guidance=1.0, size=512, samples=1)


@dataclass(frozen=True)
class Atom:
    """One question about an image and the answer that is right."""

    question: str
    spellings: tuple[str, ...]
    skill: str


@dataclass(frozen=True)
class GenEval2:
    """Asks every question of a prompt; scores are kept by content."""

    prompts: Sequence[Prompt]
    source: str
    judge: Judge
    cache: ScoreCache
    title: str
    version: str
    tags: Sequence[str]
    size: int
    name: str = "geneval2"
    primary: str = PRIMARY

    def score(self, samples: Samples) -> SuiteScores:
        """Soft-TIFA GM and AM, and the mean of each skill's answers; NaN where one is missing, or a prompt has none."""
        return self.cache.score(samples, self._score)

    def weights(self, prompt: Prompt) -> Mapping[str, float]:
        """How many questions of each skill a prompt has: the release averages those over questions."""
        counts = Counter(atom.skill for atom in atoms_of(prompt))
        return {skill: float(counts[skill]) for skill in SKILLS}

    def close(self) -> None:
        """Nothing is held but memory."""

    def _score(self, samples: Samples) -> SuiteScores:
        assert samples.images is not None
        lists = [atoms_of(prompt) for prompt in samples.prompts]
        rows = self._answers(samples.images, lists)
        scores = [soft_tifa(*one) for one in zip(lists, rows, strict=True)]
        names = (PRIMARY, ARITHMETIC, *SKILLS)
        measures = {name: torch.tensor([score.get(name, torch.nan) for score in scores]) for name in names}
        reasons = [
            [f"below 1/2: {atom.question}" for atom, chance in zip(*one, strict=True) if chance < 0.5]
            for one in zip(lists, rows, strict=True)
        ]
        return SuiteScores(measures, reasons, [{"right": row} for row in rows])

    @torch.inference_mode()
    def _answers(self, images: Tensor, lists: Sequence[Sequence[Atom]]) -> list[list[float]]:
        """Probability of the right answer to every question about images [n, 3, H, W]."""
        jobs = [(row, atom) for row, atoms in enumerate(lists) for atom in atoms]
        pixels = quantise(images)
        answers: list[float] = []
        for start in range(0, len(jobs), self.judge.batch_size):
            part = jobs[start : start + self.judge.batch_size]
            questions = [f"{atom.question} Answer in one word." for _, atom in part]
            seen = pixels[[row for row, _ in part]]
            answers += self.judge.backend.beginnings(seen, questions, [atom.spellings for _, atom in part]).tolist()
        rest = iter(answers)
        return [[next(rest) for _ in atoms] for atoms in lists]


def build(target: Target, data: Path | None, options: Options) -> GenEval2:
    """``data`` is the benchmark's ``geneval2_data.jsonl``, or another file with its columns; ``options`` name the model
    (see `vqa_suite.VqaOptions`).

    An image folder's metadata hold the questions, as the folders that this suite makes do. Raises UserError.
    """
    rest = dict(options)
    found, source = benchmark_prompts("geneval2", target, data, rest.pop(PROMPTS, None))
    prompts = [_tagged(prompt) for prompt in found]
    judge = open_judge("geneval2", rest)
    version = f"1:{judge.version}"
    tags = prompt_tags(prompts)
    style = "" if Counter(prompt.columns["tag"] for prompt in prompts) == OFFICIAL else "-style"
    return GenEval2(
        prompts=prompts,
        source=source,
        judge=judge,
        cache=ScoreCache(f"geneval2:{version}"),
        title=f"geneval2{style}[{judge.title}]",
        version=version,
        tags=sorted(tags, key=lambda tag: int(tag.split()[0])),
        size=len(prompts),
    )


SUITES = {"geneval2": SuiteEntry(build, ("images",), takes_data=True, takes_options=True, protocol=PROTOCOL)}


def soft_tifa(atoms: Sequence[Atom], chances: Sequence[float]) -> dict[str, float]:
    """Geometric and arithmetic mean of the answers' scores, and the mean by skill; NaN where a score is not known."""
    values = np.asarray(chances, dtype=np.float64)
    with np.errstate(divide="ignore"):
        scores = {PRIMARY: float(np.exp(np.log(values).mean())), ARITHMETIC: float(values.mean())}
    for skill in dict.fromkeys(atom.skill for atom in atoms):
        scores[skill] = float(
            np.mean([value for atom, value in zip(atoms, values, strict=True) if atom.skill == skill])
        )
    return scores


def atoms_of(prompt: Prompt) -> list[Atom]:
    """A prompt's questions, from its columns ``vqa_list`` and ``skills``. Raises UserError for another form."""
    pairs, skills = prompt.columns.get("vqa_list"), prompt.columns.get("skills")
    where = f"prompt {prompt.text[:40]!r}"
    if not isinstance(pairs, list | tuple) or not isinstance(skills, list | tuple) or not pairs:
        raise UserError(
            f"{where} has no lists 'vqa_list' and 'skills'; give --data geneval2_data.jsonl (facebookresearch/GenEval2)"
        )
    if len(pairs) != len(skills):
        raise UserError(f"{where}: {len(pairs)} questions of 'vqa_list' need as many 'skills', found {len(skills)}")
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise UserError(f"{where}: 'vqa_list' should hold pairs [question, answer], found {pair!r}")
    for skill in skills:
        if skill not in SKILLS:
            raise UserError(f"{where}: there is no skill {skill!r}{did_you_mean(str(skill), SKILLS)}")
    return [Atom(pair[0], spellings(pair[0], pair[1], where), skill) for pair, skill in zip(pairs, skills, strict=True)]


def spellings(question: str, answer: str, where: str) -> tuple[str, ...]:
    """The ways to write the right answer: of "How many ...?" the number, of any other question yes. Raises UserError
    for another answer."""
    if question.startswith("How many"):
        digits = [str(NUMBERS.index(answer) + 1)] if answer in NUMBERS else []
        words = [answer, answer.capitalize(), *digits]
    elif answer.lower() == "yes":
        words = ["Yes", "yes"]
    else:
        raise UserError(f"{where}: the answer to {question!r} should be 'Yes', found {answer!r}")
    return tuple(space + word for word in words for space in ("", " "))


def _tagged(prompt: Prompt) -> Prompt:
    """With the prompt's number of atoms as its tag, the benchmark's strata."""
    atoms_of(prompt)
    atoms = prompt.columns.get("atom_count")
    if not isinstance(atoms, int) or isinstance(atoms, bool) or atoms < 1:
        raise UserError(f"prompt {prompt.text[:40]!r}: 'atom_count' should be 1 or more, found {atoms!r}")
    return replace(prompt, columns={**prompt.columns, "tag": f"{atoms} atoms"})

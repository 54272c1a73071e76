"""T2I-CompBench's attribute binding (arXiv:2307.06350): is every phrase of the prompt, such as "a green bench", true?

The benchmark takes the product over the prompt's noun phrases of BLIP-VQA's probability of yes. Here a vision-language
model of the user's choice is asked, hence ``t2i_compbench-like[vqa=...]``: the numbers compare with each other only.
Made for the categories color, shape and texture, whose prompts join phrases by "and".
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from flowrl.evaluation.prompt_files import benchmark_prompts
from flowrl.evaluation.scorer_suite import PROMPTS
from flowrl.evaluation.suite import Options, SuiteEntry
from flowrl.evaluation.target import Target
from flowrl.evaluation.vqa_suite import QUESTIONS, VqaSuite, vqa_suite
from flowrl.types import Prompt

TEMPLATE = 'Does this figure show "{phrase}"? Please answer yes or no.'


def build(target: Target, data: Path | None, options: Options) -> VqaSuite:
    """``data`` is a file of the benchmark such as ``color_val.txt``; ``options`` name the model (see `vqa_suite`).

    Raises UserError.
    """
    rest = dict(options)
    prompts, source = benchmark_prompts("t2i_compbench", target, data, rest.pop(PROMPTS, None))
    return vqa_suite(
        "t2i_compbench", [with_questions(prompt) for prompt in prompts], source, rest, version="1", product=True
    )


SUITES = {"t2i_compbench": SuiteEntry(build, ("images",), takes_data=True, takes_options=True)}


def with_questions(prompt: Prompt) -> Prompt:
    """A question for each part of the prompt between "and"s and commas; those it has already stay."""
    if prompt.columns.get(QUESTIONS):
        return prompt
    parts = [part.strip(" .") for part in re.split(r",|\band\b", prompt.text)]
    phrases = [part for part in parts if part] or [prompt.text]
    questions = [{"text": TEMPLATE.format(phrase=phrase), "id": n} for n, phrase in enumerate(phrases, 1)]
    return replace(prompt, columns={**prompt.columns, QUESTIONS: questions})

"""Suites that are a file of prompts and one of our image scorers, in the scorer's own units."""

from __future__ import annotations

from functools import partial

from flowrl.evaluation.scorer_suite import scorer_suite
from flowrl.evaluation.suite import SuiteEntry

REWARDS = {
    "aesthetic": "aesthetic",  # LAION's predictor, about 3 to 8; it does not look at the prompt
    "clip": "clipscore",  # CLIPScore (arXiv:2104.08718), by default the cosine of CLIP ViT-L/14
    "hps": "hpsv2",  # HPSv2.1 (arXiv:2306.09341) as a cosine; papers print 100 times that, over four styles
    "pickscore": "pickscore",  # PickScore (arXiv:2305.01569), raw, about 18 to 24
}
"""The reward behind each suite, whose options are the suite's. Usual prompts: PartiPrompts, DrawBench, Pick-a-Pic."""
SUITES = {
    name: SuiteEntry(partial(scorer_suite, name, reward), ("images",), takes_data=True, takes_options=True)
    for name, reward in REWARDS.items()
}

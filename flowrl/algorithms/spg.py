"""SPG: raise a lower bound of good completions, press down an upper bound of bad ones (arXiv:2510.09541)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import BlockAndAfter
from flowrl.parts.aggregations import SampleMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.bounds import Sandwich
from flowrl.parts.loss_weights import ByLength

PAPER = "arXiv:2510.09541"


def spg(
    *,
    omega: float = 0.5,
    power: float = 1.5,
    draws: int = 2,
    corrupt: float = 0.15,
    length: int = 256,
    steps: int = 128,
    block: int = 32,
    temperature: float = 0.9,
) -> Algorithm:
    """As released (facebookresearch/SPG, ``spg_trainer.py`` and ``slurm_scripts``, 17 Oct 2025): ``-A score`` per
    completion, weighted by its length; the score is the mean over views of the mean log-probability of what they hide
    where A > 0, else ``omega`` times the upper bound of exponent ``power`` and the rest of that mean; the advantage is
    centred without standard deviation. Views as `BlockAndAfter` makes them; ``corrupt`` masks tokens of the prompt and
    of earlier blocks. No ratio, no clip, no KL.

    Its settings by task, all with ``omega=.5`` (``spg_mix``): GSM8K, MATH and Countdown ``power=1.5``; Sudoku
    ``power=1.0, temperature=.3``, three examples in the prompt. ``spg_eubo`` is ``omega=1`` with power 1.5, Countdown
    2.0, Sudoku 1.0. Optimiser: rate 3e-6, AdamW .9/.99 with weight decay .1, gradient norm .2; 6 samples a prompt, 16
    prompts an update, 4 epochs, LoRA 128/64. Recipes: ``configs/llada``.

    ``estimator: {views: block_random}`` is the bound that the paper's text describes, without bias for a sampler that
    fills blocks from left to right; the mean gradients of the two have cosine .79. With two views the upper bound's
    estimate is biased downwards and can lie below the lower one, so raise the learning rate with care.
    """
    sizes = {"length": length, "steps": steps, "block": block, "temperature": temperature}
    views = BlockAndAfter(block=block, draws=draws, corrupt=corrupt)
    return replace(
        diffu_grpo(kl=0.0, **sizes),
        estimator=MaskedViews(views=views, per="cell", corrupt=corrupt),
        objective=Sandwich(omega, power),
        loss_weight=ByLength(1.0),
        aggregation=SampleMean(),
    )

"""GDPO, group *diffusion* policy optimisation: one ratio per completion from a bound integrated by quadrature
(arXiv:2510.08554)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import Quadrature
from flowrl.parts.aggregations import SampleMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ClippedMean

PAPER = "arXiv:2510.08554"


def gdpo_dllm(
    *,
    clip: float = 0.5,
    kl: float = 0.0,
    nodes: int = 3,
    length: int = 256,
    steps: int = 128,
    block: int | None = 32,
    temperature: float = 0.9,
) -> Algorithm:
    """``r = exp((B - B_old) / L)``, ``B = sum_n w_n / t_n log p(hidden | view n)`` over Gauss-Legendre nodes with
    exactly max(1, floor(t_n L)) of the L tokens hidden, one mask a node, the same for new and old; the loss is
    ``max(-A r, -A clip(r, 1 - clip, 1 + clip))``, mean over completions, A centred without standard deviation.

    As in the two public codes derived from the authors', whose own is not public: YanJiangJerry/Block-R1
    (``gdpo_trainer.py``, 16 May 2026) and NVIDIA NeMo-RL (research/gdpo 403a837). Their optimiser: rate 3e-7, AdamW
    .9/.99 with weight decay .1, gradient norm .2, 6 samples a prompt, 12 epochs. L is the completion's own length, as
    in NeMo-RL; Block-R1 takes the whole canvas and also scores what follows the end, which is not sampled here.
    Block-R1 divides the advantage by the group's standard deviation, for its mixture of tasks.

    The paper writes the ratio of whole completions, divides the loss by the length and masks each token by chance:
    ``{clip: 0.2, objective: {by_length: false}, loss_weight: {use: by_length, power: -1}, estimator: {views: {counts:
    bernoulli}}}``. At 256 tokens, .005 nats a token then put 87 % of the ratios outside a clip of .2. The KL is that of
    each view, squared and halved (``k2``); theirs is the exponential of a difference of bounds, which overflows.
    Not to be confused with GDPO for several rewards (arXiv:2601.05242).
    """
    sizes = {"length": length, "steps": steps, "block": block, "temperature": temperature}
    return replace(
        diffu_grpo(kl=kl, **sizes),
        estimator=MaskedViews(views=Quadrature(nodes=nodes, counts="floor"), kl="k2"),
        objective=ClippedMean(clip, clip, by_length=True),
        aggregation=SampleMean(),
    )

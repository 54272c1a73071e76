"""BVPO: the preference gradient of answers with their reasoning, mixed with that of answers without any
(arXiv:2510.05095)."""

from flowrl.estimators.tokens import Tokens
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.combinations import FixedShares
from flowrl.parts.preferences import PairLoss, Preference
from flowrl.parts.records import PairPerTrace
from flowrl.parts.selections import NonzeroAdvantage
from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.recorded import Recorded

PAPER = "arXiv:2510.05095"


def bvpo(
    *,
    share: float = 0.5,
    loss: PairLoss = "sigmoid",
    beta: float = 0.1,
    columns: tuple[str, ...] = ("chosen", "rejected"),
    empty_columns: tuple[str, ...] = (),
    trace_end: str = "</think>",
    empty_trace: str = "<think>\n\n",
    length: int = 1024,
) -> Algorithm:
    """Reconstruction: there is no code of the authors', and the share that they ran with is not reported; .5 is ours.

    share: of the gradient with reasoning, ``share g_trace + (1 - share) g_empty``; 1 is ``dpo`` on whole answers. The
    share of least squared error needs the bias of both, which nobody measures. empty_columns: pairs that were made with
    reasoning switched off, as the paper has them. Without: the same answers, in which ``empty_trace`` takes the place
    of what stands before ``trace_end`` (ours); one without it stays as it is. Four samples a prompt either way.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} mixes two gradients: give 0 (answers alone) to 1 (with their reasoning)")
    if len(columns) != 2 or len(empty_columns) not in (0, 2):
        raise ValueError(f"columns={list(columns)}, empty_columns={list(empty_columns)}: a pair has two columns each")
    if not (empty_columns or trace_end):
        raise ValueError("trace_end='' ends no reasoning; give what stands behind it, such as </think>")
    ends = ("", "") if empty_columns else (trace_end, empty_trace)
    return Algorithm(
        sampler=Recorded(
            sampler=CausalSampler(length=length),
            columns=(*columns, *empty_columns),
            trace_end=ends[0],
            empty_trace=ends[1],
        ),
        estimator=Tokens(),
        advantage=PairPerTrace(),
        objective=Preference(loss, beta, per_token=loss == "ipo"),
        combination=FixedShares((2 * share, 2 * (1 - share))),  # each pair is half of the samples that means are over
        selection=NonzeroAdvantage(),
        families=("causal",),
    )

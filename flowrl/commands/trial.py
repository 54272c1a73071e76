"""A small iteration on the machine at hand: what of a run shows only when it is tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from flowrl.checks import Spoken, judge, measure
from flowrl.errors import counted
from flowrl.models.weights import LIVE
from flowrl.parts.diagnostics import DEVIATION
from flowrl.ratio_check import RatioCheck
from flowrl.rounds import ScoredRollout
from flowrl.runtime.out_of_memory import explain_out_of_memory
from flowrl.runtime.timing import PhaseTimer
from flowrl.score import Rewards, list_rewards
from flowrl.session import Session, open_session
from flowrl.startup.preflight import CheckedRun
from flowrl.startup.records import are_unscored
from flowrl.train import iterate
from flowrl.types import Draw, Prompt, Samples, TokenTrace

PROMPTS, GROUP = 2, 4
"""Of the trial, at most."""
LOOKED_AT = 64
"""Prompts that the rewards are tried on."""
SHOWN = 80
"""Characters of a completion to show."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    name: str
    state: str
    """``ok``, ``note`` or ``bad``."""
    detail: str


def open_trial(plan: CheckedRun) -> Session:
    """A session of the run, for few samples and one update. Raises `UserError` as `open_session`."""
    config = plan.config
    group = max(plan.algorithm.min_group, min(GROUP, config.data.group))
    data = config.data.model_copy(update={"prompts": min(PROMPTS, config.data.prompts), "group": group})
    train = config.train.model_copy(update={"updates": 1, "epochs": 1})
    return open_session(replace(plan, config=config.model_copy(update={"data": data, "train": train})))


def try_iteration(session: Session, plan: CheckedRun) -> Iterator[Finding]:
    """Sample, score and update once. Raises `UserError` for what stops a run."""
    timer = PhaseTimer()
    if not are_unscored(plan.config):  # else there is nobody to ask about what the policy makes
        with explain_out_of_memory(plan.config, "sample", timer):
            yield from _unscored(_one_sample(session, timer), session.rewards, plan)
    timer.collect()
    with explain_out_of_memory(plan.config, "update", timer):
        metrics, batch, _ = iterate(session, timer)
        metrics |= measure(session, batch, timer)
    seconds, count = timer.collect(), len(batch.samples)
    steps = plan.algorithm.sampler.forwards
    pace = seconds["time/sample"] / count
    yield Finding("samples", "ok", f"{pace:.2f} s per sample of {steps} steps in a batch of {count}")
    yield from _completions(batch, plan)
    yield from _scores(batch)
    RatioCheck().check(session, metrics)
    yield Finding("ratio", "ok", f"within {metrics[DEVIATION]:.1e} of 1 before the first update")
    yield from (Finding("ratio", "note", sentence) for sentence in RatioCheck().notes(session, metrics))
    verdicts = judge(session, metrics)
    healthy, *outside = Spoken().notes(verdicts) or ["not asked for (monitor.checks=0)"]
    yield Finding("self-checks", "ok", healthy)
    yield from (Finding("self-check", "note", sentence.removeprefix("self-check ")) for sentence in outside)
    yield Finding(
        "update", "ok", f"{seconds['time/update'] / count:.2f} s per sample, gradient {metrics['grad_norm']:.2g}"
    )


def _completions(batch: ScoredRollout, plan: CheckedRun) -> Iterator[Finding]:
    """What a language model says, since a wrong template or a missing end token shows at once."""
    texts, trace = batch.samples.completions, batch.rollout.trace
    if texts is None:
        return
    empty = sum(not text.strip() for text in texts)
    shown = repr(texts[0] if len(texts[0]) <= SHOWN else texts[0][:SHOWN] + "...")
    lengths = trace.mask.sum(dim=1).tolist() if isinstance(trace, TokenTrace) else []
    count = f"{min(lengths)} to {max(lengths)} tokens, " if lengths else ""
    detail = f"{count}{empty} of {len(texts)} empty; the first: {shown}"
    yield Finding("completion", "note" if empty else "ok", detail)
    causal = plan.algorithm.family == "causal"  # a masked model fills all its places
    if causal and isinstance(trace, TokenTrace) and trace.ended is not None and not bool(trace.ended.any()):
        yield Finding(
            "completion",
            "note",
            f"none of {counted(len(texts), 'completions')} reached its end token within {trace.mask.shape[1]} tokens: "
            "raise algorithm.sampler.length, or look whether the prompt asks for less and the template fits the model",
        )


def _scores(batch: ScoredRollout) -> Iterator[Finding]:
    scores = batch.scores
    for name, column in zip(scores.names, scores.rewards.T, strict=True):
        values = ", ".join(f"{value:.3g}" for value in column[: PROMPTS * GROUP].tolist())
        yield Finding(f"reward {name}", "note" if bool(column.isnan().any()) else "ok", f"scores {values}")
    total, group = scores.total[scores.valid], scores.group[scores.valid]
    spread = [float(total[group == one].std(correction=0)) for one in group.unique()]
    if spread and not any(value > 0 for value in spread):
        yield Finding(
            "signal",
            "note",
            f"all samples of a prompt score alike ({counted(len(spread), 'prompts')} tried), and advantages compare "
            "them, so nothing would be learned of these: take prompts that the model solves sometimes, a finer reward, "
            "a larger data.group or a more random sampler",
        )


def _one_sample(session: Session, timer: PhaseTimer) -> Samples:
    prompt, seed = session.prompts.prompts[:1], torch.zeros(1, dtype=torch.int64)
    draw = Draw.of(seed, torch.zeros(1, dtype=torch.int64), 0, 0, prompt)
    sampler = session.algorithm.sampler.heldout(None, None, None)
    return session.sample_and_decode(draw, sampler, LIVE, 1, timer)[1]


def _unscored(sample: Samples, rewards: Rewards, plan: CheckedRun) -> Iterator[Finding]:
    """Prompts that a reward cannot score, whatever is made of them: tried with one sample for many prompts."""
    prompts = _spread(plan.train.prompts)
    images = None if sample.images is None else sample.images.expand(len(prompts), *sample.images.shape[1:])
    texts = None if sample.completions is None else list(sample.completions) * len(prompts)
    said = None if sample.feedback is None else sample.feedback.expand(len(prompts), *sample.feedback.shape[1:])
    found = rewards.raw(Samples(prompts, images, texts, said), torch.arange(len(prompts)))
    needs = {row.name: row.needs for row in list_rewards()}
    for reward, column in zip(rewards.rewards, found.T, strict=True):
        missing = column.isnan().nonzero()[:, 0].tolist()
        if missing and not reward.applies:
            wanted = needs.get(reward.name)
            example = f"cannot score {len(missing)} of {counted(len(prompts), 'prompts')}, such as "
            yield Finding(
                f"reward {reward.name}",
                "note",
                f"{example}{prompts[missing[0]].text!r}" + (f"; it needs {'; '.join(wanted)}" if wanted else ""),
            )


def _spread(prompts: Sequence[Prompt]) -> list[Prompt]:
    count = min(LOOKED_AT, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]

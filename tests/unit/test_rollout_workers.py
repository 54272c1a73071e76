"""Rollout workers: what travels, and that a run with two actors of Ray is the run without."""

from __future__ import annotations

import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from flowrl.clients.rollouts import RolloutWorkers, rollout_workers
from flowrl.clients.transfer import pack, pack_draw, pack_rollout, unpack_draw, unpack_rollout
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.parts.diagnostics import DEVIATION, MISMATCH, MISMATCH_MAX
from flowrl.ratio_check import RatioCheck
from flowrl.remote.rollout_actor import RolloutActor
from flowrl.runtime.timing import PhaseTimer
from flowrl.samplers.chunks import take
from flowrl.session import Session, open_session
from flowrl.startup.preflight import check_run
from flowrl.step import improve
from flowrl.train import iterate
from flowrl.types import Chat, Draw, Prompt, Rollout
from tests.launching import PATHS
from tests.training import config_of


def values_of(preset: str, out: Path, **changes: Any) -> dict[str, Any]:
    base = "shapes" if preset == "flow_grpo" else "countdown"
    group = 2 if base == "shapes" else 4
    # A batch of the sampler is a group, so that batches are the same however groups are shared out.
    values = config_of(preset, base, data__prompts=3, train__sample_batch=group, data__test=None, **changes)
    return {**values, "out": str(out)}


def opened(values: dict[str, Any]) -> Session:
    return open_session(check_run(Config.of(values)))


def equal(one: Rollout, other: Rollout) -> None:
    for record, wanted in ((one, other), (one.trace, other.trace)):
        for field in fields(wanted):  # pyright: ignore
            if field.name in ("condition", "trace"):
                continue
            found, value = getattr(record, field.name), getattr(wanted, field.name)
            if isinstance(value, torch.Tensor):
                assert found.dtype == value.dtype and torch.equal(found, value), field.name
            else:
                assert found == value, field.name


@pytest.mark.parametrize("preset", ["flow_grpo", "grpo"])
def test_a_rollout_travels_bit_for_bit(preset: str, tmp_path: Path) -> None:
    session = opened(values_of(preset, tmp_path))
    _, batch, _ = iterate(session, PhaseTimer())
    session.rewards.close()
    made = replace(batch.rollout, version=3)
    sampler = session.algorithm.sampler
    equal(unpack_rollout(*pack_rollout(made), made.condition, sampler, torch.device("cpu")), made)


def test_a_draw_travels_with_conversations_and_columns() -> None:
    chat = Chat.of([{"role": "user", "content": "1 + 1?"}])
    prompts = [Prompt("a", 4, {"answer": [1, 2.5, None]}), Prompt("b", 2, {}, chat)]
    draw = Draw.of(torch.tensor([2**62, 5]), torch.tensor([0, 1]), 7, 2**61, prompts)
    found = unpack_draw(*pack_draw(draw))
    assert found.prompts == draw.prompts and (found.iteration, found.shared_seed) == (7, 2**61)
    assert all(torch.equal(getattr(found, key), getattr(draw, key)) for key in ("seeds", "group", "place"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rollouts__ray": {"num_gpus": 1}}, r"rollouts\.workers is 0"),
        ({"rollouts__workers": 1, "rollouts__ray": {"gpus": 1}}, r"no key 'gpus'; did you mean 'num_gpus'"),
        ({"rollouts__workers": 1, "model__shard": "fsdp"}, r"model\.shard=\w+ splits the weights"),
    ],
)
def test_workers_that_cannot_be_are_a_sentence(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        check_run(Config.of(values_of("flow_grpo", tmp_path, **changes)))


def test_the_first_step_tells_how_far_workers_are_from_the_trainer(tmp_path: Path) -> None:
    measured = {DEVIATION: 2e-5, MISMATCH: 0.001, MISMATCH_MAX: 0.004, "sampling/version": 0.0}
    for preset, told in (
        ("flow_grpo", "replayed by the trainer, have ratios within 2e-05 of 1"),
        ("grpo", "0.004 at most"),
    ):
        session = opened(values_of(preset, tmp_path))
        metrics = measured if preset == "grpo" else {DEVIATION: 2e-5, "sampling/version": 0.0}
        assert RatioCheck().notes(session, metrics) == [], "no workers, nothing to compare"
        session.workers = cast(RolloutWorkers, object())
        watch = RatioCheck()
        (said,) = watch.notes(session, metrics)
        assert told in said and "the rollout workers" in said and watch.notes(session, metrics) == []
        session.rewards.close()


class FakeRay:
    """Answers are made where they are asked for, in this process."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def put(self, value: Any) -> Any:
        return value

    def get(self, call: Any, timeout: float) -> Any:
        name, answer = call
        self._events.append(f"waited for {name}")
        return answer


def workers_of(ray: FakeRay, actors: list[Any]) -> RolloutWorkers:
    workers = object.__new__(RolloutWorkers)
    workers.__dict__ |= {"_ray": ray, "_timeout": 9.0, "_actors": actors, "_sent": None, "_begun": None}
    return workers


@pytest.mark.parametrize("preset", ["flow_grpo", "grpo"])
def test_what_a_worker_made_is_scored_while_the_next_is_waited_for(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(values_of(preset, tmp_path))
    _, batch, _ = iterate(session, PhaseTimer())
    whole, events = batch.rollout, list[str]()

    def actor(name: str) -> Any:
        def remote(header: str, numbers: bytes, share: list[int], rows: int, memory: Any) -> Any:
            part = take(whole, torch.tensor(share))
            decoded = session.policy.decode(part.final)
            images = pack({"images": decoded}) if isinstance(decoded, torch.Tensor) else None
            return name, (*pack_rollout(part), images, None if images else decoded)

        return SimpleNamespace(sample=SimpleNamespace(remote=remote))

    session.workers = workers_of(FakeRay(events), [actor("a"), actor("b")])
    draw = Draw.of(whole.seeds, whole.group, 0, 0, batch.samples.prompts)
    with session.rewards.scoring(draw.group) as scoring:
        add = scoring.add
        monkeypatch.setattr(scoring, "add", lambda samples: (events.append(f"scored {len(samples)}"), add(samples)))
        made, samples = session.sample_and_decode(draw, session.algorithm.sampler, "live", 2, PhaseTimer(), scoring)
        scores = scoring.finish()
    session.rewards.close()
    each = len(draw) // 3
    assert events == ["waited for a", f"scored {2 * each}", "waited for b", f"scored {each}"]
    assert torch.equal(made.final, whole.final) and torch.equal(made.seeds, whole.seeds)
    assert len(samples) == len(draw) and torch.equal(scores.rewards, batch.scores.rewards)


class HereRay(FakeRay):
    """Actors that sample where they are called, in this process."""

    def get(self, call: Any, timeout: float) -> Any:
        return call


class HereActor:
    """One of `HereRay`."""

    def __init__(self, values: dict[str, Any], events: list[str]) -> None:
        actor = RolloutActor(values)

        def sample(*given: Any) -> Any:
            events.append("begun")
            return actor.sample(*given)

        self.load = SimpleNamespace(remote=lambda version, weights: actor.load(version, weights))
        self.sample = SimpleNamespace(remote=sample)


def test_workers_sample_for_the_next_iteration_while_this_one_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = values_of(
        "flow_grpo", tmp_path, train__staleness=1, train__iterations=3, train__updates=1, optimizer__lr=0.01
    )
    events = list[str]()
    loop = sys.modules["flowrl.train"]
    monkeypatch.setattr(loop, "improve", lambda *given: (events.append("update"), improve(*given))[1])
    found = []
    for count in (0, 2):
        session = opened(values)
        if count:
            session.workers = workers_of(HereRay(events), [HereActor(values, events) for _ in range(count)])
        events.clear()
        made = [iterate(session, PhaseTimer())[:2] for _ in range(3)]
        session.rewards.close()
        found.append((made, session.policy.weights.sha256("live")))
    # Both workers begin iteration 1 before the update of 0, and 2 before that of 1; nothing is begun after the last.
    assert events == ["begun", "begun", *["begun", "begun", "update"] * 2, "update"]
    for (metrics, batch), (others, other) in zip(found[0][0], found[1][0], strict=True):
        equal(other.rollout, batch.rollout)
        assert others["loss"] == metrics["loss"] and other.rollout.version == batch.rollout.version
    assert found[0][1] == found[1][1]


@pytest.mark.slow
def test_two_actors_make_the_run_that_one_process_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="the extra ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([PATHS, os.environ.get("PYTHONPATH", "")]))
    place = {"workers": 2, "ray": {"address": "local", "num_cpus": 0.1}}
    try:
        for preset, staleness in (("flow_grpo", 0), ("grpo", 0), ("flow_grpo", 1)):
            found = []
            for rollouts in ({}, place):
                values = values_of(preset, tmp_path / preset, optimizer__lr=0.01, train__staleness=staleness)
                session = opened({**values, "rollouts": rollouts})
                with rollout_workers(session.config) as session.workers:
                    made = [iterate(session, PhaseTimer())[:2] for _ in range(2 + staleness)]
                session.rewards.close()
                found.append((made, session.policy.weights.sha256("live")))
            (alone, weights), (shared, theirs) = found
            for (metrics, batch), (others, other) in zip(alone, shared, strict=True):
                equal(other.rollout, batch.rollout)
                assert others["loss"] == metrics["loss"] and torch.equal(other.scores.rewards, batch.scores.rewards)
            assert weights == theirs
    finally:
        ray.shutdown()

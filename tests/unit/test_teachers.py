"""Frozen policies that a policy is compared with: weight sets, peers, panels, and where they are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flowrl.commands.train import planned
from flowrl.config import Config
from flowrl.config.listing import config_lines
from flowrl.config.overrides import apply_overrides, read_overrides
from flowrl.config.teacher import every_teacher
from flowrl.errors import UserError
from flowrl.models import export_policy
from flowrl.models.teachers import Guided, Panel, Peer
from flowrl.models.tiny_flow import TinyFlow
from flowrl.session import open_session
from flowrl.startup.inputs import fingerprint_inputs
from flowrl.startup.policies import open_policy
from flowrl.startup.preflight import check_run
from flowrl.types import Prompt, PromptRows
from tests.contract.toys import MODES, disturb
from tests.training import Processes, Trained, Work, apart, config_of, drift, train

TO_TEACHER = {"use": "KLInReward", "to": "teacher", "weight": 1.0, "whiten": False}
RUNS: dict[str, dict[str, Any]] = {
    "countdown": {"preset": "reinforce_pp", "algorithm__token_advantage": [TO_TEACHER]},
    "shapes": {"preset": "flow_grpo", "algorithm__regularizers": [{"use": "KL", "to": "teacher", "weight": 1.0}]},
}


def values(base: str, folder: Path, teacher: dict[str, Any], **changes: Any) -> dict[str, Any]:
    keys = dict(RUNS[base])
    found = config_of(keys.pop("preset"), base, teachers={"teacher": teacher}, **keys, **changes)
    return {**found, "out": str(folder / "run")}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An adapter of each world, that of a disturbed policy."""
    found = {}
    for base, keys in RUNS.items():
        folder = tmp_path_factory.mktemp(base)
        policy = open_policy(Config.of({**config_of(keys["preset"], base), "out": str(folder)}))
        disturb(policy, 0.02)
        export_policy(policy, folder / "adapter", "peft")
        found[base] = str(folder / "adapter")
    return found


@pytest.mark.parametrize("base", ["countdown", pytest.param("shapes", marks=pytest.mark.slow)])
def test_a_peer_and_a_weight_set_give_one_gradient(base: str, adapters: dict[str, str], tmp_path: Path) -> None:
    """The same adapter beside the policy, and on a second copy of the model."""

    def run(teacher: dict[str, Any]) -> Trained:
        return train(values(base, tmp_path, teacher), Work(1))

    own, peer = run({"adapter": adapters[base]}), run({"path": base, "adapter": adapters[base]})
    base_alone = run({"path": base})
    assert own.gradients[0].norm() > 0
    assert apart(peer.gradients[0], own.gradients[0]) < 1e-4
    assert apart(base_alone.gradients[0], own.gradients[0]) > 1e-2
    assert own.state is not None and not [name for name in own.state[0] if "teacher" in name]
    if base == "shapes":
        assert own.metrics[0]["kl/teacher"] > 10 * base_alone.metrics[0]["kl/teacher"]


@pytest.mark.slow
def test_a_run_goes_on_with_its_teacher(adapters: dict[str, str], tmp_path: Path) -> None:
    made = values("countdown", tmp_path, {"adapter": adapters["countdown"]})
    whole, half = train(made, Work(2)), train(made, Work(1))
    again = train(made, Work(2, start=half.state))
    assert torch.equal(again.weights[-1], whole.weights[-1])


def test_a_teacher_is_frozen_and_leaves_no_trace(adapters: dict[str, str], tmp_path: Path) -> None:
    """The policy starts where it did, whatever was read beside it; the teacher's weights never move."""
    made = values("countdown", tmp_path, {"adapter": adapters["countdown"]})
    plain = open_policy(Config.of(made))
    session = open_session(check_run(Config.of(made)))
    session.rewards.close()
    policy = session.policy
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), plain.parameters(), strict=True))
    assert policy.weights.sha256("teacher") != policy.weights.sha256("live") == plain.weights.sha256("live")
    with pytest.raises(ValueError, match="teacher's"):
        policy.update_ema("teacher", 0.5)
    with pytest.raises(ValueError, match="already"):
        policy.weights.keep_frozen("teacher")
    assert any("frozen weight set" in note for note in session.notes)
    peer = values("countdown", tmp_path, {"path": "countdown", "dtype": "float32"})
    opened = open_session(check_run(Config.of(peer)))
    opened.rewards.close()
    asked = opened.policy.teachers["teacher"]
    assert isinstance(asked, Peer) and not any(p.requires_grad for p in asked.policy.parameters())
    assert asked.policy.weights.names() == ["live"]
    inputs = fingerprint_inputs(Config.of(made), session.prompts, None)
    assert "teachers.teacher.adapter" in inputs


def test_rows_are_taught_by_the_member_of_their_domain() -> None:
    prompts = [Prompt("a", 0, {"task": "x"}), Prompt("b", 1, {"task": "y"}), Prompt("a", 2, {"task": "y"})]
    policy = TinyFlow(MODES, prompts=("a", "b"))
    peer = TinyFlow(MODES, prompts=("a", "b"))
    disturb(peer, 0.3)
    disturb(policy, 0.2)
    policy.weights.keep_frozen("domain.x")
    disturb(policy, 0.1)
    policy.teachers = {"domain": Panel("task", {"x": "domain.x", "y": "domain.y"}), "domain.y": Peer(peer, 2.0)}
    condition: Any = Told(policy.condition(prompts), PromptRows.of(prompts))
    x, t = torch.randn(3, 2), torch.tensor([0.2, 0.5, 0.9]).double()
    with policy.using("domain") as teacher:
        found = teacher.velocity(x, t, condition, guidance=1.0)
    with policy.using("domain.x") as teacher:
        own = teacher.velocity(x, t, condition)
    other = peer.velocity(x, t, peer.condition(prompts), guidance=2.0)
    assert torch.allclose(found[:1], own[:1]) and torch.allclose(found[1:], other[1:]) and not found.requires_grad
    guided = Guided("domain.x", 3.0).asked_by(policy).velocity(x, t, condition, guidance=1.0)
    with policy.using("domain.x"):
        assert torch.allclose(guided, policy.velocity(x, t, condition, guidance=3.0))
    with pytest.raises(UserError, match="'z' in the column 'task'"):
        Panel("task", {"x": "domain.x"}).check([Prompt("a", 0, {"task": "z"})])


class Told:
    """A toy's condition that knows its prompts."""

    def __init__(self, inner: Any, origin: PromptRows) -> None:
        self.index, self.origin, self.inner = inner.index, origin, inner

    def take(self, rows: torch.Tensor) -> Told:
        return Told(self.inner.take(rows), self.origin.take(rows))


WRONG = {
    "nothing in this algorithm compares": {"teachers": {"other": {"adapter": "x/y"}}},
    "cannot be a teacher's name": {"teachers": {"ema": {"adapter": "x/y"}}},
    "give path or adapter": {"teachers": {"teacher": {}}},
    "column chooses one of members": {"teachers": {"teacher": {"members": {"a": {"adapter": "x"}}}}},
    "every member needs": {"teachers": {"teacher": {"column": "task", "members": {"a": {}}}}},
    "which no member teaches": {"teachers": {"teacher": {"column": "task", "members": {"a": {"path": "countdown"}}}}},
    "teachers.teacher: path: there is no folder ./nowhere": {"teachers": {"teacher": {"path": "./nowhere"}}},
    "teachers.teacher: there is no adapter": {"teachers": {"teacher": {"adapter": "./nowhere"}}},
    "has no causal model": {"teachers": {"teacher": {"path": "shapes"}}},
    "guidance means nothing": {"teachers": {"teacher": {"path": "countdown", "guidance": 2.0}}},
}


@pytest.mark.parametrize("said", WRONG)
def test_what_does_not_fit_is_said_before_a_model_is_loaded(said: str, tmp_path: Path) -> None:
    made = {**values("countdown", tmp_path, {"path": "countdown"}), **WRONG[said]}
    with pytest.raises(UserError, match=said):
        check_run(Config.of(made))


def test_an_adapter_of_another_rank(adapters: dict[str, str], tmp_path: Path) -> None:
    made = values("countdown", tmp_path, {"adapter": adapters["countdown"]}, model__lora={"rank": 2})
    with pytest.raises(UserError, match="as its path as well"):
        open_session(check_run(Config.of(made)))


def test_other_vocabularies_are_refused(tmp_path: Path) -> None:
    made = values("countdown", tmp_path, {"path": "sudoku"})
    with pytest.raises(UserError, match=r"teachers.teacher: .*(tokenizer|family|model)"):
        open_session(check_run(Config.of(made)))


def test_whole_distributions_need_a_whole_vocabulary_layer(tmp_path: Path) -> None:
    made = config_of("gkd", "countdown", teachers={"teacher": {"path": "countdown"}}, algorithm__on_policy=1.0)
    made["model"]["shard"] = "fsdp"
    with pytest.raises(UserError, match=r"estimator\.divergence keeps"):
        check_run(Config.of({**made, "out": str(tmp_path)}))


def test_a_plan_names_the_teachers(adapters: dict[str, str], tmp_path: Path) -> None:
    for teacher, said in (({"adapter": adapters["countdown"]}, "a weight set"), ({"path": "countdown"}, "its own")):
        run = check_run(Config.of(values("countdown", tmp_path, teacher)))
        assert said in dict(planned(run, tmp_path / "x.yaml"))["teachers.teacher"]


def test_every_teacher_is_listed() -> None:
    made = config_of("reinforce_pp", "countdown", teachers={
        "one": {"path": "countdown"},
        "panel": {"column": "task", "members": {"a": {"adapter": "x/y"}}},
    })  # fmt: skip
    lines = {line.key: line for line in config_lines(Config.of(made))}
    assert lines["teachers.one.path"].value == "countdown" and lines["teachers.one.device"].origin == "default"
    assert lines["teachers.panel.members.a.adapter"].origin == "set"
    assert Config.of(yaml.safe_load(Config.of(made).to_yaml())) == Config.of(made)
    with_one = Config.of(apply_overrides(made, read_overrides(["teachers.one.device=cpu"])))
    assert with_one.teachers["one"].device == "cpu"
    listed = [(key, name) for key, name, _ in every_teacher(Config.of(made).teachers)]
    assert listed == [("teachers.one", "one"), ("teachers.panel.members.a", "panel.a")]


SMALL = {"gkd": {"algorithm__on_policy": 1.0}, "minillm": {"algorithm__gamma": 0.5}}
PRESETS = [*(f"{name}@countdown" for name in ("gkd", "opd", "vopd", "iw_opd", "minillm")),
           *(f"{name}@shapes" for name in ("flow_opd", "diffusion_opd"))]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_two_iterations_of_a_preset(name: str, adapters: dict[str, str], tmp_path: Path) -> None:
    preset, base = name.split("@")
    made = config_of(preset, base, teachers={"teacher": {"adapter": adapters[base]}}, **SMALL.get(preset, {}))
    found = train({**made, "out": str(tmp_path)}, Work(2, evaluate=True))
    assert all(float(gradient.norm()) > 0 for gradient in found.gradients) and len(found.gradients) == 4
    assert found.metrics[0]["ratio/first_max_deviation"] < 1e-4 and found.heldout


@pytest.mark.slow
def test_two_processes_have_the_teachers_of_one(adapters: dict[str, str]) -> None:
    """A peer, and a panel of an adapter and a peer, that processes ask unequally often."""
    panel = {"column": "tag", "members": {"3": {"adapter": adapters["countdown"]}, "4": {"path": "countdown"}}}
    with Processes(2) as team:
        for preset, teacher in (("gkd", {"path": "countdown", "adapter": adapters["countdown"]}), ("vopd", panel)):
            made = config_of(preset, "countdown", teachers={"teacher": teacher}, **SMALL.get(preset, {}))
            made["train"] |= {"iterations": 2}
            one, two = (team.train(size, made, Work(2)) for size in (1, 2))
            first, worst, weights = drift(two[0], one[0])
            assert first < 5e-6 and worst < 5e-5 and weights < 1e-5
            assert torch.equal(two[0].weights[-1], two[1].weights[-1])

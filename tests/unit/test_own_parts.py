"""Parts and presets of a user's own: named in a config, checked before anything is loaded, described, remembered."""

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from flowrl.algorithms.flow_grpo import flow_grpo
from flowrl.composition import SLOTS, build, describe, own_code, part_name, shipped_parts
from flowrl.composition.contract import FAMILY_OF, check_class, check_values, family_of
from flowrl.config import Config
from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.startup.inputs import changed_inputs, fingerprint_inputs
from flowrl.startup.policies import origin

MINE = '''
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from flowrl.algorithms.flow_grpo import flow_grpo
from flowrl.estimators.times import UniformTimes
from flowrl.estimators.transitions import Transitions
from flowrl.estimators.views import FullMask
from flowrl.parts.companions import Companion
from flowrl.parts.ema import Ema, Ramp
from flowrl.parts.objectives import Clipped, ObjectiveDefaults
from flowrl.parts.regularizers import KL
from flowrl.parts.selections import AllSamples
from flowrl.parts.token_advantages import GAE
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.replayed import OldGroups
from flowrl.samplers.windows import EveryStep


@dataclass(frozen=True)
class MyObjective(ObjectiveDefaults):
    """The plain ratio."""

    strength: float = 1.0

    def __call__(self, likelihood, batch):
        return -self.strength * batch.advantage * (likelihood.logp - batch.old.logp).exp()


@dataclass(frozen=True)
class MyAdvantage:
    scale: float

    def __call__(self, scores, memory):
        return self.scale * scores.total


@dataclass(frozen=True)
class MyNoise:
    level: float = 0.5

    def __post_init__(self):
        if self.level < 0:
            raise ValueError(f"level={self.level} is no noise; give 0 or more")
        1 / (self.level - 5)

    def coefficients(self, t, t_next):
        return torch.ones_like(t), t_next - t, self.level * (t - t_next).sqrt()


@dataclass(frozen=True)
class MyWeight:
    def __call__(self, table):
        return torch.ones(table.mask.shape, dtype=torch.float64)


@dataclass(frozen=True)
class MyPenaltyWeight:
    def __call__(self, scores, memory):
        return torch.ones(len(scores.group), dtype=torch.float64)


@dataclass(frozen=True)
class MyMask:
    coupled: ClassVar[bool] = False

    def __call__(self, live, batch):
        return torch.ones_like(live.logp)


@dataclass(frozen=True)
class MySum:
    def __call__(self, gram):
        return torch.ones(len(gram), dtype=torch.float64)


@dataclass(frozen=True)
class MyCoefficient:
    sets: str = "objective.high"

    def __call__(self, value, metrics, iteration):
        return value


@dataclass(frozen=True)
class MyMean:
    def __call__(self, mask, unit=1, source=None):
        return mask / mask.sum()


@dataclass(frozen=True, kw_only=True)
class MySampler(FlowSampler):
    """As its parent."""


@dataclass(frozen=True)
class MyTransitions(Transitions): ...
@dataclass(frozen=True)
class MyWindow(EveryStep): ...
@dataclass(frozen=True)
class MyTimes(UniformTimes): ...
@dataclass(frozen=True, kw_only=True)
class MyViews(FullMask): ...
@dataclass(frozen=True)
class MyGAE(GAE): ...
@dataclass(frozen=True)
class MySelection(AllSamples): ...
@dataclass(frozen=True, kw_only=True)
class MyReplay(OldGroups): ...
@dataclass(frozen=True)
class MyKL(KL): ...
@dataclass(frozen=True)
class MyEma(Ema): ...
@dataclass(frozen=True)
class MyRamp(Ramp): ...


@dataclass(frozen=True, kw_only=True)
class MyCompanion(Companion):
    """My further weights."""


def my_preset(strength: float = 1.0):
    """My way of doing it."""
    return replace(flow_grpo(kl=0.0), objective=MyObjective(strength))
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


SPECS = {
    "sampler": {"use": "flow_grpo", "sampler": "mine.py:MySampler"},
    "dynamics": {"use": "flow_grpo", "sampler": {"dynamics": "mine.py:MyNoise"}},
    "window": {"use": "flow_grpo", "sampler": {"window": "mine.py:MyWindow"}},
    "estimator": {"use": "flow_grpo", "estimator": "mine.py:MyTransitions"},
    "views": {"use": "diffu_grpo", "estimator": {"views": "mine.py:MyViews"}},
    "times": {"use": "awm", "estimator": {"times": "mine.py:MyTimes"}},
    "advantage": {"use": "flow_grpo", "advantage": {"use": "mine.py:MyAdvantage", "scale": 2}},
    "token_advantage": {"use": "ppo", "token_advantage": ["mine.py:MyGAE"]},
    "selection": {"use": "flow_grpo", "selection": "mine.py:MySelection"},
    "replay": {"use": "flow_grpo", "replay": {"use": "mine.py:MyReplay", "groups": 2}},
    "loss_weight": {"use": "flow_grpo", "loss_weight": "mine.py:MyWeight"},
    "penalty_weight": {"use": "flow_grpo", "penalty_weight": "mine.py:MyPenaltyWeight"},
    "loss_masks": {"use": "flow_grpo", "loss_masks": ["mine.py:MyMask"]},
    "combination": {"use": "flow_grpo", "combination": "mine.py:MySum"},
    "coefficients": {"use": "flow_grpo", "coefficients": ["mine.py:MyCoefficient"]},
    "objective": {"use": "flow_grpo", "objective": {"use": "mine.py:MyObjective", "strength": 3}},
    "demonstrations": {"use": "chord", "objective": {"demonstrations": "mine.py:MyObjective"}},
    "regularizers": {"use": "flow_grpo", "regularizers": "mine.py:MyKL"},
    "aggregation": {"use": "flow_grpo", "aggregation": "mine.py:MyMean"},
    "ema_weights": {"use": "flow_grpo", "ema_weights": [{"use": "mine.py:MyEma", "name": "old"}]},
    "companions": {
        "use": "dmd2",
        "companions": [{"use": "mine.py:MyCompanion", "name": "fake", "estimator": "matching"}],
    },
    "decay": {"use": "flow_grpo", "ema_weights": [{"use": "ema", "name": "old", "decay": "mine.py:MyRamp"}]},
}


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("slot", SLOTS)
def test_every_slot_takes_a_class_of_a_file(slot: str) -> None:
    algorithm = build(SPECS[slot])
    described = describe(algorithm)
    assert f"'use': 'mine.py:{_named(slot)}'" in str(described)
    assert build(SPECS[slot]) == algorithm, "one text is one class"
    keys = own_code(SPECS[slot])
    assert [str(place) for place in keys.values()] == [f"mine.py:{_named(slot)}"]
    with pytest.raises(
        UserError, match=r"there is no 'nothing'(; known: |; did you|, and none comes).*give path\.py:Class"
    ):
        build(_with_other_name(SPECS[slot]))
    with pytest.raises(UserError, match=r"mine\.py:\w+ is somebody's code, which is not run from here"):
        build(SPECS[slot], trusted=False)


def _with_other_name(value: object) -> dict[str, object]:
    return ast.literal_eval(re.sub(r"mine\.py:\w+", "nothing", repr(value)))


def _named(slot: str) -> str:
    text = str(SPECS[slot])
    return text.partition("mine.py:")[2].partition("'")[0]


@pytest.mark.usefixtures("mine")
def test_options_and_neighbours_of_an_own_part() -> None:
    algorithm = build({"use": "flow_grpo", "sampler": {"steps": 6, "dynamics": {"use": "mine.py:MyNoise", "level": 1}}})
    assert algorithm.sampler.forwards == 6 and describe(algorithm.sampler)["dynamics"] == {  # type: ignore[index]
        "use": "mine.py:MyNoise",
        "level": 1.0,
    }


@pytest.mark.usefixtures("mine")
def test_a_preset_of_a_file() -> None:
    algorithm = build({"use": "mine.py:my_preset", "strength": 2, "selection": "all_samples"})
    assert describe(algorithm.objective) == {"use": "mine.py:MyObjective", "strength": 2.0}
    assert build("mine.py:my_preset").sampler == flow_grpo(kl=0.0).sampler
    with pytest.raises(UserError, match=r"algorithm\.strngth: no such option of mine\.py:my_preset; did you mean"):
        build({"use": "mine.py:my_preset", "strngth": 2})


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"objective": "mien.py:MyObjective"},
            r"algorithm\.objective: algorithm file mien\.py does not exist",
        ),
        ({"objective": "mine.py:MyObjectiv"}, r"has no function or class 'MyObjectiv'; did you mean 'MyObjective'"),
        ({"objective": "mine.py"}, r"algorithm\.objective: algorithm 'mine\.py': name the function or class in it"),
        ({"objective": "no.module:X"}, r"algorithm\.objective: .* module 'no\.module' cannot be imported"),
        (
            {"objective": {"use": "mine.py:MyObjective", "strngth": 1}},
            r"algorithm\.objective\.strngth: mine\.py:My",
        ),
        (
            {"objective": {"use": "mine.py:MyObjective", "strength": "big"}},
            r"algorithm\.objective\.strength: 'big'",
        ),
        ({"advantage": "mine.py:MyAdvantage"}, r"algorithm\.advantage: mine\.py:MyAdvantage needs scale"),
        (
            {"sampler": {"dynamics": {"use": "mine.py:MyNoise", "level": -1}}},
            r"dynamics: level=-1.* is no noise",
        ),
        (
            {"sampler": {"dynamics": {"use": "mine.py:MyNoise", "level": 5}}},
            r"ZeroDivisionError: .*mine\.py:\d+ in",
        ),
        (
            {"coefficients": [{"use": "mine.py:MyCoefficient", "sets": "objective.higher"}]},
            r"algorithm\.coefficients: a coefficient sets objective\.higher, and this algorithm has no higher there",
        ),
        ({"objective": "mine.py:MyAdvantage"}, r"mine\.py:MyAdvantage has no reference \(Weight set whose"),
        (
            {"advantage": "mine.py:MyMean"},
            r"MyMean\.__call__ takes \(self, mask, unit=1, source=None\), and is called as __call__\(sc",
        ),
        (
            {"advantage": "mine.py:MyObjective"},
            r"takes \(self, likelihood, batch\), and is called as __call__\(scores, m",
        ),
        ({"objective": "mine.py:my_preset"}, r"mine\.py:my_preset is no class; a part is a frozen dataclass"),
        ({"use": "mine.py:MyObjective"}, r"a preset is a function that returns an Algorithm"),
    ],
)
def test_what_is_wrong_is_one_sentence(spec: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build({"use": "flow_grpo", **spec})


CLASSES = [
    ("class A:\n    def __call__(self, likelihood, batch): ...", "is no frozen dataclass; write @dataclass"),
    ("@dataclass\nclass A(ObjectiveDefaults): ...", "is no frozen dataclass"),
    ("class A(Clipped):\n    mine: float = 1.0", "is no frozen dataclass"),
    ("@dataclass(frozen=True)\nclass A:\n    def __call__(self, likelihood, batch): ...",
     r"A has no reference \(Weight set whose likelihood it compares with.*write reference: ClassVar\[str\] ="),
    ("@dataclass(frozen=True)\nclass A(ObjectiveDefaults):\n    strength: float = 1.0",
     r"A has no method __call__\(likelihood, batch\) \(\[N, D\] loss per decision\); write def __call__\("),
    ("@dataclass(frozen=True)\nclass A(ObjectiveDefaults):\n    def __call__(self, likelihood): ...",
     r"A\.__call__ takes \(self, likelihood\), and is called as __call__\(likelihood, batch\)"),
    ("@dataclass(frozen=True)\nclass A(ObjectiveDefaults):\n    async def __call__(self, likelihood, batch): ...",
     "A.__call__ is async"),
    ("@dataclass(frozen=True)\nclass A(ObjectiveDefaults):\n    coupled: ClassVar[bool] = 'yes'\n"
     "    def __call__(self, likelihood, batch): ...", "coupled of A is 'yes': input should be a valid boolean"),
    ("@dataclass(frozen=True)\nclass A(ObjectiveDefaults):\n    clip_range = property(lambda self: 1 / 0)\n"
     "    def __call__(self, likelihood, batch): ...", r"objective\.clip_range: ZeroDivisionError.*x\.py:\d+"),
    ("@dataclass(frozen=True)\nclass A(ObjectiveDefaults):\n    x: 'Missing' = 1\n"
     "    def __call__(self, likelihood, batch): ...", "A has an annotation that means nothing: NameError"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), CLASSES)
def test_what_a_class_lacks_is_said_before_anything_is_loaded(tmp_path: Path, text: str, words: str) -> None:
    head = MINE.partition("@dataclass")[0]
    (tmp_path / "x.py").write_text(head + text + "\n")
    with pytest.raises(UserError, match=words) as caught:
        build({"use": "flow_grpo", "objective": f"{tmp_path}/x.py:A"})
    assert str(caught.value).startswith("algorithm.objective")


def test_a_preset_is_checked_to_its_last_part(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(
        MINE + "\n\n@dataclass(frozen=True)\nclass Bad:\n    pass\n\n\ndef bad():\n    return replace(flow_grpo(), "
        "sampler=FlowSampler(dynamics=Bad()))\n\n\ndef none(): ...\n\n\ndef raises():\n    return [][1]\n"
    )
    with pytest.raises(UserError, match=r"algorithm\.sampler\.dynamics: .*x\.py:Bad has no method coefficients\("):
        build(f"{tmp_path}/x.py:bad")
    with pytest.raises(UserError, match="returned None; a preset returns an Algorithm"):
        build(f"{tmp_path}/x.py:none")
    with pytest.raises(UserError, match=r"IndexError: list index out of range .*x\.py:\d+ in raises"):
        build(f"{tmp_path}/x.py:raises")


def test_a_sampler_or_estimator_says_which_models_it_is_for(tmp_path: Path) -> None:
    members = "forwards = recorded = 1\n    def heldout(self, steps, guidance, temperature): return self\n" \
        "    def __call__(self, policy, condition, draw): ...\n"  # fmt: skip
    file = tmp_path / "x.py"
    file.write_text(
        f"from dataclasses import dataclass\n@dataclass(frozen=True)\nclass A:\n    {members}\n"
        f"@dataclass(frozen=True)\nclass B:\n    family = 'masked'\n    {members}"
        f"@dataclass(frozen=True)\nclass C:\n    family = 'diffusion'\n    {members}"
    )
    with pytest.raises(UserError, match=r"algorithm\.sampler: .*x\.py:A does not say which models it is for"):
        build({"use": "flow_grpo", "sampler": f"{file}:A"})
    with pytest.raises(UserError, match=r"algorithm\.sampler: .*x\.py:B is for masked models, and flow_grpo trains"):
        build({"use": "flow_grpo", "sampler": f"{file}:B"})
    assert build({"use": "flow_grpo", "sampler": f"{file}:C"}).sampler.forwards == 1


@pytest.mark.parametrize("slot", SLOTS)
def test_what_comes_with_flowrl_keeps_the_contract(slot: str) -> None:
    protocol = SLOTS[slot].protocol
    for name, kind in shipped_parts(slot).items():
        check_class(kind, protocol, name, slot)
        said = inspect.getattr_static(kind, "family", None)  # a property where it is that of a sampler inside
        if slot in ("sampler", "estimator") and not isinstance(said, property):
            family = family_of(kind, name, slot)
            assert family == FAMILY_OF.get(kind.__module__, family)
        if all(f.default is not f.default_factory for f in dataclasses.fields(kind)):
            check_values(kind(), protocol, slot)


CONFIG = {"name": "x", "model": {"path": "shapes"}, "rewards": ["shapes"], "train": {"iterations": 1}}


def test_a_changed_file_is_noticed_and_a_comment_is_not(mine: Path) -> None:
    config = Config.of({**CONFIG, "algorithm": SPECS["objective"]})
    prompts = load_prompts("shapes:test")

    def inputs() -> dict[str, str]:
        return fingerprint_inputs(config, prompts, None)

    before = inputs()
    mine.write_text("# a remark\n" + MINE)
    assert inputs() == before and "algorithm.objective" in before
    mine.write_text(MINE.replace("-self.strength", "self.strength"))
    line = "algorithm.objective: the code, or a file it is given, was changed"
    assert changed_inputs({"inputs": before}, inputs()) == [line]


@pytest.mark.usefixtures("mine")
def test_an_export_names_nobodys_code() -> None:
    for slot in ("objective", "dynamics"):
        known = origin(Config.of({**CONFIG, "algorithm": SPECS[slot]}))
        assert known is not None and not own_code(known["algorithm"])
        heldout = build(SPECS[slot]).sampler.heldout(None, None, None)
        assert build(known["algorithm"], trusted=False).sampler == heldout
    assert origin(Config.of({**CONFIG, "algorithm": SPECS["sampler"]})) is not None, "its held-out form is ours"
    assert origin(Config.of({**CONFIG, "algorithm": "flow_grpo"}))["algorithm"] == "flow_grpo"  # type: ignore[index]


def test_names_of_own_classes(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(build(SPECS["objective"]).objective)
    assert part_name(kind) == "mine.py:MyObjective"
    monkeypatch.chdir("/")
    assert part_name(kind) == f"{str(mine).removeprefix('/')}:MyObjective"
    monkeypatch.chdir(Path(__file__).parent)
    assert part_name(kind) == f"{mine}:MyObjective"

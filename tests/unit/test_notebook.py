"""Training from Python: functions as rewards, what is recorded of them, callbacks, the live curve, runs as objects."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import flowrl
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.notebook import live_curve
from flowrl.notebook.training import name_functions
from flowrl.runtime.callbacks import Callbacks, Started
from flowrl.score.given import GivenReward
from flowrl.startup.preflight import check_run

FACTOR = 0.5
DIGITS = {"4", "2", "3", "1"}


def share(text: str) -> float:
    return FACTOR * sum(char in DIGITS for char in text) / 16


def digits(completions, prompts, **columns):
    """How much of an answer is digits."""
    return [share(text) for text in completions]


def quick(where: Path, **changes: Any) -> dict[str, Any]:
    """A run of two iterations on 4x4 Sudoku."""
    return {
        "name": "quick",
        "model": {"path": "sudoku", "full": True},
        "algorithm": {"use": "rloo", "length": 4},
        "data": {"train": "sudoku:train", "test": "sudoku:test", "prompts": 2, "group": 2},
        "optimizer": {"lr": 0.001},
        "train": {"iterations": 2, "updates": 1, "threads": 1},
        "eval": {"every": 1, "prompts": 2},
        "log": {"samples": 2, "samples_every": 1},
        "monitor": {"checks": 0},
        "out": str(where),
        **changes,
    }


class Listener:
    """Hears everything, without being a `flowrl.Callback`."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def start(self, run: Started) -> None:
        self.heard.append(("start", run.done, run.end))

    def iteration(self, metrics: dict[str, float]) -> None:
        self.heard.append(("iteration", metrics["step"], "loss" in metrics))
        metrics.clear()  # which is nobody else's

    def evaluation(self, metrics: dict[str, float]) -> None:
        self.heard.append(("evaluation", metrics["step"], "eval/digits/mean" in metrics))

    def samples(self, folder: Path) -> None:
        assert (folder / "samples.jsonl").is_file()
        self.heard.append(("samples", folder.parent.name, folder.name))

    def end(self, reason: str) -> None:
        self.heard.append(("end", reason))


class Failing(flowrl.Callback):
    def iteration(self, metrics: dict[str, float]) -> None:
        raise KeyError("missing")


class Stopping(flowrl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def evaluation(self, metrics: dict[str, float]) -> flowrl.Stop | None:
        return flowrl.Stop("good enough") if metrics["step"] == self.step else None


# ---------------------------------------------------------------- the source of functions


def test_the_record_holds_what_the_function_reads_of_its_module():
    reward = GivenReward.of(digits)
    assert reward.use == "callable:digits" and reward.file_name == "digits.py"
    assert "def digits(" in reward.record and "def share(" in reward.record
    assert "FACTOR = 0.5\n" in reward.record and "DIGITS = {'1', '2', '3', '4'}\n" in reward.record
    assert "pytest" not in reward.record and "class Listener" not in reward.record
    compile(reward.record, "record", "exec")


def test_the_fingerprint_is_that_of_the_code_and_of_the_constants(monkeypatch):
    before = GivenReward.of(digits).fingerprint
    assert before == GivenReward.of(digits).fingerprint is not None
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 0.25)
    assert GivenReward.of(digits).fingerprint != before


def test_objects_methods_partials_and_enclosing_variables_have_a_source():
    class Longer:
        def __init__(self, than: int) -> None:
            self.than = than

        def __call__(self, completions, prompts, **columns):
            return [share(text) > self.than for text in completions]

    def shifted(by):
        return lambda completions, prompts: [share(text) + by for text in completions]

    found = GivenReward.of(Longer(3))
    assert found.name == "Longer" and "class Longer" in found.record and "def share" in found.record
    assert GivenReward.of(functools.partial(digits, extra=1)).name == "digits"
    assert GivenReward.of(Longer(3).__call__).name == "__call__"
    inner = GivenReward.of(shifted(7))
    assert inner.name == "lambda" and "by = 7" in inner.record and "def share" in inner.record


def test_of_a_lambda_the_expression_alone_counts():
    first = GivenReward.of(lambda completions, prompts: [1.0 for _ in completions])
    again = [GivenReward.of(lambda completions, prompts: [1.0 for _ in completions]), "in another call"][0]
    assert isinstance(again, GivenReward) and first.fingerprint == again.fingerprint is not None
    two = [lambda completions, prompts: [0.0], lambda completions, prompts: [1.0]]
    assert GivenReward.of(two[0]).source is None  # which of the two it is, nobody can tell


def test_what_was_typed_has_no_source_and_the_record_says_so():
    typed: dict[str, Any] = {}
    exec("def typed(completions, prompts): return [1.0] * len(completions)", typed)
    reward = GivenReward.of(typed["typed"])
    assert reward.source is None and reward.fingerprint is None and "no source" in reward.record


# ---------------------------------------------------------------- from functions to a config


def test_functions_stand_beside_the_rewards_of_a_config():
    entries, given = name_functions(["sudoku", {"use": digits, "weight": 0.5, "name": "d"}, digits])
    assert entries == ["sudoku", {"use": "callable:d", "weight": 0.5}, {"use": "callable:digits"}]
    assert [reward.function for reward in given.values()] == [digits, digits]
    again, given = name_functions([*entries, digits])  # as in the config of a run
    assert again == entries and list(given) == ["callable:digits"]
    with pytest.raises(UserError, match="two functions are called digits"):
        name_functions([digits, {"use": digits, "weight": 2}])


def test_a_config_with_functions_needs_them(tmp_path):
    values = quick(tmp_path, rewards=["callable:digits"])
    with pytest.raises(UserError, match=r"'digits' is a Python function .* give it again, .*rewards=\[digits\]"):
        check_run(Config.of(values))
    given = {"callable:digits": GivenReward.of(digits)}
    assert check_run(Config.of(values), given).given == given
    with pytest.raises(UserError, match="process=true is for code in a file"):
        check_run(Config.of({**values, "rewards": [{"use": "callable:digits", "process": True}]}), given)


@pytest.mark.parametrize(
    ("config", "message"),
    [("quickstrat", "did you mean 'quickstart'"), (3, "not 3"), ({"name": "x"}, "algorithm"), ("no.yaml", "not exist")],
)
def test_what_is_no_config_is_told(config, message):
    with pytest.raises(UserError, match=message):
        flowrl.train(config)


def test_functions_and_callbacks_are_of_one_process(tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="'digits' is a function of one process, and this is rank 1 of 2"):
        flowrl.train(quick(tmp_path), rewards=[digits])
    with pytest.raises(UserError, match="callbacks are objects of one process"):
        flowrl.train(quick(tmp_path, rewards=["sudoku"]), callbacks=[Listener()])


@pytest.mark.parametrize("callback", [Listener, object(), "curve", digits])
def test_what_is_no_callback_is_told(callback):
    with pytest.raises(UserError, match="is no callback"):
        Callbacks([callback])


# ---------------------------------------------------------------- callbacks


def told(tmp_path: Path) -> Started:
    return Started(tmp_path, Config.of(quick(tmp_path, rewards=["sudoku"])), 0, 2)


def test_the_first_failure_ends_the_run_and_is_told_with_its_callback(tmp_path):
    listener = Listener()
    callbacks = Callbacks([Failing(), listener])
    with callbacks.told(told(tmp_path)):
        callbacks.publish({"step": 1, "loss": 0.0}, [])
        assert callbacks.stop is not None and callbacks.stop.save
        callbacks.publish({"step": 2, "loss": 0.0}, [])
    with pytest.raises(UserError, match=r"Failing.iteration: KeyError: 'missing' .*after iteration 2") as caught:
        callbacks.conclude("finished", 2)
    assert isinstance(caught.value.__cause__, KeyError)
    assert listener.heard == [("start", 0, 2), ("end", "callback Failing.iteration failed")]


@pytest.mark.parametrize("answer", [True, "stop", 0.5])
def test_a_callback_answers_with_stop_or_nothing(answer, tmp_path):
    class Odd(flowrl.Callback):
        def start(self, run: Started) -> Any:
            return answer

    callbacks = Callbacks([Odd()])
    with callbacks.told(told(tmp_path)):
        pass
    with pytest.raises(UserError, match=r"Odd.start: TypeError: it returned .*flowrl.Stop.*nothing was trained yet"):
        callbacks.conclude("finished", 0)


def test_callbacks_hear_why_a_run_ended_early(tmp_path):
    listener = Listener()
    with pytest.raises(UserError, match="boom"), Callbacks([listener]).told(told(tmp_path)):
        raise UserError("boom")
    assert listener.heard[-1] == ("end", "boom")


# ---------------------------------------------------------------- the live curve


def test_the_live_curve_prints_where_there_is_no_notebook(tmp_path, capsys):
    callbacks = Callbacks([curve := flowrl.LiveCurve()])
    with callbacks.told(told(tmp_path)):
        callbacks.publish({"step": 0, "eval/reward/mean": 0.25}, [])
        callbacks.publish({"step": 1, "reward/mean": 0.5, "reward/std": 0.125, "eval/reward/mean": 0.75}, [])
    callbacks.conclude("finished", 1)
    assert curve.train == [(1, 0.5, 0.125)] and curve.heldout == [(0, 0.25), (1, 0.75)]
    assert capsys.readouterr().out.splitlines() == [
        "quick 0/2: held-out reward 0.2500",
        "quick 1/2: reward 0.5000 (std 0.1250)",
        "quick 1/2: held-out reward 0.7500",
    ]


def test_the_curve_of_a_resumed_run_begins_where_the_run_did(tmp_path):
    lines = [{"step": 0, "eval/reward/mean": 0.25}, {"step": 1, "reward/mean": 0.5, "reward/std": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = flowrl.LiveCurve()
    curve.start(told(tmp_path))
    curve.iteration({"step": 2, "reward/mean": 0.75, "reward/std": 0.5})
    assert [point[:2] for point in curve.train] == [(1, 0.5), (2, 0.75)] and curve.heldout == [(0, 0.25)]


def test_in_a_notebook_one_picture_is_updated(tmp_path, monkeypatch, capsys):
    shown: list[Any] = []

    class Handle:
        def update(self, picture: Any) -> None:
            shown.append(("update", picture))

    class Display:
        @staticmethod
        def display(picture: Any, display_id: bool) -> Handle:
            shown.append(("display", picture))
            return Handle()

        @staticmethod
        def Image(data: bytes) -> bytes:  # noqa: N802
            return data

    class Shell:
        kernel = object()

    class IPython:
        @staticmethod
        def get_ipython() -> Shell:
            return Shell()

    monkeypatch.setitem(sys.modules, "IPython", IPython)
    monkeypatch.setitem(sys.modules, "IPython.display", Display)
    monkeypatch.setattr(live_curve, "REDRAW_S", 1000.0)
    monkeypatch.setattr(flowrl.LiveCurve, "picture", lambda curve: f"{len(curve.train)} points")
    callbacks = Callbacks([flowrl.LiveCurve("digits")])
    with callbacks.told(told(tmp_path)):
        for step in (1, 2, 3):
            callbacks.publish({"step": step, "reward/digits/mean": 0.5, "reward/digits/std": 0.1}, [])
    callbacks.conclude("finished", 3)
    assert shown == [("display", "1 points"), ("update", "3 points")]  # the first iteration, and the end
    assert not capsys.readouterr().out


@pytest.mark.slow
def test_the_picture_grows():
    curve = flowrl.LiveCurve()
    curve.train, curve.heldout = [(1, 0.25, 0.1)], [(0, 0.2)]
    before = curve.picture()
    curve.train.append((2, 0.5, 0.1))
    assert before.startswith(b"\x89PNG") and curve.picture() != before


# ---------------------------------------------------------------- whole runs


@pytest.mark.slow
def test_a_run_from_functions_is_recorded_and_resumed_with_them_alone(tmp_path):
    listener = Listener()
    run = flowrl.train(quick(tmp_path / "run"), rewards=[digits], callbacks=[listener])
    assert listener.heard == [
        ("start", 0, 2),
        ("evaluation", 0, True),
        ("samples", "heldout", "step_000000"),
        *(
            event
            for step in (1, 2)
            for event in (
                ("iteration", step, True),
                ("evaluation", step, True),
                ("samples", "samples", f"step_00000{step}"),
                ("samples", "heldout", f"step_00000{step}"),
            )
        ),
        ("end", "finished"),
    ]
    assert isinstance(run, flowrl.Run) and run.path == tmp_path / "run" and Path(run) == run.path
    assert [line["step"] for line in run.metrics] == [0, 1, 2] and len(run.column("reward/digits/mean")) == 2
    assert "def share(" in (run.path / "rewards/digits.py").read_text()
    assert yaml.safe_load((run.path / "config.yaml").read_text())["rewards"][0]["use"] == "callable:digits"
    assert "2 iterations, held-out reward" in repr(run)

    longer = ["train.iterations=3"]
    with pytest.raises(UserError, match=r"give it again, flowrl.train\(\.\.\., rewards=\[digits\]\)"):
        flowrl.train(run, overrides=longer, resume="auto")

    def other(completions, prompts, **columns):
        return [1.0] * len(completions)

    with pytest.raises(UserError, match=r"rewards\.callable:digits: the code"):
        flowrl.train(run, rewards=[{"use": other, "name": "digits"}], overrides=longer, resume="auto")
    again = flowrl.train(run, rewards=[digits], overrides=longer, resume="auto", callbacks=[more := Listener()])
    assert [line["step"] for line in again.metrics] == [0, 1, 2, 3] and more.heard[0] == ("start", 2, 3)
    texts = again.sample(["1.3..2.....4.2.1="], count=2)
    assert len(texts) == 2 and all(isinstance(text, str) for text in texts)
    assert again.sample("1.3..2.....4.2.1=", base=True) and again.load_policy().parameters()
    merged = again.export(tmp_path / "merged")
    assert (merged / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_callback_that_fails_or_stops_leaves_a_saved_run(tmp_path):
    with pytest.raises(UserError, match=r"Failing\.iteration: KeyError.*saved after iteration 1; go on with resume"):
        flowrl.train(quick(tmp_path / "fails"), rewards=[digits], callbacks=[Failing()])
    assert (tmp_path / "fails/checkpoints/step_000001/manifest.json").is_file()
    run = flowrl.train(quick(tmp_path / "fails"), rewards=[digits], resume="auto")
    assert run.metrics[-1]["step"] == 2
    run = flowrl.train(quick(tmp_path / "stops"), rewards=[digits], callbacks=[Stopping(1), listener := Listener()])
    assert run.metrics[-1]["step"] == 1 and listener.heard[-1] == ("end", "good enough")
    assert (run.path / "checkpoints/step_000001/manifest.json").is_file()
    run = flowrl.train(quick(tmp_path / "at_once"), rewards=[digits], callbacks=[Stopping(0)])
    assert [line["step"] for line in run.metrics] == [0] and not list((run.path / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_function_that_was_typed_is_accepted_and_said(tmp_path):
    code = (
        "import flowrl, sys; sys.argv = ['']\n"
        "exec('def typed(completions, prompts, **c): return [float(len(t)) for t in completions]')\n"
        f"flowrl.train({quick(tmp_path / 'run')!r}, rewards=[typed], until=1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "reward typed: Python keeps no source of it" in done.stderr
    assert "no source" in (tmp_path / "run/rewards/typed.py").read_text()

"""Runs survive what happens to them: killed saves, damaged files, full disks, two writers, interruptions."""

import errno
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import SafetensorError
from torch import Tensor

import flowrl
from flowrl.config import Config
from flowrl.errors import UserError, is_out_of_memory
from flowrl.parts.diagnostics import histogram
from flowrl.records import checkpoint, checkpoint_folder
from flowrl.records.directory import RunDirectory, spaced
from flowrl.records.sample_files import read_json_lines
from flowrl.runtime.display import Display
from flowrl.runtime.out_of_memory import explain_out_of_memory
from flowrl.runtime.ranks import ranks
from flowrl.runtime.signals import Interrupts
from flowrl.runtime.timing import PhaseTimer
from flowrl.startup.resume import changed_keys, start_or_resume
from flowrl.types import Prompt, Samples, Scores

CONFIG: dict[str, Any] = {
    "name": "t",
    "model": {"path": "shapes"},
    "algorithm": "flow_grpo",
    "rewards": ["shapes"],
    "train": {"iterations": 3},
}


def tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(6, 4, generator=generator)
    return {
        "a": base,
        "b/view": base[1:3],
        "half": base.bfloat16(),
        "step": torch.tensor(7),
        "rng": generator.get_state(),
    }


VALUES = {"lr": 0.1 + 0.2, "tiny": 5e-324, "big": 2**62 + 1, "memory": {"x": [1, 2.5, None, "é"]}}


def save(root: Path, step: int, metric: float | None = None, **options: Any) -> Path:
    def lora(folder: Path) -> None:
        folder.mkdir()
        (folder / "weights.txt").write_text(f"step {step}")

    metrics = {} if metric is None else {"m": metric}
    return checkpoint.save(root, step, tensors(step), VALUES, {"lora": lora}, metrics, best="m", **options)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


# ---- checkpoints


def test_checkpoint_is_exact(tmp_path: Path) -> None:
    loaded = checkpoint.load(save(tmp_path, 12, facts={"reference": "abc"}))
    assert loaded.step == 12 and loaded.values == VALUES and loaded.manifest["reference"] == "abc"
    for name, expected in tensors(12).items():
        assert loaded.tensors[name].dtype == expected.dtype and torch.equal(loaded.tensors[name], expected)
    assert set(loaded.manifest["files"]) == {"lora/weights.txt", "state/state.safetensors", "state/values.json"}
    assert (tmp_path / "latest").read_text() == "step_000012\n"


def test_latest_and_best_are_kept_and_others_removed(tmp_path: Path) -> None:
    for step, metric in enumerate([0.1, 0.9, math.nan, 0.3, 0.4, None], start=1):
        save(tmp_path, step, metric)
    assert names(tmp_path) == ["best", "latest", "step_000002", "step_000005", "step_000006"]
    best = checkpoint_folder.best(tmp_path)
    assert best is not None and best.name == "step_000002"


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1)
    checkpoint.save(tmp_path, 1, {"a": torch.ones(1)}, {"new": True}, {}, {})
    assert checkpoint.load(tmp_path / "step_000001").values == {"new": True}
    assert names(tmp_path) == ["latest", "step_000001"]


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


def _flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [_truncate, _flip_bit, Path.unlink])
@pytest.mark.parametrize("file", ["state/state.safetensors", "state/values.json", "lora/weights.txt", "manifest.json"])
def test_damage_is_found_named_and_survived(tmp_path: Path, harm: Any, file: str) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    harm(newest / file)
    if file == "manifest.json" and harm is Path.unlink:
        assert checkpoint_folder.latest(tmp_path) == tmp_path / "step_000001"  # it does not count as finished
        return
    with pytest.raises(UserError, match=rf"{Path(file).name}.*use --resume {tmp_path}/step_000001"):
        checkpoint.load(newest)
    with pytest.warns(UserWarning, match="skipping checkpoint"):
        assert checkpoint_folder.latest(tmp_path) == tmp_path / "step_000001"


def test_no_intact_checkpoint_left(tmp_path: Path) -> None:
    _truncate(save(tmp_path, 1) / "state/values.json")
    with pytest.raises(UserError, match="start again without --resume"):
        checkpoint.load(tmp_path / "step_000001")
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load(tmp_path / "step_000009")


def test_a_manifest_that_the_system_refuses_is_not_called_damaged(tmp_path: Path) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    (newest / "manifest.json").unlink()
    (newest / "manifest.json").mkdir()  # as unreadable to root as to anybody
    with pytest.raises(UserError, match=r"manifest.json cannot be read \(Is a directory\).*step_000001"):
        checkpoint.load(newest)


def test_what_the_system_says_to_safetensors_keeps_its_number_and_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save(tmp_path, 1)

    def raises(text: str) -> Any:
        def function(*_: Any) -> Any:
            raise SafetensorError(text)

        return function

    monkeypatch.setattr(checkpoint, "save_file", raises("I/O error: Permission denied (os error 13)"))
    with pytest.raises(PermissionError, match=r"state\.safetensors") as denied:
        save(tmp_path, 2)
    assert isinstance(denied.value.__cause__, SafetensorError)
    monkeypatch.setattr(checkpoint, "save_file", raises("I/O error: Disk quota exceeded (os error 122)"))
    with pytest.raises(UserError, match="no space left on the disk"):
        save(tmp_path, 2)
    monkeypatch.setattr(checkpoint, "load_file", raises("I/O error: Cannot allocate memory (os error 12)"))
    with pytest.raises(OSError) as full:
        checkpoint.load(saved)
    assert is_out_of_memory(full.value) and names(tmp_path) == ["best", "latest", "step_000001"][1:]
    monkeypatch.setattr(checkpoint, "load_file", raises("I/O error: Input/output error (os error 5)"))
    with pytest.raises(UserError, match=r"cannot be read: .*Input/output error"):
        checkpoint.load(saved)


def test_no_checkpoint_is_removed_while_the_best_is_unknown(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, metric=float(step == 1), keep=9)
    (tmp_path / "best").write_bytes(b"\xff\xfe")
    checkpoint_folder.prune(tmp_path, keep=1)
    assert [path.name for path in checkpoint_folder.finished(tmp_path)] == [f"step_{n:06d}" for n in (1, 2, 3)]
    (tmp_path / "best").write_text("step_000001\n")
    checkpoint_folder.prune(tmp_path, keep=1)
    assert [path.name for path in checkpoint_folder.finished(tmp_path)] == ["step_000001", "step_000003"]


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("sample", r"while sampling: lower train\.sample_batch="),
        ("monitor", r"while checking samples for alarms: lower monitor\.samples="),
        (None, r"while evaluating: lower train\.sample_batch="),
    ],
)
def test_running_out_of_memory_names_the_phase_that_failed(phase: str | None, words: str) -> None:
    timer, saved = PhaseTimer(), []
    explained = explain_out_of_memory(Config.of(CONFIG), "eval", timer, lambda: saved.append(1))
    with pytest.raises(UserError, match=words) as caught, explained:
        with timer("decode"):
            pass
        with timer(phase) if phase else nullcontext():
            raise MemoryError
    assert isinstance(caught.value.__cause__, MemoryError) and saved == [1]


@pytest.mark.parametrize("first", [MemoryError("4 TiB"), UserError("reward ocr raised KeyError")])
def test_a_failing_save_does_not_hide_what_came_first(first: Exception) -> None:
    def save() -> None:
        raise UserError("no space left on the disk of /run")

    words = "4 TiB" if isinstance(first, MemoryError) else "reward ocr raised KeyError"
    both = rf"{words}.*could not be saved: no space left on the disk of /run"
    with pytest.raises(UserError, match=both) as caught, explain_out_of_memory(Config.of(CONFIG), "update", save=save):
        raise first
    assert caught.value.__cause__ is first


def test_other_errors_pass_unsaved_and_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), explain_out_of_memory(Config.of(CONFIG), "update"):
        raise RuntimeError("shapes differ")


def test_a_file_system_without_locks_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(UserError, match=r"out: .*/run cannot be written to: No locks available") as caught:
        RunDirectory(tmp_path / "run").__enter__()
    assert isinstance(caught.value.__cause__, OSError)


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from flowrl.records import checkpoint
def dies(folder): os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save(Path(sys.argv[1]), 2, {"a": torch.ones(3)}, {}, {"lora": dies}, {})
"""


def test_kill_while_saving_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert any(name.startswith(".tmp-") for name in names(tmp_path))
    assert checkpoint_folder.latest(tmp_path) == tmp_path / "step_000001"
    checkpoint.load(tmp_path / "step_000001")
    checkpoint_folder.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["latest", "step_000001"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), UserError("it differs by .059"), RuntimeError("out of memory")]
)
def test_an_export_that_fails_costs_its_folder_only(tmp_path: Path, error: Exception) -> None:
    save(tmp_path, 1)

    def fails(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_text("half")
        raise error

    def works(folder: Path) -> None:
        folder.mkdir()
        (folder / "whole").write_text("whole")

    with pytest.warns(UserWarning, match=r"checkpoint 2 is saved without its export lora/: .*training goes on"):
        checkpoint.save(tmp_path, 2, {"a": torch.ones(3)}, {"x": 1}, {"lora": fails, "peft": works}, {})
    found = checkpoint.load(tmp_path / "step_000002")
    assert torch.equal(found.tensors["a"], torch.ones(3)) and found.values == {"x": 1}
    assert str(error) in found.manifest["not_exported"]["lora"] and set(found.manifest["not_exported"]) == {"lora"}
    assert names(found.path) == ["manifest.json", "peft", "state"]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs the right to mount")
def test_a_really_full_disk(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount here")
    try:
        save(tmp_path, 1)
        with pytest.raises(UserError, match="no space left"):
            checkpoint.save(tmp_path, 2, {"a": torch.ones(100_000)}, {}, {}, {})
        assert names(tmp_path) == ["latest", "step_000001"]
        checkpoint.load(tmp_path / "step_000001")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_other_errors_while_saving_clean_up_too(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 1, {}, {}, {"lora": interrupted}, {})
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, 1, {}, {"not JSON": object()}, {}, {})
    assert names(tmp_path) == []


# ---- run directory


def test_metrics_are_strict_json_and_survive_a_cut_line(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in range(1, 5):
        run.log({"step": step, "loss": math.nan if step == 2 else 0.1 + 0.2, "inf": math.inf})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4]
    assert run.metrics()[1] == {"step": 2, "loss": None, "inf": None} and run.metrics()[0]["loss"] == 0.1 + 0.2
    assert "NaN" not in run.metrics_path.read_text()
    run.rewind(2)
    run.log({"step": 3})
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]


def test_histograms_and_what_was_said_lie_beside_the_metrics(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        run.log({"step": step}, histograms={"reward": histogram(torch.tensor([0.0, 0.5, 1.0, math.nan, math.inf]))})
    run.rewind(2)
    lines = read_json_lines(run.histograms_path)
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["reward"] == {"low": 0.0, "high": 1.0, "counts": [1] + [0] * 11 + [1] + [0] * 10 + [1]}
    assert histogram(torch.full((4,), 2.5)) == {"low": 2.5, "high": 2.5, "counts": [4]}
    assert histogram(torch.tensor([math.nan])) == {"low": 0.0, "high": 0.0, "counts": []}
    run.say("loading")
    assert read_json_lines(run.log_path)[0]["text"] == "loading"
    RunDirectory(tmp_path / "gone").say("nothing is lost")


@pytest.mark.filterwarnings("ignore:of a library")
def test_what_a_display_shows_is_heard(tmp_path: Path) -> None:
    heard: list[str] = []
    with Display("run", console=Console(file=io.StringIO())) as display:
        display.note("before")
        with pytest.raises(UserError), pytest.warns(UserWarning, match="odd"), display.heard_by(heard.append):
            display.stage("loading")
            display.stage("passing", log=False)
            display.note("a sentence")
            warnings.warn("odd", stacklevel=1)
            warnings.warn("of a library", DeprecationWarning, stacklevel=1)
            raise UserError("no such model")
        display.note("after")
    assert heard == ["loading", "a sentence", "warning: odd", "ended: no such model"]


def made(count: int) -> tuple[Samples, Scores, Tensor, Tensor]:
    images = torch.linspace(0, 1, count)[:, None, None, None].expand(-1, 3, 4, 4)
    samples = Samples([Prompt(f"p{i}", i) for i in range(count)], images)
    rewards = torch.arange(count, dtype=torch.float64)[:, None]
    group, ids = torch.arange(count), torch.arange(count)
    scores = Scores(rewards, torch.ones(1, dtype=torch.float64), ("r",), group, ids, torch.ones(count).bool())
    return samples, scores, rewards[:, 0] - 1, torch.arange(count) + 2**60


def test_samples_are_spread_over_the_batch_and_rewound(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    samples, scores, advantage, seeds = made(12)
    for step in (1, 3):
        chosen = spaced(12, 4)
        folder = run.save_samples(step, samples.take(chosen), scores, advantage, seeds=seeds, rows=chosen)
    assert folder is not None
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["p0", "p3", "p6", "p9"]
    assert rows[1] == {
        "file": "0001.png",
        "prompt": "p3",
        "prompt_id": 3,
        "rewards": {"r": 3.0},
        "total": 3.0,
        "advantage": 2.0,
        "seed": 2**60 + 3,
    }
    assert all((folder / row["file"]).is_file() for row in rows)
    run.rewind(1)
    assert names(run.samples_path) == ["step_000001"]
    nothing = spaced(12, 0)
    assert run.save_samples(5, samples.take(nothing), scores, advantage, seeds=seeds, rows=nothing) is None


LOCKING = """
import sys, time
from pathlib import Path
from flowrl.records.directory import RunDirectory
with RunDirectory(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_two_processes_do_not_write_one_run_and_locks_die_with_their_owner(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", LOCKING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=rf"being written by process {child.pid}"), RunDirectory(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()
    with RunDirectory(tmp_path):
        pass
    with RunDirectory(tmp_path):
        pass


# ---- starting and resuming


def started(tmp_path: Path) -> tuple[Config, RunDirectory]:
    """A run of three iterations with checkpoints of 1 and 2."""
    config = Config.of({**CONFIG, "out": str(tmp_path / "run")})
    run = RunDirectory(config.directory)
    assert start_or_resume(config, run, None) is None
    for step in (1, 2, 3):
        run.log({"step": step})
        if step < 3:
            save(run.checkpoints, step)
    return config, run


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    config, run = started(tmp_path)
    with pytest.raises(UserError, match=r"already holds a run.*--resume auto.*out="):
        start_or_resume(config, run, None)
    assert len(run.metrics()) == 3


def test_a_run_that_did_nothing_may_be_started_again(tmp_path: Path) -> None:
    config = Config.of({**CONFIG, "out": str(tmp_path / "run")})
    run = RunDirectory(config.directory)
    start_or_resume(config, run, None)  # then a reward's server could not be reached
    mended = Config.of({**CONFIG, "out": str(tmp_path / "run"), "train": {**CONFIG["train"], "seed": 5}})
    assert start_or_resume(mended, run, None) is None
    assert Config.load(run.config_path).train.seed == 5


def test_resume_auto_goes_on_from_the_newest_checkpoint(tmp_path: Path) -> None:
    config, run = started(tmp_path)
    found = start_or_resume(config, run, "auto")
    assert found is not None and found.step == 2
    assert [line["step"] for line in run.metrics()] == [1, 2]


def test_resume_auto_starts_where_there_is_nothing(tmp_path: Path) -> None:
    config = Config.of({**CONFIG, "out": str(tmp_path / "run")})
    run = RunDirectory(config.directory)
    run.log({"step": 1}) if run.path.exists() else None
    assert start_or_resume(config, run, "auto") is None
    run.log({"step": 1})  # killed before the first checkpoint
    assert start_or_resume(config, run, "auto") is None
    assert run.metrics() == []


def test_resume_auto_falls_back_over_a_damaged_checkpoint(tmp_path: Path) -> None:
    config, run = started(tmp_path)
    _truncate(run.checkpoints / "step_000002" / "state/state.safetensors")
    with pytest.warns(UserWarning, match="skipping"):
        found = start_or_resume(config, run, "auto")
    assert found is not None and found.step == 1
    assert [line["step"] for line in run.metrics()] == [1]
    assert names(run.checkpoints) == ["latest", "step_000001", "unreadable-step_000002"]


def test_resume_from_a_path_forgets_what_came_after(tmp_path: Path) -> None:
    config, run = started(tmp_path)
    found = start_or_resume(config, run, str(run.checkpoints / "step_000001"))
    assert found is not None and found.step == 1
    assert checkpoint_folder.latest(run.checkpoints) == run.checkpoints / "step_000001"
    with pytest.raises(UserError, match="does not exist"):
        start_or_resume(config, run, "nowhere")


def test_a_checkpoint_of_another_run_starts_a_new_run_but_replaces_none(tmp_path: Path) -> None:
    _, run = started(tmp_path)
    fork = Config.of({**CONFIG, "out": str(tmp_path / "fork")})
    found = start_or_resume(fork, RunDirectory(fork.directory), str(run.path))
    assert found is not None and found.step == 2
    with pytest.raises(UserError, match=r"already holds another run"):
        start_or_resume(fork, RunDirectory(fork.directory), str(run.path))
    assert names(run.checkpoints) == ["latest", "step_000001", "step_000002"]


def test_resume_refuses_a_config_that_changes_the_mathematics(tmp_path: Path) -> None:
    _, run = started(tmp_path)
    longer = Config.of({**CONFIG, "out": str(run.path), "train": {"iterations": 9, "micro_batch": 2}})
    found = start_or_resume(longer, run, "auto")
    assert found is not None
    other = Config.of({**CONFIG, "out": str(run.path), "optimizer": {"lr": 1.0}, "train": {"iterations": 9, "seed": 1}})
    with pytest.raises(UserError, match=r"(?s)optimizer.lr: 0.0003 -> 1.0.*train.seed: 0 -> 1"):
        start_or_resume(other, run, "auto")
    assert run.config_path.read_text() == longer.to_yaml()


def test_changes_sees_inside_lists_and_algorithms() -> None:
    old = Config.of({**CONFIG, "algorithm": {"use": "flow_grpo", "kl": 0.1}})
    new = Config.of(
        {**CONFIG, "algorithm": {"use": "flow_grpo", "kl": 0.2}, "rewards": [{"use": "shapes", "weight": 2}]}
    )
    assert changed_keys(old, new) == ["algorithm.kl: 0.1 -> 0.2", "rewards.0.weight: 1.0 -> 2.0"]
    assert changed_keys(old, old) == []


# ---- signals, time, display, ranks


def test_the_first_signal_asks_the_second_insists() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.requested == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_phases_add_up_and_start_anew() -> None:
    timer = PhaseTimer()
    for _ in range(2):
        with timer("sample"):
            pass
    with pytest.raises(ValueError), timer("reward"):
        raise ValueError
    first = timer.collect()
    assert set(first) == {"time/sample", "time/reward", "time/iteration"}
    assert first["time/sample"] + first["time/reward"] <= first["time/iteration"]
    assert set(timer.collect()) == {"time/iteration"}


def test_display_prints_one_line_per_iteration_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Display("run", 10, console=Console(force_terminal=False, width=40)) as display:
        display.stage("loading the model m")
        display.stage("loading the model m")
        display.update(0, {"eval/reward/mean": 0.1})
        display.phase("sample")
        display.update(1, {"reward/mean": 0.25, "loss": 1e-5, "time/iteration": 1.5, "time/sample": 1.0})
        display.update(2, {"reward/mean": 0.5, "eval/reward/mean": 0.125})
    loading, start, first, second = capsys.readouterr().out.splitlines()
    assert loading == "run: loading the model m" and start == "run 0/10 | held-out 0.1"
    assert first.startswith("run 1/10 | reward 0.25 | loss 1e-05 | 1.5 s | ") and first.endswith(" left")
    assert "reward 0.5 (↑ +0.25)" in second and "held-out 0.125 (↑ +0.025)" in second


@pytest.mark.parametrize("width", [80, 140])
def test_display_fits_the_terminal(width: int) -> None:
    console = Console(force_terminal=True, width=width, record=True, file=io.StringIO())
    rewards = {f"reward/{name}/mean": 0.5 for name in ("shapes", "a [bold]name[/]")}
    with Display("run", 10, done=4, console=console) as display, display:
        display.start_iterations("run", 10, 4)
        display.update(4, {"eval/reward/mean": 0.1, "time/iteration": 3.0, "time/eval": 2.9})
        before = _rendered(display, width)
        times = {
            "time/iteration": 10.0,
            "time/sample": 5.0,
            "time/update": 2.5,
            "time/eval": 0.01,
            "reward/seconds": 9.0,
        }
        display.update(5, {"reward/mean": 0.25, "grad_norm": 2.0, "entropy": 0.75, **rewards, **times})
        display.phase("update")
        display.stopping()
        after = _rendered(display, width)
        display.note("saved [bold]here[/]")
    assert "iteration 4 of 10" in before[0] and "left" not in "".join(before) and "3.0 s" not in "".join(before)
    assert "iteration 5 of 10" in after[0] and " left" in after[0] and "50%" in after[1]
    text = "\n".join(after)
    assert "10.0 s: sampling 50%, update 25%" in text and "busy" not in text and "9.0" not in text
    assert "entropy" in text and "0.75" in text
    assert "a [bold]name[/]" in text and "stopping after this iteration" in text
    assert all(len(line.rstrip()) <= width for line in after) and "saved [bold]here[/]" in console.export_text()


def test_a_self_check_is_shown_only_when_it_fails() -> None:
    with Display("run", 10, console=Console(force_terminal=True, width=80, file=io.StringIO())) as display:
        display.update(1, {"ratio/first_max_deviation": 1e-7, "clip_fraction": 0.0})
        assert "ratio off by" not in "".join(_rendered(display, 80))
        for bad in (0.02, float("nan")):
            display.update(2, {"ratio/first_max_deviation": bad})
            assert "ratio off by" in "".join(_rendered(display, 80))


def _rendered(display: Display, width: int) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(display._render())
    return console.export_text().splitlines()


def test_one_process_is_its_own_world() -> None:
    rows, alone = torch.arange(3), ranks()
    assert (alone.rank, alone.size, alone.share(5)) == (0, 1, slice(0, 5))
    assert alone.gather(rows) is rows and alone.total(rows) is rows
    assert (alone.largest(3), alone.texts("now")) == (3, ["now"])


def _member(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    both = ranks()
    part = both.share(5)
    rows = torch.tensor([2**60 + i for i in range(5)])[part]
    values = torch.tensor([0.5, math.nan, 2.0, 3.0, 4.0], dtype=torch.float64)[part]
    assert both.gather(rows).tolist() == [2**60 + i for i in range(5)]
    assert torch.equal(both.gather(values).isnan(), torch.tensor([False, True, False, False, False]))
    assert both.gather(rows[: len(rows) * rank]).tolist() == [2**60 + 3, 2**60 + 4]  # one has none
    mine = torch.tensor([float(rank + 1)])
    assert both.total(mine).item() == 3.0 and mine.item() == rank + 1
    assert both.largest(7 - rank) == 7
    assert both.texts("" if rank == 0 else "réward down") == ["", "réward down"]
    both.wait()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_gather_in_order_and_exactly(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_member, (str(tmp_path),), nprocs=2)


# ---- the package


def test_train_is_a_function_even_after_its_module_was_imported() -> None:
    import flowrl.train

    assert callable(flowrl.train)
    assert flowrl.train is sys.modules["flowrl.notebook.training"].train


def test_unknown_attributes_are_reported() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        flowrl.trian  # noqa: B018

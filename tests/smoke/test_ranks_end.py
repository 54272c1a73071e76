"""How runs of several processes end: killed, stopped, asked to, or by a mistake of one of them. Every time it is one
sentence, and the run goes on from there as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.launching import (
    assert_same_run,
    checkpoints,
    errors_said,
    forked,
    iterations,
    lines,
    prepare,
    ranks_of,
    run,
    start,
    state,
    wait_for,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes."""
    folder = tmp_path_factory.mktemp("two")
    prepare(folder)
    done = run(folder, 2)
    assert done.returncode == 0, done.stderr
    return folder


def start_and_iterate(folder: Path) -> subprocess.Popen[str]:
    """The launcher of two processes that have finished two iterations."""
    launcher = start(folder, 2)
    wait_for(lambda: iterations(folder) >= 2, launcher)
    return launcher


def assert_goes_on(folder: Path, undisturbed: Path) -> None:
    prepare(folder)
    done = forked(folder, 2, "--resume", "auto", "--allow-changed")
    assert done.returncode == 0, done.stderr
    assert_same_run(undisturbed, folder)


def assert_said_once(text: str, *words: str) -> None:
    said = errors_said(text)
    assert len(said) == 1 and all(word in said[0] for word in words), text


def assert_gone(processes: dict[int, int]) -> None:
    """Of the processes none is left."""
    assert not [pid for pid in processes.values() if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_the_run_directory_is_that_of_one_process(undisturbed: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    assert forked(tmp_path, 1).returncode == 0
    names = [
        {path.relative_to(folder / "run").as_posix() for path in (folder / "run").rglob("*")}
        for folder in (undisturbed, tmp_path)
    ]
    assert names[0] == names[1]
    for ours, theirs in zip(lines(undisturbed), lines(tmp_path), strict=True):
        assert ours.keys() == theirs.keys()
    for kind in ("samples", "heldout"):
        told = [
            [json.loads(line) for line in (folder / f"run/{kind}/step_000002/samples.jsonl").read_text().splitlines()]
            for folder in (undisturbed, tmp_path)
        ]
        assert [(row["prompt"], row["seed"], row["file"]) for row in told[0]] == [
            (row["prompt"], row["seed"], row["file"]) for row in told[1]
        ]
        assert [row["total"] for row in told[0]] == pytest.approx([row["total"] for row in told[1]], abs=1e-3)
    assert json.loads((undisturbed / "run/environment.json").read_text())["ranks"] == 2
    assert json.loads((tmp_path / "run/environment.json").read_text())["ranks"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_named(undisturbed: Path, tmp_path: Path, rank: int) -> None:
    prepare(tmp_path, "time.sleep(0.1)")  # however fast a machine is, three iterations are left
    launcher = start(tmp_path, 2)
    wait_for(lambda: iterations(tmp_path) >= 2 + rank, launcher)
    time.sleep(random.random() * 0.3)  # somewhere in an iteration, a save or an evaluation
    processes = ranks_of(launcher)
    os.kill(processes[rank], signal.SIGKILL)
    assert launcher.wait(90) != 0
    assert_said_once(
        (tmp_path / "errors.txt").read_text(), f"rank {rank} (process {processes[rank]} on ", "--resume auto"
    )
    assert_gone(processes)
    if rank == 0:  # benchmarks/rank_faults.py kills both, again and again
        assert_goes_on(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_rank_that_is_killed_before_the_ranks_have_met_is_named(tmp_path: Path) -> None:
    prepare(tmp_path)
    launcher = start(tmp_path, 2)
    wait_for(lambda: len(ranks_of(launcher)) == 2, launcher)
    places = [Path(f"/proc/{pid}/maps") for pid in ranks_of(launcher).values()]
    wait_for(lambda: all("libtorch" in place.read_text() for place in places), launcher)  # programs are imported
    os.kill(ranks_of(launcher)[1], signal.SIGKILL)
    assert launcher.wait(90) != 0
    assert_said_once((tmp_path / "errors.txt").read_text(), "rank 1 ")


@pytest.mark.slow
def test_what_was_finished_before_a_rank_died_is_saved(undisturbed: Path, tmp_path: Path) -> None:
    prepare(tmp_path, "if rank == '1' and calls[0] == 6: os.kill(os.getpid(), signal.SIGKILL)")
    done = run(tmp_path, 2, "checkpoint.every=0")
    assert done.returncode != 0
    assert_said_once(done.stderr, "rank 1 (process ", "ended without a word")
    assert checkpoints(tmp_path) == [f"step_{lines(tmp_path)[-1]['step']:06d}"]
    assert_goes_on(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_named(undisturbed: Path, tmp_path: Path) -> None:
    prepare(tmp_path, "time.sleep(0.1)")
    launcher = start_and_iterate(tmp_path)
    processes = ranks_of(launcher)
    os.kill(processes[1], signal.SIGSTOP)
    assert launcher.wait(120) != 0  # 8 s of silence, and the launcher's 10 until it kills what does not end
    assert_said_once((tmp_path / "errors.txt").read_text(), f"rank 1 (process {processes[1]} on ", "no sign of life")
    assert_gone(processes)
    assert_goes_on(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_rank_that_hangs_is_named(tmp_path: Path) -> None:
    prepare(tmp_path, "if rank == '1' and calls[0] == 5: time.sleep(1000)")
    done = run(tmp_path, 2)
    assert done.returncode != 0
    assert_said_once(done.stderr, "rank 1 (process ", "kept the others waiting for 8 s (train.rank_timeout)", "reward")


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["launcher", "rank 1"])
def test_asked_to_end(undisturbed: Path, tmp_path: Path, whom: str) -> None:
    prepare(tmp_path, "time.sleep(0.2)")
    launcher = start_and_iterate(tmp_path)
    processes = ranks_of(launcher)
    os.kill({"launcher": launcher.pid, "rank 1": processes[1]}[whom], signal.SIGTERM)
    code = launcher.wait(90)
    assert code == 0 or whom == "launcher"  # which reports its own signal
    said = (tmp_path / "errors.txt").read_text()
    assert not errors_said(said) and said.count("SIGTERM: saved after iteration") == 1, said
    assert checkpoints(tmp_path)[-1] == f"step_{lines(tmp_path)[-1]['step']:06d}" != "step_000006"
    assert_gone(processes)
    if whom == "launcher":
        assert_goes_on(tmp_path, undisturbed)


@pytest.mark.slow
def test_ctrl_c(tmp_path: Path) -> None:
    prepare(tmp_path, "time.sleep(0.2)")
    launcher = start_and_iterate(tmp_path)
    launcher.send_signal(signal.SIGINT)
    launcher.wait(90)
    said = (tmp_path / "errors.txt").read_text()
    assert not errors_said(said) and said.count("SIGINT: saved after iteration") == 1, said
    assert "KeyboardInterrupt" not in said


@pytest.mark.slow
def test_a_killed_launcher_leaves_no_processes(tmp_path: Path) -> None:
    prepare(tmp_path, "time.sleep(0.1)")
    launcher = start_and_iterate(tmp_path)
    processes = ranks_of(launcher)
    launcher.kill()
    launcher.wait()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in processes.values()) and time.monotonic() < end:
        time.sleep(0.1)
    assert_gone(processes)
    assert_said_once((tmp_path / "errors.txt").read_text(), "the launcher", "--resume auto")


DOWN = "if rank == '1' and calls[0] > 5: raise ConnectionError('the reward server is down')"
FULL = """if rank == '0' and calls[0] > 5:
        from flowrl.records import checkpoint
        def full(*a, **k): raise OSError(28, 'No space left on device', 'state.safetensors')
        checkpoint.save_file = full"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "words", "names"),
    [
        pytest.param(DOWN, ("the reward server is down",), True, id="reward server down"),
        pytest.param(FULL, ("no space left on the disk",), False, id="disk full"),
    ],
)
def test_a_mistake_of_one_rank_ends_all(
    undisturbed: Path, tmp_path: Path, body: str, words: tuple[str, ...], names: bool
) -> None:
    prepare(tmp_path, body)
    done = run(tmp_path, 2)
    assert done.returncode != 0 and done.stderr.count("exitcode  : 2") == 2, done.stderr
    assert_said_once(done.stderr, *words)
    assert ("rank 1 (process " in errors_said(done.stderr)[0]) == names
    assert checkpoints(tmp_path)
    assert_goes_on(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_reward_that_fails_on_one_rank_is_left_out_as_on_error_says(tmp_path: Path) -> None:
    prepare(tmp_path, "if rank == '1' and calls[0] == 3: raise ConnectionError('down')")
    rewards = "rewards=[{use: 'mine.py:reward', on_error: {then: drop_group}}]"
    done = run(tmp_path, 2, rewards, "eval.every=0", "train.iterations=4")
    assert done.returncode == 0, done.stderr
    left_out = [line["reward/invalid_fraction"] for line in lines(tmp_path)]
    assert sorted(left_out) == pytest.approx([0, 0, 0, 1 / 3])
    assert done.stderr.count("could not be scored") == 1 and "rank 1: " in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [("train.iteratons=3", "did you mean"), ("rewards=[/no.py:f]", "/no.py")],
)
def test_a_mistake_in_the_config_is_said_once(tmp_path: Path, override: str, message: str) -> None:
    prepare(tmp_path)
    done = run(tmp_path, 2, override)
    assert done.returncode != 0
    assert_said_once(done.stderr, message)
    assert "rank" not in errors_said(done.stderr)[0] and not (tmp_path / "run/config.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 1), (2, 3)])
def test_a_checkpoint_goes_on_in_another_number_of_processes(
    undisturbed: Path, tmp_path: Path, sizes: tuple[int, int]
) -> None:
    prepare(tmp_path)
    assert forked(tmp_path, sizes[0], "train.iterations=3").returncode == 0
    done = forked(tmp_path, sizes[1], "--resume", "auto")
    assert done.returncode == 0, done.stderr
    ours, theirs = state(tmp_path), state(undisturbed)
    assert ours.keys() == theirs.keys()
    for key in ours:
        if key.startswith("weights/"):  # AdamW divides noise by noise where a gradient is almost 0
            assert torch.allclose(ours[key], theirs[key], atol=2e-4), key


@pytest.mark.slow
def test_other_commands_run_in_one_process(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed / "run", tmp_path / "run")
    done = run(tmp_path, 2, flowrl=("checkpoints", "run"))
    assert done.returncode == 0 and done.stdout.count("step_000006") == 1, done.stdout + done.stderr
    assert done.stderr.count("flowrl checkpoints runs in one process: rank 0 of 2 does it alone") == 1

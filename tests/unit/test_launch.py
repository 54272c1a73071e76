"""What launchers say, and how processes watch over each other and agree."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from flowrl import launcher
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.models.placement import place
from flowrl.processes import Child
from flowrl.records.checkpoint import Checkpoint
from flowrl.runtime import watch as watching
from flowrl.runtime.ranks import together
from flowrl.runtime.watch import LostRankError, PeerCrashError, PeerError, Watch
from flowrl.scorers.loading import device_and_dtype
from flowrl.startup.opening import _check_alike, _told
from flowrl.types import OneProcess

TWO = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"} | {
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the second of two."""
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)


def test_launchers_are_understood(second: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = launcher.launch()
    assert found is not None and (found.rank, found.size, found.local_rank, found.port) == (1, 2, 1, 29500)
    assert not launcher.is_first()
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(UserError, match="RANK=2 of WORLD_SIZE=2"):
        launcher.launch()
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(UserError, match="RANK='one'"):
        launcher.launch()
    monkeypatch.delenv("RANK")
    with pytest.raises(UserError, match=r"WORLD_SIZE=2 but not RANK.*torchrun"):
        launcher.launch()
    monkeypatch.setenv("RANK", "0")
    launcher.forget()
    assert launcher.launch() is None and launcher.is_first()


def test_every_process_has_an_accelerator_of_its_own(second: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert place("float32", "auto").device == place("float32", "cuda").device == torch.device("cuda:1")
    assert device_and_dtype(None, "float32")[0] == torch.device("cuda:1")
    assert device_and_dtype("cuda:0", "float32")[0] == torch.device("cuda:0")  # a reward may share one
    assert place("float32", "cpu").device == torch.device("cpu")
    with pytest.raises(UserError, match=r"model.device=cuda:0 is one device, and 2 processes share this machine"):
        place("float32", "cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="start at most 1 processes"):
        place("float32", "auto")


def test_children_know_nothing_of_the_launcher_but_their_accelerator(
    second: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(launcher.CHILDREN, "1")
    seen = {}
    monkeypatch.setattr(subprocess, "Popen", lambda *a, env, **k: seen.update(env) or object())
    with pytest.raises(AttributeError):  # there is no process
        Child.start("nothing")
    assert not seen.keys() & TWO.keys() and seen[launcher.CHILDREN] == "1"
    for name in TWO:
        monkeypatch.delenv(name)
    assert launcher.own_accelerator("cuda", 2) == "cuda:1"


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Watch, Watch]]:
    """Two watches, of which the first has begun."""
    monkeypatch.setattr(watching, "BEAT_S", 0.05)
    monkeypatch.setattr(watching, "SUSPECTED_S", 0.3)
    monkeypatch.setattr(watching, "_end", lambda code: None)
    store = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=20), wait_for_workers=False)
    for rank in (0, 1):
        Watch.introduce(store, rank)
    watches = tuple(Watch(store.clone(), rank, 2, True) for rank in (0, 1))
    watches[0].patience(0.6)
    watches[0].start()
    yield watches[0], watches[1]
    for watch in watches:
        watch._closed.set()


def until(watch: Watch, error: type[Exception], since: float | None = None) -> str:
    """What the watch raises in the end."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            watch.check(since)
        except error as found:
            return str(found)
        time.sleep(0.01)
    raise AssertionError("it noticed nothing")


def test_a_silent_rank_is_named(pair: tuple[Watch, Watch], capsys: pytest.CaptureFixture[str]) -> None:
    assert "rank 1 (process" in until(pair[0], LostRankError)
    said, end = "", time.monotonic() + 20
    while not said and time.monotonic() < end:
        time.sleep(0.2)
        said += capsys.readouterr().err
    assert said.count("error: rank 1 (process") == 1


def test_a_rank_that_gives_signs_is_not_lost_but_may_be_behind(pair: tuple[Watch, Watch]) -> None:
    first, second = pair
    second.phase("sample")
    second.start()
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        first.check()
        time.sleep(0.02)
    first.exchange_begins()
    said = until(first, LostRankError, time.monotonic())
    assert "rank 1" in said and "waiting for 1 s (train.rank_timeout), in its phase 'sample'" in said


def test_a_rank_that_was_stopped_is_not_said_to_be_busy(pair: tuple[Watch, Watch]) -> None:
    """Whichever limit ends first: that of signs of life, or that of the exchange that had begun before."""
    first, second = pair
    second.start()
    time.sleep(0.3)
    first.exchange_begins()
    second._closed.set()
    time.sleep(0.4)
    said = until(first, LostRankError, time.monotonic() - 1.0)
    assert "rank 1" in said and re.search(r"given no sign of life for \d s", said)


@pytest.mark.parametrize(("state", "kind"), [("failed", PeerError), ("crashed", PeerCrashError)])
def test_what_a_rank_fails_of_is_known(pair: tuple[Watch, Watch], state: str, kind: type[Exception]) -> None:
    first, second = pair
    second.start()
    second.tell(state=state, text="the server is down")
    assert until(first, kind).endswith(": the server is down")


@pytest.mark.parametrize("sharded", [True, False])
def test_a_rank_stuck_in_a_sharded_network_ends(
    pair: tuple[Watch, Watch], monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    """Elsewhere it reaches an exchange in time, and may have something to save."""
    ended: list[int] = []
    monkeypatch.setattr(watching, "_end", ended.append)
    monkeypatch.setattr(watching, "LEAVE_S", 0.3)
    first, second = pair
    first.sharded = sharded
    second.start()
    time.sleep(0.5)
    assert not ended
    second.tell(state="failed", text="out of memory")
    end = time.monotonic() + (20 if sharded else 1.5)
    while not ended and time.monotonic() < end:
        time.sleep(0.02)
    assert bool(ended) == sharded


def test_a_rank_that_has_ended_is_waited_for_no_longer(pair: tuple[Watch, Watch]) -> None:
    first, second = pair
    second.start()
    second.tell(state="ended")
    second.close()
    time.sleep(1.0)
    first.check()  # it may be silent now
    assert first.settled()
    first.exchange_begins()
    assert "has ended" in until(first, PeerError, time.monotonic())


def test_a_warning_is_left_for_rank_0(pair: tuple[Watch, Watch]) -> None:
    first, second = pair
    found: list[tuple[int, str]] = []
    first.on_note = lambda rank, text: found.append((rank, text))
    second.start()
    assert second.leave_note("careful")
    end = time.monotonic() + 30
    while not found and time.monotonic() < end:
        time.sleep(0.02)
    assert found == [(1, "careful")]


class Told(OneProcess):
    """`Ranks` of which this is the second, and all others say what was prepared."""

    rank, size = 1, 2

    def __init__(self, *texts: str, tensors: tuple[Tensor, ...] = ()) -> None:
        self.others, self.tensors, self.said = list(texts), list(tensors), []

    def texts(self, text: str) -> list[str]:
        self.said.append(text)
        return [self.others.pop(0), text]

    def largest(self, value: int) -> int:
        return max(int(self.others.pop(0)), value)

    def first(self, value: Tensor) -> Tensor:
        found = self.tensors.pop(0)
        assert (found.shape, found.dtype) == (value.shape, value.dtype)
        return found


def test_what_fails_on_one_rank_fails_on_all() -> None:
    with pytest.raises(PeerError, match="rank 0: no such file"), together(Told("1", "1no such file")):
        pass
    with pytest.raises(PeerCrashError, match="rank 0: KeyError"), together(Told("1", "0KeyError: 3")):
        pass
    with pytest.raises(UserError, match="mine"), together(Told("0", "")):
        raise UserError("mine")
    with together(Told("0")):
        pass


def test_ranks_that_would_compute_something_else_are_refused() -> None:
    config = Config.of({"name": "x", "model": {"path": "shapes"}, "algorithm": "grpo", "rewards": ["a:b"]} | {
        "train": {"iterations": 3}
    })  # fmt: skip
    spy = Told("[{}, {}, {}]")
    with pytest.raises(UserError):
        _check_alike(spy, config, {"data.train": "abc"})
    alike = spy.said[0]
    _check_alike(Told(alike), config, {"data.train": "abc"})
    with pytest.raises(UserError, match=r"rank 1 reads other files for data.train than rank 0"):
        _check_alike(Told(alike), config, {"data.train": "abd"})
    other = config.model_copy(update={"train": config.train.model_copy(update={"iterations": 4})})
    with pytest.raises(UserError, match=r"rank 1 has another train.iterations than rank 0: 4, not 3"):
        _check_alike(Told(alike), other, {"data.train": "abc"})
    moved = config.model_copy(update={"out": "/elsewhere"})
    _check_alike(Told(alike), moved, {"data.train": "abc"})


def test_a_checkpoint_is_told_bit_for_bit() -> None:
    tensors = {"b": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16), "a": torch.arange(3)}
    start = Checkpoint(Path("/run/step_000003"), 3, tensors, {"seconds": 0.1, "memory": {"x": [1e-300]}}, {"format": 1})
    spy = Told("null", tensors=(tensors["a"], tensors["b"]))
    assert _told(spy, None) is None
    spy = Told("null", "0", tensors=(tensors["a"], tensors["b"]))
    _told(spy, start)
    found = _told(Told(spy.said[0], "0", tensors=(tensors["a"], tensors["b"])), None)
    assert found is not None and (found.path, found.step, found.values) == (start.path, 3, start.values)
    assert all(torch.equal(found.tensors[name].view(torch.uint8), tensors[name].view(torch.uint8)) for name in tensors)

"""Children that answer frames: deadlines, endings told apart, whole groups killed, channels that nothing disturbs."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowrl.processes import Child, kill_group

ECHO = """
import os, subprocess, sys, time
from flowrl.processes import end_with_parent, open_channel, read_frame, write_frame
requests, replies = open_channel()
end_with_parent()
print("printed")
os.write(1, b"printed")
while (frame := read_frame(requests)) is not None:
    word, _, rest = frame.decode().partition(" ")
    if word == "sleep": time.sleep(60)
    if word == "exit": os._exit(int(rest))
    if word == "signal": os.kill(os.getpid(), int(rest))
    if word == "silent": os.close(replies.fileno()); time.sleep(60)
    if word == "read": frame = repr(sys.stdin.read()).encode()
    if word == "large": frame = b"x" * int(rest)
    if word == "half": os.write(replies.fileno(), b"\\0" * 7 + b"\\5ab"); os._exit(0)
    if word == "family":
        frame = str(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid).encode()
    if word == "deserted":
        family = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open(rest, "w").write(str(family.pid))
        os._exit(1)
    write_frame(replies, frame)
"""


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    (tmp_path / "echo_child.py").write_text(ECHO)
    monkeypatch.syspath_prepend(str(tmp_path))
    child = Child.start("echo_child", largest=1 << 22, stderr=subprocess.DEVNULL)
    yield child
    child.close()


def gone(number: int) -> bool:
    """Whether a process has ended (or is a zombie that nobody collects here) within 20 seconds."""
    for _ in range(400):
        try:
            state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_frames_of_any_size_come_back_whatever_is_printed(echo: Child) -> None:
    for content in (b"", b"a", "日本語\n\0".encode(), b"z" * (3 << 20)):
        assert echo.ask(content, seconds=60) == content
    assert echo.ask(b"read", seconds=60) == b"''", "what is asked must not be readable as standard input"
    assert not echo.ended


@pytest.mark.parametrize(
    ("request_", "kind", "match"),
    [
        ("exit 3", EOFError, "its process ended with code 3"),
        ("exit 0", EOFError, "its process ended with code 0"),
        ("signal 11", EOFError, r"by signal 11 \(SIGSEGV\)"),
        ("signal 9", EOFError, r"by signal 9 \(SIGKILL, as from a system without memory\)"),
        ("half", EOFError, "its process ended with code 0"),
        ("silent", EOFError, "its process closed its output"),
        ("large 5000000", EOFError, "answers with 5000000 bytes, and may with 4194304"),
        ("sleep", TimeoutError, "no answer in time"),
    ],
)
def test_every_ending_is_told_and_leaves_no_process(
    echo: Child, request_: str, kind: type[Exception], match: str
) -> None:
    assert echo.ask(b"hello", seconds=60) == b"hello"  # it has started
    with pytest.raises(kind, match=match):
        echo.ask(request_.encode(), seconds=1.5)
    assert echo.ended


def test_a_child_that_does_not_read_costs_its_time_and_no_more() -> None:
    code = "import time; time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
    )
    child, start = Child(process), time.monotonic()
    with pytest.raises(TimeoutError, match="it does not read"):
        child.ask(bytes(4 << 20), seconds=0.5)
    assert time.monotonic() - start < 20 and child.ended and gone(process.pid)


def test_what_a_child_has_started_dies_with_it(echo: Child, tmp_path: Path) -> None:
    grandchild = int(echo.ask(b"family", seconds=60))
    assert Path(f"/proc/{grandchild}").exists()
    echo.close()
    assert gone(grandchild)
    other = Child.start("echo_child", stderr=subprocess.DEVNULL)
    with pytest.raises(EOFError, match="with code 1"):
        other.ask(f"deserted {tmp_path / 'number'}".encode(), seconds=60)
    assert gone(int((tmp_path / "number").read_text())), "one that died by itself leaves nobody behind"


def test_closing_ends_a_call_of_another_thread(echo: Child) -> None:
    found: list[BaseException] = []

    def call() -> None:
        try:
            echo.ask(b"sleep", seconds=None)
        except EOFError as error:
            found.append(error)

    assert echo.ask(b"hello", seconds=60) == b"hello"
    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.2)
    echo.close()
    thread.join(30)
    assert not thread.is_alive() and "by signal 9" in str(found[0])


def test_a_child_ends_with_a_parent_that_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "echo_child.py").write_text(ECHO)
    parent = (
        "from flowrl.processes import Child\nimport time\nchild = Child.start('echo_child')\n"
        "child.ask(b'hello', seconds=60)\nprint(child._process.pid, flush=True)\nchild.ask(b'sleep', seconds=None)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    )
    assert process.stdout is not None
    number = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert gone(number)


def test_the_environment_of_a_child_lacks_what_is_no_business_of_its(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "environment_child.py").write_text(
        "import os\nfrom flowrl.processes import open_channel, write_frame\n"
        "write_frame(open_channel()[1], repr((os.environ.get('SECRET'), os.environ.get('SHOWN'))).encode())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SECRET", "1")
    monkeypatch.setenv("SHOWN", "2")
    child = Child.start("environment_child", without=["SECRET"])
    assert child.ask(seconds=60) == b"(None, '2')"
    child.close()


def test_killing_a_group_that_is_gone_is_no_error() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    process.wait()
    kill_group(process)

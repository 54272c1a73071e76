"""The server of the live page: who may ask, what is served of a run, only what is new, and asking a run to stop."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from flowrl.errors import UserError
from flowrl.records.directory import RunDirectory
from flowrl.records.owner import ask_to_stop, owner
from flowrl.records.sample_files import write_image
from flowrl.report.columns import Columns, Lines, memory_row
from flowrl.report.feed import Feed
from flowrl.report.watching import beside, serve
from tests.unit.test_report import EVIL, add_heldout, add_samples, metrics, new_run, picture

testclient = pytest.importorskip("fastapi.testclient", reason="needs the extra `server`")
from flowrl.report.server import PROOF, build_app, changes  # noqa: E402

TOKEN = "a-token"
HOST = "http://127.0.0.1:8421"


def visitor(*runs, base_url=HOST, stop=lambda run: f"stopped {run.name}"):
    return testclient.TestClient(build_app([Feed(run) for run in runs], TOKEN, stop), base_url=base_url)


def guest(*runs, **more):
    """Who has opened the address that was printed."""
    client = visitor(*runs, **more)
    assert client.get(f"/?token={TOKEN}").status_code == 200
    return client


def test_the_token_of_the_address_becomes_a_cookie(tmp_path):
    client = visitor(new_run(tmp_path / "run"))
    first = client.get(f"/?token={TOKEN}", follow_redirects=False)
    assert first.status_code == 303 and first.headers["location"] == "./" and TOKEN not in first.headers["location"]
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    page = client.get("/")
    assert page.status_code == 200 and TOKEN not in page.text and "http://" not in page.text


@pytest.mark.parametrize(
    "path", ["/", "/?token=wrong", "/?token=", "/runs", "/runs/0/metrics", "/events", "/static/page.js"]
)
def test_nothing_is_told_without_the_token(tmp_path, path):
    answer = visitor(new_run(tmp_path / "run")).get(path)
    assert answer.status_code == 401 and "token" in answer.text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "10.0.0.1:8421"])
def test_other_names_of_the_host_are_refused(tmp_path, host):
    """DNS rebinding: a page of another site whose name is made to point here."""
    client = guest(new_run(tmp_path / "run"))
    assert client.get("/runs", headers={"host": host}).status_code == 421
    for good in ("localhost", "localhost:9999", "[::1]:80", "127.0.0.1"):
        assert client.get("/static/page.js", headers={"host": good}).status_code != 421


def test_answers_carry_a_policy_and_other_pages_are_refused(tmp_path):
    client = guest(new_run(tmp_path / "run"))
    answer = client.get("/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/runs", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.get("/runs", headers={"sec-fetch-site": "same-site"}).status_code == 403


def test_only_pictures_inside_the_run_are_served(tmp_path):
    run = new_run(tmp_path / "run", [metrics(1)])
    add_samples(run, 1)
    write_image(tmp_path / "secret.png", picture())
    (run / "link.png").symlink_to(tmp_path / "secret.png")
    client = guest(run)
    (card,) = client.get("/runs/0/samples/samples/1").json()
    for more in ("", "&small=1"):
        answer = client.get("/" + card["image"] + more)
        assert answer.status_code == 200 and answer.content.startswith(b"\x89PNG")
    for name in ("../secret.png", "%2e%2e/secret.png", "..%2fsecret.png", "link.png", "/etc/passwd", "config.yaml",
                 "metrics.jsonl", "samples", "%00.png", "x" * 5000 + ".png"):  # fmt: skip
        assert client.get(f"/runs/0/file/{name}").status_code == 404, name
    for path in ("/runs/1/metrics", "/runs/-1/metrics", "/runs/0/path", "/static/../server.py", "/runs/0/__class__"):
        assert client.get(path).status_code == 404, path
    assert client.get("/runs/0/samples/checkpoints/1").json() == []


def test_a_reader_is_told_only_what_is_new(tmp_path):
    run = new_run(tmp_path / "run", [metrics(1), metrics(2)])
    client = guest(run)

    def ask(cursor=""):
        return client.get("/runs/0/metrics", params={"cursor": cursor}).json()

    first = ask()
    assert first["reset"] and first["columns"]["step"] == [1, 2]
    assert ask(first["cursor"])["columns"]["step"] == [2]  # the last again: something may have been added to it
    log = RunDirectory(run)
    log.log({"step": 3, "loss": float("nan"), "new": 1.25})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # still being written
    then = ask(first["cursor"])
    assert not then["reset"] and then["columns"]["step"] == [2, 3] and then["columns"]["new"] == [None, 1.25]
    assert "loss" not in then["columns"]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('ss": 0.5}\n')
    assert ask(then["cursor"])["columns"]["loss"] == [None, 0.5]
    log.rewind(2)  # resumed from an earlier checkpoint
    again = ask(then["cursor"])
    assert again["reset"] and again["columns"]["step"] == [1, 2]
    for odd in ("x", "9-9", "-1--1", "1-" + "9" * 50, "٣-٣"):
        assert ask(odd)["reset"], odd


def test_columns_hold_what_a_file_says(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"step": s, "a": s * 1.23456789, "b": 2 * s}) + "\n" for s in (1, 2, 3)))
    columns = Columns(path)
    columns.update()
    with path.open("a") as file:
        file.write('{"step": 3, "c": 7}\n{"step": 2, "a": 1234567}\n{"step": "x", "a": 1}\n')
        file.write('{"step": 2, "b": 1e400}\n[1]')
    columns.update()
    told = columns.since("")["columns"]
    assert told == {"step": [1, 2], "a": [1.23457, 1234567], "b": [2, None]}  # from step 2 on it is another story
    path.write_text("[1]\n")
    with pytest.raises(UserError, match="line 1 should be a JSON object"):
        columns.update()


def test_memory_is_one_row_a_step(tmp_path):
    path = tmp_path / "memory.jsonl"
    rows = [
        {"step": 0, "phase": "load", "devices": {"cuda:0": 2**30, "cuda:1": 2**31}, "host": 2**29},
        {"step": 0, "phase": "eval", "devices": {}, "host": 2**30},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = Columns(path, memory_row)
    columns.update()
    told = columns.since("")["columns"]
    assert told == {"step": [0], "host/load": [0.5], "device/load": [2], "host/eval": [1]}


def test_of_many_lines_evenly_spaced_ones_are_sent(tmp_path):
    path = tmp_path / "h.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in range(1000)))
    lines = Lines(path)
    told = lines.since("", most=5)
    assert [row["step"] for row in told["rows"]] == [0, 250, 500, 749, 999]
    assert lines.since(told["cursor"])["rows"] == []
    assert [row["step"] for row in Lines(path).since("", most=3, latest=True)["rows"]] == [997, 998, 999]


def test_several_runs_are_told_apart(tmp_path):
    one, two = (
        new_run(tmp_path / "one", [metrics(1)]),
        new_run(tmp_path / "two", [metrics(1), metrics(2)], f"name: {json.dumps(EVIL)}\n"),
    )
    client = guest(one, two, tmp_path / "later")
    assert [run["name"] for run in client.get("/runs").json()["runs"]] == ["one", "two", "later"]
    answers = [client.get(f"/runs/{number}/overview") for number in range(3)]
    assert [answer.json()["name"] for answer in answers] == ["a run", EVIL, "later"]
    assert answers[1].json()["iterations"] == 2 and "<" not in answers[1].text
    assert answers[2].json()["problem"] == "The run has not begun yet."
    (two / "metrics.jsonl").write_text("oops\n")
    assert "line 1 is not JSON" in client.get("/runs/1/overview").json()["problem"]
    assert client.get("/runs/1/metrics").status_code == 409


def test_a_stream_says_when_something_is_new(tmp_path):
    run = new_run(tmp_path / "run", [metrics(1)])

    async def listen():
        stream = changes([Feed(run)], pause=0.001)
        first = await anext(stream)
        RunDirectory(run).log(metrics(2))
        second = await anext(stream)
        add_heldout(run, 5)
        return first, second, await anext(stream)

    told = [json.loads(text.removeprefix("data: "))[0] for text in asyncio.run(listen())]
    assert len({each["mark"] for each in told}) == 3 and not told[0]["running"]


def test_a_run_is_stopped_by_who_has_the_token_twice(tmp_path):
    run = new_run(tmp_path / "run")
    client = guest(run)
    assert client.post("/runs/0/stop").status_code == 403  # a cookie alone could be used by another page
    assert client.post("/runs/0/stop", headers={PROOF: "wrong"}).status_code == 403
    assert client.post("/runs/0/stop", headers={PROOF: TOKEN, "sec-fetch-site": "same-site"}).status_code == 403
    assert client.get("/runs/0/stop").status_code == 404
    answer = client.post("/runs/0/stop", headers={PROOF: client.get("/runs").json()["token"]})
    assert answer.status_code == 200 and answer.json() == {"said": "stopped run"}
    refused = guest(run, stop=ask_to_stop).post("/runs/0/stop", headers={PROOF: TOKEN})
    assert refused.status_code == 409 and "nothing to stop" in refused.text


def test_a_missing_package_and_a_taken_port_are_named(tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port: {port} cannot be listened on"):
            serve([tmp_path], port, lambda text: None)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"the live page needs uvicorn; .*\[server\]"):
        serve([tmp_path], None, lambda text: None)


@pytest.mark.slow
def test_a_page_beside_a_run_ends_with_it(tmp_path):
    said = []
    with beside(new_run(tmp_path / "run"), said.append):
        end = time.monotonic() + 60
        while not said and time.monotonic() < end:
            time.sleep(0.02)
        (address,) = re.findall(r"live page: (http://127\.0\.0\.1:\d+/\?token=[\w-]+)", said[0])
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(), urllib.request.ProxyHandler({}))
        assert b"What the run said" in opener.open(address, timeout=60).read()
    with pytest.raises(OSError):
        opener.open(address, timeout=5)


HOLDER = """
import fcntl, os, signal, sys
lock = open(sys.argv[1], "a+")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.write(f"process {os.getpid()} on {os.uname().nodename}")
lock.flush()
print("held", flush=True)
signal.sigwait({signal.SIGTERM})
print("asked", flush=True)
"""


def test_only_the_process_that_holds_the_lock_is_asked_to_stop(tmp_path):
    lock = tmp_path / ".lock"
    code = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n" + HOLDER
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        found = owner(tmp_path)
        assert found is not None and found.process == process.pid and found.here
        mine = lock.read_text().replace(str(process.pid), str(os.getpid()))
        theirs = lock.read_text()
        lock.write_text(mine)  # a number that another process has by now
        with pytest.raises(UserError, match="no longer holds"):
            ask_to_stop(tmp_path)
        lock.write_text(theirs.replace(os.uname().nodename, "elsewhere"))
        assert owner(tmp_path).machine == "elsewhere"
        with pytest.raises(UserError, match="written on elsewhere; stop it there"):
            ask_to_stop(tmp_path)
        lock.write_text(theirs)
        assert f"process {process.pid} was asked to stop" in ask_to_stop(tmp_path)
        assert process.stdout.readline() == "asked\n"
    assert process.wait() == 0 and owner(tmp_path) is None


def test_a_lock_without_its_process_is_no_owner(tmp_path):
    assert owner(tmp_path) is None
    process = subprocess.run(["true"], check=True) and subprocess.Popen(["true"])
    process.wait()
    (tmp_path / ".lock").write_text(f"process {process.pid} on {os.uname().nodename}")
    assert owner(tmp_path) is None
    (tmp_path / ".lock").write_text(f"process {os.getpid()} on {os.uname().nodename}")  # alive, and holds nothing
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("a process that holds no lock was signalled"))
    try:
        with pytest.raises(UserError, match="no longer holds"):
            ask_to_stop(tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)

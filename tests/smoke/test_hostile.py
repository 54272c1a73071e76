"""The malicious set: what a stranger may send to a reward server, and what a broken reward or server does to a run.

Nothing that arrives is executed, opened or believed; the server goes on; the run follows the declared policy.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin

pytest.importorskip("fastapi", reason="the reward server is the extra server")
httpx = pytest.importorskip("httpx")

from flowrl.errors import UserError  # noqa: E402
from flowrl.records import checkpoint  # noqa: E402
from flowrl.records.manifest import MANIFEST, SEAL, STATE, VALUES, seal  # noqa: E402
from flowrl.score import RewardError, load_rewards  # noqa: E402
from flowrl.types import Prompt, Samples  # noqa: E402

pytestmark = pytest.mark.slow  # a server with two processes, and short runs
ROOT = Path(__file__).parents[2]
TOKEN = "correct-horse-battery-staple"
BODY, PIXELS, SAMPLES, SECONDS = 1 << 20, 1 << 16, 16, 3.0
REWARDS = '''
import os, time

def good(images, prompts):
    return images.mean(dim=(1, 2, 3))

def bad(completions, prompts):
    """Does what the first prompt says."""
    what = prompts[0]
    if what == "hang":
        time.sleep(10_000)
    if what == "spin":
        while True:
            pass
    if what == "die":
        os._exit(3)
    if what == "segfault":
        os.kill(os.getpid(), 11)
    if what == "raise":
        raise RuntimeError("the token is " + os.environ.get("FLOWRL_TOKEN", "not here"))
    if what == "nan":
        return [float("nan")] * len(prompts)
    if what == "short":
        return [1.0]
    if what == "inf":
        return [float("inf")] * len(prompts)
    if what == "text":
        return ["good"] * len(prompts)
    if what == "nothing":
        return None
    if what == "print":
        print("\\x00" * 100, flush=True)
    return [1.0] * len(prompts)
'''
CONFIG = f"""
rewards: ['mine.py:good', 'mine.py:bad']
limits: {{body: {BODY}, pixels: {PIXELS}, samples: {SAMPLES}, seconds: {SECONDS}, receive_seconds: 2, concurrency: 4}}
"""


@dataclass
class Server:
    """A running ``flowrl reward-server``."""

    process: subprocess.Popen[str]
    url: str
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    def post(self, body: bytes, token: str = TOKEN, kind: str = "application/json", **headers: str) -> Any:
        sent = {"Authorization": f"Bearer {token}", "Content-Type": kind, **headers}
        with httpx.Client(trust_env=False, timeout=30) as client:
            return client.post(f"{self.url}/score", content=body, headers=sent)

    def score(self, **call: Any) -> Any:
        return self.post(json.dumps({"protocol": 1, **call}).encode())

    def assert_well(self) -> None:
        """It still answers, rightly."""
        answer = self.score(reward="good", prompts=["a"], images=[png(8, 8, 255)])
        assert answer.status_code == 200 and answer.json()["scores"] == [1.0]


def start(folder: Path, config: str = CONFIG, port: int = 0) -> Server:
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(REWARDS)
    (folder / "server.yaml").write_text(config)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FLOWRL_TOKEN": TOKEN}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flowrl", "reward-server", "server.yaml", "--port", str(port)],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
    end = time.monotonic() + 120
    while not (found := re.search(r"listening on (http://[\d.:]+)", (folder / "server.log").read_text())):
        assert process.poll() is None and time.monotonic() < end, (folder / "server.log").read_text()
        time.sleep(0.1)
    return Server(process, found[1], folder)


def stop(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)
    try:
        server.process.wait(20)
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start(tmp_path_factory.mktemp("server"))
    yield running
    workers = worker_pids(running)
    stop(running)
    assert workers and not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWRL_TOKEN", TOKEN)


class Bomb:
    """What a pickle of it does when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png(width: int, height: int, level: int = 0, **options: Any) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (level,) * 3).save(buffer, format="PNG", **options)
    return text(buffer.getvalue())


def other_format(name: str, mode: str = "RGB") -> str:
    buffer = io.BytesIO()
    Image.new(mode, (8, 8)).save(buffer, format=name)
    return text(buffer.getvalue())


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def forged(width: int, height: int, data: bytes, *more: bytes) -> str:
    """A PNG whose header says what it likes."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return text(b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def zeros(count: int) -> bytes:
    return zlib.compress(b"\0" * count, 9)


def image_cases(trace: Path) -> dict[str, tuple[str, int]]:
    """Images that are none of ours, and the status they deserve."""
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "\0" * (80 << 20), zip=True)
    honest = base64.b64decode(png(64, 64, 7))
    damaged = bytearray(honest)
    damaged[50] ^= 0xFF
    return {
        "pickle": (text(pickle.dumps(Bomb(trace))), 422),
        "pickle named png": (text(b"\x89PNG\r\n\x1a\n" + pickle.dumps(Bomb(trace))), 422),
        "numpy with a pickle": (text(b"\x93NUMPY\x01\x00" + pickle.dumps(Bomb(trace))), 422),
        "bomb of 2^31 pixels": (forged(1 << 16, 1 << 15, zeros(1 << 20)), 413),
        "bomb of 2^62 pixels": (forged(0x7FFFFFFF, 0x7FFFFFFF, zeros(1 << 20)), 413),
        "honest header of a large bomb": (png(4096, 4096), 413),
        "more data than the header says": (forged(8, 8, zeros(256 << 20)), 200),
        "bomb in a comment": (png(8, 8, pnginfo=notes), 422),
        "bomb in a colour profile": (forged(8, 8, zeros(200), chunk(b"iCCP", b"x\0\0" + zeros(80 << 20))), 422),
        "no pixels": (forged(0, 0, zeros(10)), 422),
        "truncated": (text(honest[:-30]), 422),
        "header alone": (text(honest[:33]), 422),
        "damaged": (text(bytes(damaged)), 422),
        "empty": ("", 422),
        "no base64": ("../../etc/passwd", 422),
        "a path": ("file:///etc/passwd", 422),
        "an address": ("http://169.254.169.254/latest/meta-data", 422),
        "base64 with line breaks": ("\n".join(re.findall(".{1,20}", png(8, 8))), 422),
        "jpeg": (other_format("JPEG"), 422),
        "gif": (other_format("GIF"), 422),
        "tiff": (other_format("TIFF"), 422),
        "webp": (other_format("WEBP"), 422),
        "eps": (text(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%touch /tmp/x) (w) file\n"), 422),
        "svg": (text(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), 422),
        "grey": (other_format("PNG", "L"), 422),
        "with alpha": (other_format("PNG", "RGBA"), 422),
        "palette": (other_format("PNG", "P"), 422),
        "16 bits": (other_format("PNG", "I;16"), 422),
    }


def body_cases(trace: Path) -> dict[str, tuple[bytes, int]]:
    """Bodies that are no call."""
    fine: dict[str, Any] = {"protocol": 1, "reward": "good", "prompts": ["a"], "images": [png(8, 8)]}

    def but(**changes: Any) -> bytes:
        return json.dumps({k: v for k, v in (fine | changes).items() if v != "-"}).encode()

    deep = b"[" * 100_000 + b"]" * 100_000
    start_of = but()[:-1]
    return {
        "pickle": (pickle.dumps(Bomb(trace)), 400),
        "pickle of an honest call": (pickle.dumps(fine, protocol=5), 400),
        "yaml": (f"!!python/object/apply:os.system ['touch {trace}']".encode(), 400),
        "empty": (b"", 400),
        "half a call": (but()[:-5], 400),
        "two calls": (but() + but(), 400),
        "not UTF-8": (b'{"protocol": 1, "reward": "\xff\xfe"}', 400),
        "half a surrogate pair": (but(prompts="-")[:-1] + b', "prompts": ["\\ud800"]}', 400),
        "NUL bytes": (b"\0" * 1000, 400),
        "deep list": (deep, 400),
        "deep list in a column": (start_of + b', "columns": {"a": [' + deep + b"]}}", 400),
        "deep object": (start_of + b', "columns": {"a": [' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"]}}", 400),
        "a number of 100,000 digits": (b'{"protocol": ' + b"1" * 100_000 + b"}", 400),
        "a list": (b"[]", 422),
        "null": (b"null", 422),
        "a string": (b'"good"', 422),
        "nothing inside": (b"{}", 422),
        "no protocol": (but(protocol="-"), 422),
        "another protocol": (but(protocol=2), 422),
        "protocol as text": (but(protocol="1"), 422),
        "an unknown key": (but(use="os:system"), 422),
        "options": (but(options={"path": "/etc/passwd"}), 422),
        "a key of Python": (but(__class__="os.system"), 422),
        "prompts as text": (but(prompts="a"), 422),
        "prompts as numbers": (but(prompts=[1]), 422),
        "prompts as null": (but(prompts=[None]), 422),
        "images as objects": (but(images=[{"path": "/etc/passwd"}]), 422),
        "no samples' contents": (but(images="-"), 422),
        "fewer images than prompts": (but(prompts=["a", "b"]), 422),
        "more images than prompts": (but(images=[png(8, 8)] * 2), 422),
        "a column that is too short": (but(columns={"a": []}), 422),
        "columns as a list": (but(columns=[1]), 422),
        "group as text": (but(group=["a"]), 422),
        "group beyond 64 bits": (but(group=[1 << 80]), 422),
        "images of two sizes": (but(prompts=["a", "b"], images=[png(8, 8), png(8, 9)]), 422),
        "too many samples": (but(prompts=["a"] * 17, images=[png(8, 8)] * 17), 413),
        "too many pixels together": (but(prompts=["a"] * 9, images=[png(128, 64)] * 9), 413),
        "a million empty prompts": (but(prompts=[""] * 200_000), 413),
        "text for a reward of images": (but(images="-")[:-1] + b', "completions": ["a"]}', 422),
    }


NAMES = [
    "",
    "good ",
    "Good",
    "../good",
    "../../etc/passwd",
    "/etc/passwd",
    "mine.py:good",
    "/tmp/evil.py:fn",
    "os:system",
    "file:///etc/passwd",
    "http://127.0.0.1:1/good",
    "ray:good",
    "good\0",
    "__class__",
    "jpeg_compressibility",
    "%2e%2e%2fgood",
    "good; rm -rf /",
]


def assert_refused(answer: Any, status: int, what: str) -> None:
    assert answer.status_code == status, (what, answer.status_code, answer.text[:300])
    sentence = answer.json()["error"]
    assert isinstance(sentence, str) and 0 < len(sentence) < 500 and "\n" not in sentence, what
    assert "Traceback" not in answer.text and 'File "' not in answer.text and ".py" not in answer.text, what
    assert TOKEN not in answer.text, what


def test_bodies_that_are_no_call(server: Server, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    cases = body_cases(trace)
    for what, (body, status) in cases.items():
        assert_refused(server.post(body), status, what)
    assert len(cases) >= 35 and not trace.exists()
    server.assert_well()


def test_images_that_are_none(server: Server, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    cases = image_cases(trace)
    for what, (image, status) in cases.items():
        began = time.monotonic()
        answer = server.score(reward="good", prompts=["a"], images=[image])
        assert time.monotonic() - began < 10, what
        if status == 200:
            assert answer.json()["scores"] == [0.0], what  # what the header says, and no more
        else:
            assert_refused(answer, status, what)
    assert len(cases) >= 25 and not trace.exists()
    assert memory_of(server) < 1 << 30
    server.assert_well()


def memory_of(server: Server) -> int:
    """Largest resident memory in bytes of the server and its workers so far."""
    most = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            status = (entry / "status").read_text()
            if f"PPid:\t{server.process.pid}\n" in status or entry.name == str(server.process.pid):
                most = max(most, int(re.search(r"VmHWM:\s+(\d+)", status)[1]) << 10)  # type: ignore[index]
    return most


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_not_served(server: Server, name: str) -> None:
    answer = server.score(reward=name, prompts=["a"], images=[png(8, 8)])
    assert_refused_name(answer)


def assert_refused_name(answer: Any) -> None:
    assert answer.status_code == 404
    assert answer.json() == {"error": "there is no such reward here; there are bad, good"}


def test_paths_that_are_not_served(server: Server) -> None:
    with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        for path in ("/", "/docs", "/openapi.json", "/redoc", "/score/../health/x", "/etc/passwd", "/static/..%2f.."):
            assert client.get(server.url + path).status_code == 404, path
        for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE"):
            assert client.request(method, f"{server.url}/score").status_code == 405, method
    server.assert_well()


def test_without_the_token_nothing_is_read(server: Server, tmp_path: Path) -> None:
    body = json.dumps({"protocol": 1, "reward": "good", "prompts": ["a"], "images": [png(8, 8)]}).encode()
    wrong = ["x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "ü" * 20, "\u00ff", "null", "*"]
    for token in wrong:
        sent = {"Authorization": f"Bearer {token}".encode("latin-1", "replace"), "Content-Type": "application/json"}
        with httpx.Client(trust_env=False) as client:
            assert_refused(client.post(f"{server.url}/score", content=body, headers=sent), 401, token)
            assert_refused(client.get(f"{server.url}/health", headers=sent), 401, token)
    for header in (TOKEN, "Bearer", f"Basic {text(TOKEN.encode())}", f"bearer{TOKEN}", f"Bearer  {TOKEN}"):
        with httpx.Client(trust_env=False) as client:
            answer = client.post(f"{server.url}/score", content=body, headers={"Authorization": header})
        assert_refused(answer, 401, header)
    with httpx.Client(trust_env=False) as client:
        assert_refused(client.post(f"{server.url}/score?token={TOKEN}", content=body), 401, "in the address")
        assert_refused(client.post(f"{server.url}/score", content=pickle.dumps(Bomb(tmp_path / "x"))), 401, "pickle")
    assert not (tmp_path / "x").exists()
    server.assert_well()


def test_other_kinds_of_content(server: Server, tmp_path: Path) -> None:
    honest = json.dumps({"protocol": 1, "reward": "good", "prompts": ["a"], "images": [png(8, 8)]}).encode()
    bomb = pickle.dumps(Bomb(tmp_path / "executed"))
    for kind in (
        "application/octet-stream",
        "application/x-pickle",
        "multipart/form-data; boundary=x",
        "text/plain",
        "",
    ):
        assert_refused(server.post(bomb, kind=kind), 415, kind)
    zipped = gzip.compress(b"\0" * (200 << 20))
    for coding in ("gzip", "deflate", "br", "gzip, gzip", "GZIP"):
        assert_refused(server.post(zipped, **{"Content-Encoding": coding}), 415, coding)
    assert_refused(server.post(gzip.compress(honest)), 400, "gzip that does not say so")
    assert not (tmp_path / "executed").exists()
    server.assert_well()


def test_bodies_that_are_too_large(server: Server) -> None:
    assert_refused(server.post(b" " * (BODY + 1)), 413, "declared")

    def endless() -> Iterator[bytes]:
        for _ in range(400):
            yield b" " * (1 << 18)

    answer = raw(server, head(length=None) + b"".join(b"10000\r\n" + b" " * 65536 + b"\r\n" for _ in range(20)))
    assert b" 413 " in answer.partition(b"\r\n")[0]
    with contextlib.suppress(httpx.TransportError):  # the server hangs up while a client is still sending
        assert server.post(endless()).status_code == 413  # type: ignore[arg-type]
    for length in ("99999999999999999999", "1" * 400):
        assert raw(server, head(length))[8:13] in (b" 413 ", b" 400 ")
    for length in ("-1", "ten", "1, 2", "0x10"):
        assert b" 400 " in raw(server, head(length)).partition(b"\r\n")[0]
    assert memory_of(server) < 1 << 30
    server.assert_well()


def head(length: str | None = "10", path: str = "/score") -> bytes:
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: application/json\r\n{size}\r\n\r\n"
    ).encode()


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def raw(server: Server, data: bytes) -> bytes:
    """What the server says to these bytes until it hangs up."""
    answer = b""
    with connect(server) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(data)
        while block := connection.recv(65536):
            answer += block
            if b"\r\n\r\n" in answer:
                break
    return answer


def test_bytes_that_are_no_http(server: Server) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 200,  # TLS
        b"\x80\x05\x95" + b"\0" * 100 + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-Long: " + b"x" * 200_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: x\r\n" % i for i in range(20_000)) + b"\r\n",
        b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ):
        answer = raw(server, data)
        assert not answer or answer[8:13] in (b" 400 ", b" 401 ", b" 404 "), (data[:60], answer[:60])
        assert b"Traceback" not in answer
    server.assert_well()


def test_slow_connections_are_closed_and_others_served(server: Server) -> None:
    silent = [connect(server) for _ in range(100)]
    dripping = [connect(server) for _ in range(20)]
    bodies = [connect(server) for _ in range(4)]  # as many as requests may be under way
    try:
        for connection in dripping:
            connection.sendall(b"POST /score HT")
        for connection in bodies:
            connection.sendall(head("1000") + b"{")
        began = time.monotonic()
        while server.score(reward="good", prompts=["a"], images=[png(8, 8, 255)]).status_code != 200:
            assert time.monotonic() - began < 20
            time.sleep(0.2)
        for connection in bodies:
            assert b" 408 " in connection.recv(4096)[:40]
        for connection in (*silent, *dripping):
            connection.settimeout(20)
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"x")
                while connection.recv(4096):
                    pass
        assert time.monotonic() - began < 60
    finally:
        for connection in (*silent, *dripping, *bodies):
            connection.close()
    server.assert_well()


@pytest.mark.parametrize(
    ("what", "status", "match"),
    [
        ("hang", 504, "took more than 3 s, and was stopped"),
        ("spin", 504, "took more than 3 s, and was stopped"),
        ("die", 500, "raised ExitCalledError; the server's log says where"),
        ("segfault", 500, "the process of reward 'bad' died"),
        ("raise", 500, "raised RuntimeError; the server's log says where"),
        ("short", 500, "should return 2 scores for 2 samples, found 1"),
        ("inf", 500, "returned inf for sample 0"),
        ("text", 500, "list of numbers"),
        ("nothing", 500, "missing return"),
        ("nan", 200, ""),
        ("print", 200, ""),
    ],
)
def test_a_reward_that_misbehaves(server: Server, what: str, status: int, match: str) -> None:
    answer = server.score(reward="bad", prompts=[what, "b"], completions=["x", "y"])
    if status == 200:
        assert answer.json()["scores"] == ([None, None] if what == "nan" else [1.0, 1.0])
    else:
        assert_refused(answer, status, what)
        assert match in answer.json()["error"]
    server.assert_well()  # the other reward did not notice
    again = server.score(reward="bad", prompts=["fine"], completions=["x"])
    assert again.status_code == 200 and again.json()["scores"] == [1.0]
    if what == "raise":
        assert "the token is not here" in server.log and TOKEN not in server.log


@pytest.mark.parametrize(("what", "policy"), [("raise", "raise"), ("die", "raise"), ("short", "drop"), ("nan", "drop")])
def test_the_client_follows_the_declared_policy(server: Server, what: str, policy: str) -> None:
    prompts = [Prompt(what, 0)] * 2 + [Prompt("fine", 1)] * 2
    samples = Samples(prompts, completions=list("abcd"))
    spec: dict[str, Any] = {"use": f"{server.url}/bad", "batch_size": 2}
    group = torch.tensor([0, 0, 1, 1])
    if policy == "raise":
        with pytest.raises(RewardError, match="HTTP 500"):
            load_rewards([spec])(samples, group)
        return
    scores = load_rewards([spec | {"on_error": "drop_group"}])(samples, group)
    assert scores.valid.tolist() == [False, False, True, True] and scores.rewards[2:, 0].tolist() == [1.0, 1.0]
    with pytest.raises(UserError):
        load_rewards([spec])(samples, group)


def refused(folder: Path, *arguments: str, token: str | None = TOKEN) -> str:
    """What ``flowrl reward-server`` says when it does not start."""
    environment = {key: value for key, value in os.environ.items() if key != "FLOWRL_TOKEN"}
    environment |= {"OMP_NUM_THREADS": "1"} | ({"FLOWRL_TOKEN": token} if token else {})
    done = subprocess.run(
        [sys.executable, "-m", "flowrl", "reward-server", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.replace("\n", " ")


def test_servers_that_do_not_start(tmp_path: Path) -> None:
    inside, trace = tmp_path / "inside", tmp_path / "executed"
    inside.mkdir()
    (tmp_path / "evil.py").write_text(f"open({str(trace)!r}, 'w')\ndef fn(images, prompts): return [1.0]")
    config = inside / "server.yaml"
    for use in ("../evil.py:fn", f"{tmp_path}/evil.py:fn", "ray:../evil.py:fn"):
        config.write_text(f"rewards: ['{use}']")
        assert "is a file outside" in refused(inside, "server.yaml")
    for use in ("os:system", "subprocess:call", "importlib.util:find_spec"):
        config.write_text(f"rewards: [{{use: '{use}', options: {{command: 'touch {trace}', args: 'x'}}}}]")
        assert "standard library" in refused(inside, "server.yaml")
    config.write_text(f"rewards: !!python/object/apply:os.system ['touch {trace}']")
    assert "has the tag 'tag:yaml.org,2002:python/object/apply:os.system'" in refused(inside, "server.yaml")
    config.write_text("rewards: [jpeg_compressibility]")
    assert "needs a token of yours" in refused(inside, "server.yaml", "--host", "0.0.0.0", token=None)
    assert "16 or more ASCII characters" in refused(inside, "server.yaml", "--host", "0.0.0.0", token="short")
    config.write_text("rewards: [jpeg_compressibilty]")
    assert "did you mean 'jpeg_compressibility'" in refused(inside, "server.yaml")
    assert not trace.exists()


def test_a_checkpoint_with_code_in_it(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    tensors = {"weight": torch.arange(4.0)}
    saved = checkpoint.save(tmp_path / "a", 1, tensors, {"x": 1}, {}, {})
    code = f"open({str(trace)!r}, 'w')"
    for name in ("__init__.py", "sitecustomize.py", "conftest.py", "state/__init__.py", "state/state.py", "torch.py"):
        (saved / name).write_text(code)
    for name in ("state.pkl", "state/state.pt", "state/state.bin", "optimizer.pt", "state/values.pkl"):
        (saved / name).write_bytes(pickle.dumps(Bomb(trace)))
    found = checkpoint.load(saved)
    assert torch.equal(found.tensors["weight"], tensors["weight"]) and found.values == {"x": 1}
    for name in (STATE, VALUES, MANIFEST):
        for forge in (False, True):
            target = checkpoint.save(tmp_path / f"b{forge}", 1, tensors, {"x": 1}, {}, {})
            (target / name).write_bytes(pickle.dumps(Bomb(trace)))
            if forge and name != MANIFEST:
                vouch_for(target, name)
            with pytest.raises(Exception, match=r"damaged|bytes|[Hh]eader|decode|UTF-8"):
                checkpoint.load(target)
            shutil.rmtree(target)
    assert not trace.exists()


def vouch_for(saved: Path, name: str) -> None:
    """A manifest that says a planted file is the right one."""
    path = saved / MANIFEST
    manifest = json.loads(path.read_text())
    data = (saved / name).read_bytes()
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.pop(SEAL)
    path.write_text(json.dumps({**manifest, SEAL: seal(manifest)}))


RUN = [
    "data.prompts=3",
    "data.group=4",
    "train.updates=1",
    "train.iterations=4",
    "eval.every=0",
    "checkpoint.every=1",
    "optimizer.schedule=constant",
    "log.samples=0",
]


def train(out: Path, url: str, *more: str) -> subprocess.Popen[str]:
    config = out.parent / f"{out.name}.yaml"
    base = (ROOT / "configs/quickstart.yaml").read_text()
    config.write_text(
        re.sub(r"(?ms)^rewards:.*?(?=^\w|\Z)", "", base) + f"\nrewards: [{{use: '{url}', options: {{retries: 1}}}}]\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FLOWRL_TOKEN": TOKEN}
    command = [sys.executable, "-m", "flowrl", "train", str(config), f"out={out}", *RUN, *more]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def lines_of(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time", "reward/seconds"))} for line in lines]


def test_a_server_killed_in_mid_run_loses_nothing(tmp_path: Path) -> None:
    config = "rewards: ['mine.py:good']"
    first = start(tmp_path / "served", config)
    port = int(first.url.rpartition(":")[2])
    out, calm = tmp_path / "run", tmp_path / "calm"
    undisturbed = train(calm, f"{first.url}/good")
    assert undisturbed.wait(300) == 0, undisturbed.stdout.read()  # type: ignore[union-attr]
    process = train(out, f"{first.url}/good")
    metrics = out / "metrics.jsonl"
    end = time.monotonic() + 240
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    children = worker_pids(first)
    first.process.kill()
    first.process.wait()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in said, said
    assert "is the server still running" in said.replace("\n", " ")
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    assert children and list((out / "checkpoints").glob("step_*"))
    second = start(tmp_path / "served", config, port)
    try:
        resumed = train(out, f"{second.url}/good", "--resume", "auto")
        said, _ = resumed.communicate(timeout=300)
        assert resumed.returncode == 0, said
    finally:
        stop(second)
    assert lines_of(out) == lines_of(calm)


def worker_pids(server: Server) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"PPid:\t{server.process.pid}\n" in (entry / "status").read_text():
                found.append(entry.name)
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_many_hostile_callers_at_a_time(server: Server) -> None:
    """Honest calls among hostile ones are all answered, rightly."""
    cases = [body for body, _ in body_cases(Path("/nowhere/x")).values()]
    unexpected: list[int] = []

    def attack(first: int) -> None:
        for body in cases[first::3]:
            with contextlib.suppress(httpx.TransportError):
                status = server.post(body).status_code
                if status not in (400, 413, 422, 503):
                    unexpected.append(status)

    threads = [threading.Thread(target=attack, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    scorer = load_rewards([{"use": f"{server.url}/good", "options": {"retries": 10}}])
    images = torch.ones(4, 3, 8, 8)
    for _ in range(10):
        assert scorer.raw(Samples([Prompt("a", i) for i in range(4)], images))[:, 0].tolist() == [1.0] * 4
    for thread in threads:
        thread.join()
    assert not unexpected
    server.assert_well()

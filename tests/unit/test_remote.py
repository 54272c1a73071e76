"""Remote scoring: the same numbers as here, few and bounded requests, and one clear sentence for every failure."""

import asyncio
import contextlib
import json
import math
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("fastapi", reason="remote scoring is the extra server")
httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")

from flowrl.clients import http as http_client  # noqa: E402
from flowrl.clients import ray as ray_client  # noqa: E402
from flowrl.clients.http import Address  # noqa: E402
from flowrl.clients.protocol import (  # noqa: E402
    RequestLimits,
    ScoreRequest,
    decode_images,
    encode_images,
    reward_named_by,
)
from flowrl.errors import UserError  # noqa: E402
from flowrl.remote.reward_process import Response  # noqa: E402
from flowrl.remote.server import HeadTimeoutProtocol, build_app  # noqa: E402
from flowrl.remote.settings import ServerConfig, choose_token, is_loopback  # noqa: E402
from flowrl.remote.worker import answer, load  # noqa: E402
from flowrl.score import RewardError, Rewards, load_rewards  # noqa: E402
from flowrl.score.registry import check_reward  # noqa: E402
from flowrl.score.reward import Reward  # noqa: E402
from flowrl.score.signatures import adapt  # noqa: E402
from flowrl.types import Prompt, Samples  # noqa: E402

TOKEN = "a-token-of-some-length"
REWARDS = '''
import torch

def brightness(images, prompts, **columns):
    return images.mean(dim=(1, 2, 3))

def targeted(images, prompts, target, shift=0.0):
    """Depends on pixels, columns and prompts; NaN where there is no target."""
    return [None if t is None else float(i.double().sum()) * t + len(p) + shift
            for i, p, t in zip(images, prompts, target)]

def length(completions, prompts):
    return [float(len(c)) for c in completions]

def rank(images, prompts, group):
    """The rank within its group: a different number when a group is torn apart."""
    light = images.mean(dim=(1, 2, 3)).tolist()
    return [sum(g == h and a > b for b, h in zip(light, group)) for a, g in zip(light, group)]

def private(images, prompts):
    raise OSError("/etc/secret is not readable")
'''


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWRL_TOKEN", TOKEN)
    (tmp_path / "mine.py").write_text(REWARDS)


class Here:
    """A reward in this process, so that most tests need not wait for another."""

    def __init__(self, use: str, limits: RequestLimits, gate: threading.Event | None = None) -> None:
        self.rewards, self.facts = load({"use": use})
        self.name, self.limits, self.gate = self.rewards.names[0], limits, gate
        self.sizes: list[int] = []

    async def ask(self, body: bytes) -> Response:
        self.sizes.append(len(json.loads(body)["prompts"]))
        if self.gate is not None:
            await asyncio.to_thread(self.gate.wait, 60)
        return await asyncio.to_thread(answer, self.rewards, self.name, body, self.limits)


@contextlib.contextmanager
def serving(
    *uses: str, limits: RequestLimits | None = None, gate: threading.Event | None = None
) -> Iterator[tuple[str, dict[str, Here]]]:
    limits = limits or RequestLimits()
    scorers = {here.name: here for here in (Here(use, limits, gate) for use in uses)}
    app = build_app(scorers, TOKEN, limits)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, http=HeadTimeoutProtocol, ws="none", lifespan="off", log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", scorers
        finally:
            server.should_exit = True
            thread.join()


def pictures(count: int = 7, size: int = 16) -> Samples:
    """Images of 256 levels, as PNG holds them."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator).float() / 255
    prompts = [Prompt(f"prompt {'x' * i}", i, {"target": None if i == 2 else 0.1 * i}) for i in range(count)]
    return Samples(prompts, images)


def remote(url: str, **options: Any) -> Any:
    return load_rewards([{"use": url, "options": options}])


@pytest.mark.parametrize("batch", [1, 3, 32])
@pytest.mark.parametrize("use", ["mine.py:brightness", "mine.py:targeted", "jpeg_compressibility"])
def test_a_server_gives_the_numbers_of_the_reward_called_here(use: str, batch: int) -> None:
    samples = pictures()
    expected = load_rewards([use]).raw(samples)
    with serving(use) as (url, scorers):
        scorer = remote(f"{url}/{use.rpartition(':')[2]}", batch=batch)
        values = scorer.raw(samples)
        scorer.close()
    assert torch.equal(values.isnan(), expected.isnan()) and torch.equal(values.nan_to_num(), expected.nan_to_num())
    assert bool(values.isnan().any()) == ("targeted" in use)
    assert next(iter(scorers.values())).sizes == [min(batch, 7 - start) for start in range(0, 7, batch)]
    local = load_rewards([use])
    assert scorer.names == local.names and scorer.versions == local.versions
    assert ("jpeg" in use) == bool(local.versions)


def test_rewards_that_compare_samples_get_whole_groups() -> None:
    samples, group = pictures(count=12), torch.arange(12) // 6
    local = load_rewards(["mine.py:rank"])
    with serving("mine.py:rank", "mine.py:brightness") as (url, scorers):
        scorer = load_rewards([{"use": f"{url}/rank", "options": {"batch": 4}, "batch_size": 8}])
        assert scorer.grouped and not remote(f"{url}/brightness").grouped
        values = scorer.raw(samples, group)
        assert torch.equal(values, local.raw(samples, group)) and sorted(values[:6, 0].tolist()) == [0, 1, 2, 3, 4, 5]
    assert scorers["rank"].sizes == [6, 6]


def test_images_are_rounded_to_256_levels_and_nothing_else() -> None:
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    samples = Samples([Prompt("a", i) for i in range(5)], images)
    rounded = Samples(samples.prompts, (images * 255).round() / 255)
    local = load_rewards(["mine.py:brightness"])
    with serving("mine.py:brightness") as (url, _):
        values = remote(f"{url}/brightness").raw(samples)
    assert torch.equal(values, local.raw(rounded))
    difference = (values - local.raw(samples)).abs().max()
    assert 0 < difference <= 0.5 / 255


def test_texts_and_an_empty_batch() -> None:
    texts = ["", "abc", "日本語 \x00 \U0001f600", 'quote " \\ '] * 10
    samples = Samples([Prompt("p", i) for i in range(40)], completions=texts)
    with serving("mine.py:length") as (url, scorers):
        scorer = remote(f"{url}/length", batch=16)
        assert scorer.raw(samples)[:, 0].tolist() == [float(len(text)) for text in texts]
        assert scorer.raw(Samples([], completions=[])).shape == (0, 1)
        assert scorers["length"].sizes == [16, 16, 8]
        with pytest.raises(UserError, match="422: reward 'length' scores completions, but the model makes no"):
            scorer.raw(pictures())


def test_requests_are_cut_to_what_the_server_allows() -> None:
    samples = pictures(count=9, size=32)
    expected = load_rewards(["mine.py:brightness"]).raw(samples)
    one = len(encode_images((samples.images[:1] * 255).byte().permute(0, 2, 3, 1).numpy())[0])  # type: ignore[index]
    for limits, largest in (
        (RequestLimits(samples=4), 4),
        (RequestLimits(pixels=3 * 32 * 32 + 5), 3),
        (RequestLimits(body=int(2.6 * one)), 2),
    ):
        with serving("mine.py:brightness", limits=limits) as (url, scorers):
            assert torch.equal(remote(f"{url}/brightness").raw(samples), expected)
        assert max(scorers["brightness"].sizes) == largest and sum(scorers["brightness"].sizes) == 9
    with (
        serving("mine.py:brightness", limits=RequestLimits(body=one // 2)) as (url, _),
        pytest.raises(UserError, match=r"one sample has \d+ bytes, the server's limit is"),
    ):
        remote(f"{url}/brightness").raw(samples)


def test_health_names_rewards_and_tells_no_secret() -> None:
    with serving("mine.py:brightness", "mine.py:length") as (url, _):
        assert httpx.get(f"{url}/health").status_code == 401
        health = httpx.get(f"{url}/health", headers={"Authorization": f"Bearer {TOKEN}"})
    assert [entry["name"] for entry in health.json()["rewards"]] == ["brightness", "length"]
    assert TOKEN not in health.text and "mine.py" not in health.text


def test_mistakes_show_before_training() -> None:
    with serving("mine.py:brightness") as (url, _):
        with pytest.raises(UserError, match="no such reward; did you mean 'brightness'"):
            remote(f"{url}/brightnes")
        with pytest.raises(UserError, match=r"FLOWRL_OTHER is not set"):
            remote(f"{url}/brightness", token_env="FLOWRL_OTHER")
        with pytest.raises(UserError, match="no option 'retrys'; did you mean 'retries'"):
            remote(f"{url}/brightness", retrys=3)
        for option, value in (("batch", 0), ("retries", -1), ("timeout", 0)):
            with pytest.raises(UserError, match=f"{option} should be .* found {value!r}"):
                remote(f"{url}/brightness", **{option: value})
        with pytest.raises(UserError, match=r"options\.timeout: 'long' will not do: input should be a valid number"):
            remote(f"{url}/brightness", timeout="long")


def test_a_wrong_token_is_refused_and_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWRL_TOKEN", TOKEN[:-1] + "X")
    with (
        serving("mine.py:brightness") as (url, _),
        pytest.raises(UserError, match=r"does not accept the token in \$FLOWRL_TOKEN") as caught,
    ):
        remote(f"{url}/brightness")
    assert TOKEN[:-1] not in str(caught.value)


def test_what_a_reward_raises_stays_on_the_server() -> None:
    with serving("mine.py:private") as (url, _):
        scorer = remote(f"{url}/private")
        with pytest.raises(RewardError, match="raised OSError; the server's log says where") as caught:
            scorer.raw(pictures())
    assert "secret" not in str(caught.value) and "mine.py" not in str(caught.value)


def test_a_busy_server_asks_to_come_back_and_everyone_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    gate = threading.Event()

    def nap(seconds: float) -> None:
        waits.append(seconds)
        gate.set()  # the first is answered once another was refused
        threading.Event().wait(0.05)

    monkeypatch.setattr(http_client.time, "sleep", nap)
    with serving("mine.py:brightness", limits=RequestLimits(concurrency=1), gate=gate) as (url, _):
        scorers = [remote(f"{url}/brightness", retries=100) for _ in range(3)]
        answers: list[Tensor] = []
        threads = [threading.Thread(target=lambda s=s: answers.append(s.raw(pictures()))) for s in scorers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 3 and all(torch.equal(a, answers[0]) for a in answers)
    assert waits and min(waits) >= 1.0  # Retry-After


def test_a_refusal_of_a_busy_server_is_read_by_one_that_is_still_sending() -> None:
    body = b"{" + b" " * 100_000
    head = f"POST /score HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
    gate = threading.Event()
    with serving("mine.py:brightness", limits=RequestLimits(concurrency=1), gate=gate) as (url, here):
        scorer = remote(f"{url}/brightness")
        first = threading.Thread(target=scorer.raw, args=(pictures(),))
        first.start()
        while not here["brightness"].sizes:  # it is at work, and stays so
            time.sleep(0.01)
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=10) as line:
            line.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
            for start in range(0, len(body), 10_000):
                time.sleep(0.02)
                line.sendall(body[start : start + 10_000])
            answer = line.makefile("rb").read()
        gate.set()
        first.join()
    assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in answer.lower()


class Script:
    """An HTTP server that plays back answers: (status, headers, body) or a function of the handler."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.requests = list(answers), 0
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = {
                    "protocol": 1,
                    "rewards": [{"name": "r"}],
                    "limits": {"body": 1 << 20, "samples": 9, "pixels": 1 << 20},
                }
                self.reply(200, {}, json.dumps(body).encode())

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                script.requests += 1
                reply = script.answers[min(script.requests, len(script.answers)) - 1]
                reply(self) if callable(reply) else self.reply(*reply)

            def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                return None

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/r"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


TWO = Samples([Prompt("a", 0), Prompt("b", 1)], completions=["x", "y"])
GOOD = (200, {}, b'{"protocol": 1, "scores": [0.5, null]}')


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(http_client.time, "sleep", found.append)
    return found


def hang_up(handler: Any) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def test_broken_connections_429_and_503_are_retried_with_growing_waits(naps: list[float]) -> None:
    busy = (503, {}, b"{}")
    script = Script(hang_up, busy, (429, {"Retry-After": "7"}, b"{}"), busy, GOOD)
    with script as url:
        values = remote(url).raw(TWO)[:, 0]
    assert values[0] == 0.5 and math.isnan(values[1]) and script.requests == 5
    for nap, full in zip(naps, (0.5, 1.0, 2.0, 4.0), strict=True):
        assert full / 2 <= nap <= full or nap == 7.0
    assert naps[2] == 7.0


def test_retries_are_bounded(naps: list[float]) -> None:
    script = Script((503, {"Retry-After": "999999"}, b"{}"))
    with script as url, pytest.raises(RewardError, match=r"server is busy \(HTTP 503\) \(4 tries\)"):
        remote(url, retries=3).raw(TWO)
    assert script.requests == 4 and naps == [30.0] * 3
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(
        RewardError, match=r"no connection \(connection refused\) \(2 tries\); is the server still running"
    ):
        remote(f"http://127.0.0.1:{port}/r", retries=1)


@pytest.mark.parametrize(
    ("reply", "kind", "match"),
    [
        ((500, {}, b'{"error": "reward broke"}'), RewardError, "HTTP 500: reward broke"),
        ((504, {}, b"<html>"), RewardError, "HTTP 504$"),
        ((413, {}, b'{"error": "too large\\u001b[31m"}'), UserError, r"HTTP 413: too large\[31m$"),
        ((401, {}, b"{}"), UserError, "does not accept the token"),
        ((302, {"Location": "http://127.0.0.1:1/steal"}, b""), UserError, "HTTP 302; is this the address"),
        ((200, {}, b"not json"), RewardError, "not JSON"),
        ((200, {}, b'"scores"'), RewardError, "not 2 scores"),
        ((200, {}, b"[" * 100_000), RewardError, "not JSON"),
        ((200, {}, b'{"scores": [NaN, 1]}'), RewardError, "not JSON"),
        ((200, {}, b'{"scores": [1.0]}'), RewardError, "not 2 scores"),
        ((200, {}, b'{"scores": [true, "1"]}'), RewardError, "not 2 scores"),
        ((200, {}, b"[1, 2]"), RewardError, "not 2 scores"),
        ((200, {}, b" " * (2 << 20)), RewardError, "longer than"),
        ((200, {"Content-Encoding": "gzip"}, b"\x1f\x8b\x08"), RewardError, "not JSON"),
        ((200, {}, b'{"scores": [1e999, 1]}'), RewardError, "inf"),
        ((200, {}, b'{"scores": [null, 1], "absent": [2]}'), RewardError, "rows that were not asked"),
        ((200, {}, b'{"scores": [1' + b"0" * 5000 + b", 1]}"), RewardError, "not JSON|not 2 scores"),
    ],
)
def test_other_failures_are_told_at_once(reply: Any, kind: type[Exception], match: str, naps: list[float]) -> None:
    script = Script(reply)
    with script as url, pytest.raises(kind, match=match) as caught:
        remote(url).raw(TWO)
    assert script.requests == 1 and not naps
    assert isinstance(caught.value, RewardError) == (kind is RewardError)


def test_none_is_told_apart_from_nan() -> None:
    with Script((200, {}, b'{"scores": [null, 1], "absent": [0]}'), (200, {}, b'{"scores": [null, 1]}')) as url:
        assert remote(url).raw_lists(TWO) == [[None, 1.0]]
        (first, second), *_ = remote(url).raw_lists(TWO)
    assert first is not None and math.isnan(first) and second == 1

    def sometimes(images: Any, prompts: Any) -> list[float | None]:
        return [None, float("nan"), 0.5]

    pictures = encode_images(np.zeros((3, 4, 4, 3), np.uint8))
    body = {"protocol": 1, "reward": "r", "prompts": ["a"] * 3, "images": pictures}
    served = Rewards([Reward("r", 1.0, adapt(sometimes, "r", {}, None), None)], "drop_sample")
    reply = answer(served, "r", json.dumps(body).encode(), RequestLimits())
    assert reply.content["scores"] == [None, None, 0.5] and reply.content["absent"] == [0]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"protocol": 1, "reward": "a.b-c", "prompts": []}', "a.b-c"),
        (b' \n{ "reward" : "r","protocol":1}', "r"),
        (b'{"protocol": 1, "columns": {"reward": ["x"]}, "reward": "r"}', None),
        (b'{"protocol": 1, "reward": ["r"]}', None),
        (b'{"protocol": 1, "reward": "r\\u0041"}', None),
        (b'[{"reward": "r"}]', None),
        (b"", None),
        (b"\xff" * 100, None),
    ],
)
def test_the_reward_of_a_request_is_read_from_its_beginning(body: bytes, name: str | None) -> None:
    assert reward_named_by(body) == name


def test_a_request_is_checked_once_and_by_the_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[bytes] = []

    class Counted(ScoreRequest):
        @classmethod
        def parse(cls, body: bytes, limits: RequestLimits) -> Any:
            checked.append(body)
            return ScoreRequest.parse(body, limits)

    monkeypatch.setattr("flowrl.remote.server.ScoreRequest", Counted)
    monkeypatch.setattr("flowrl.remote.worker.ScoreRequest", Counted)
    head = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    with serving("mine.py:length", "mine.py:brightness") as (url, _):
        assert remote(f"{url}/length").raw(TWO).tolist() == [[1.0], [1.0]] and len(checked) == 1
        odd = b'{"prompts": ["p"], "completions": ["abc"], "reward": "length", "protocol": 1}'
        reply = httpx.post(f"{url}/score", content=odd, headers=head)
        assert reply.json()["scores"] == [3.0], "its members may come in any order"
        double = b'{"reward": "length", "prompts": ["p"], "completions": ["a"], "reward": "brightness", "protocol": 1}'
        reply = httpx.post(f"{url}/score", content=double, headers=head)
        assert reply.status_code == 422 and "'length' and 'brightness'" in reply.json()["error"]


def test_memory_that_runs_out_is_no_broken_image(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = encode_images(np.zeros((1, 4, 4, 3), np.uint8))
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        decode_images(texts, RequestLimits())


def drip(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(1000):
            handler.wfile.write(b" ")
            time.sleep(0.05)


@pytest.mark.parametrize("reply", [drip, lambda handler: time.sleep(20)], ids=["dripping", "silent"])
def test_a_request_ends_after_its_timeout(reply: Any) -> None:
    with Script(reply) as url:
        scorer, start = remote(url, timeout=0.3), time.monotonic()
        with pytest.raises(RewardError, match=r"no answer within timeout=0\.3 s"):
            scorer.raw(TWO)
        assert time.monotonic() - start < 10  # of 20 and 50


@pytest.mark.parametrize(
    "use",
    [
        "http://host:1/",
        "http://host:1/a/b",
        "http://host:1/../etc",
        "http://user:word@host/r",
        "http://host/r?token=1",
        "http://host:99999/r",
        "http:///r",
        "http://[::1/r",
    ],
)
def test_addresses_of_another_form_are_refused(use: str) -> None:
    with pytest.raises(UserError, match="http://host:port/NAME") as caught:
        check_reward(use)
    assert "word" not in str(caught.value).replace("password", "")


def test_addresses() -> None:
    assert Address.of("http://[::1]:80/a.b-c") == Address("http://[::1]:80", "a.b-c")
    assert Address.of("https://host/r") == Address("https://host", "r")


def test_png_is_lossless_and_only_its_own_kind_is_read() -> None:
    pixels = torch.randint(0, 256, (3, 5, 7, 3), dtype=torch.uint8).numpy()
    assert (decode_images(encode_images(pixels), RequestLimits()) == pixels).all()
    assert decode_images([], RequestLimits()).shape[0] == 0


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("from-a-file-0123456789\n")
    assert choose_token("0.0.0.0", file) == ("from-a-file-0123456789", False)
    assert choose_token("0.0.0.0", None) == (TOKEN, False)
    monkeypatch.delenv("FLOWRL_TOKEN")
    (first, made), (second, _) = choose_token("127.0.0.1", None), choose_token("::1", None)
    assert made and first != second and len(first) >= 32
    for host in ("0.0.0.0", "::", "192.168.0.3", "example.org", "127.0.0.1.example.org"):
        assert not is_loopback(host)
        with pytest.raises(UserError, match="needs a token of yours"):
            choose_token(host, None)
    for text in ("short", "sixteen letters and spaces", "ünïcödé-ünïcödé-ünïcödé", ""):
        file.write_text(text)
        with pytest.raises(UserError, match="16 or more ASCII characters"):
            choose_token("127.0.0.1", file)
    with pytest.raises(UserError, match="cannot be read"):
        choose_token("127.0.0.1", tmp_path / "absent")


def test_a_server_config_is_a_list_of_rewards_or_a_training_config(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text("rewards: [jpeg_compressibility]\nlimits: {samples: 5}\n")
    config = ServerConfig.load(path)
    assert [reward.use for reward in config.rewards] == ["jpeg_compressibility"] and config.limits.samples == 5
    run = Path(__file__).parents[2] / "configs/quickstart.yaml"
    assert ServerConfig.load(run).rewards
    path.write_text(run.read_text() + "\nlimits: {seconds: 3}\n")
    assert ServerConfig.load(path).limits.seconds == 3
    for text, match in (
        ("rewards: [a]\nlimit: {}", "unknown key limit"),
        ("rewards: [a]\nlimits: {sample: 1}", "did you mean 'limits.samples'"),
        ("rewards: [a]\nlimits: {samples: 0}", "greater than 0"),
        ("rewards: []", "rewards"),
        (run.read_text() + "\ntrian: 3", "unknown key trian"),
        ("rewards: ['http://127.0.0.1:1/r']", "on another server"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=match):
            ServerConfig.load(path)


def test_a_config_cannot_reach_for_files_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    (inside / "link.py").symlink_to(tmp_path / "mine.py")
    config = inside / "server.yaml"
    for use in ("../mine.py:brightness", str(tmp_path / "mine.py") + ":brightness", "link.py:brightness"):
        for prefix in ("", "ray:"):
            config.write_text(f"rewards: ['{prefix}{use}']")
            with pytest.raises(UserError, match="is a file outside"):
                ServerConfig.load(config)


class FakeRay(SimpleNamespace):
    """Actors that live here."""

    def __init__(self) -> None:
        errors = SimpleNamespace(RayError=ConnectionAbortedError)
        super().__init__(exceptions=errors, placed=[], joined=[], killed=[])

    def is_initialized(self) -> bool:
        return bool(self.joined)

    def init(self, address: str, **_: Any) -> None:
        self.joined.append(address)

    def remote(self, kind: Any) -> Any:
        def start(spec: Any) -> Any:
            actor = kind(json.loads(json.dumps(spec)))  # the spec is plain data
            call = {name: SimpleNamespace(remote=getattr(actor, name)) for name in ("facts", "score")}
            return SimpleNamespace(**call)

        return SimpleNamespace(options=lambda **given: self.placed.append(given) or SimpleNamespace(remote=start))

    def get(self, value: Any, timeout: float) -> Any:
        return value

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)


def test_a_ray_actor_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    monkeypatch.setattr(ray_client, "import_ray", lambda: fake)
    monkeypatch.setattr("flowrl.clients.find_spec", lambda package: object())
    spec = {"use": "ray:mine.py:targeted", "options": {"shift": 2.0, "ray": {"num_gpus": 0.5, "address": "local"}}}
    scorer = load_rewards([spec])
    samples = pictures()
    expected = load_rewards([{"use": "mine.py:targeted", "options": {"shift": 2.0}}]).raw(samples)
    values = scorer.raw(samples)
    assert torch.equal(values.nan_to_num(), expected.nan_to_num()) and scorer.names == ("targeted",)
    assert fake.placed == [{"num_gpus": 0.5}] and fake.joined == ["local"]
    jpeg = load_rewards(["ray:jpeg_compressibility"])
    assert jpeg.versions == load_rewards(["jpeg_compressibility"]).versions
    scorer.close()
    assert len(fake.killed) == 1
    with pytest.raises(UserError, match="ray has no key 'gpus'; did you mean 'num_gpus'"):
        load_rewards([{"use": "ray:mine.py:brightness", "options": {"ray": {"gpus": 1}}}])
    with pytest.raises(UserError, match="ray: is followed by"):
        check_reward("ray:http://127.0.0.1:1/r")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowrl.clients.find_spec", lambda package: None)
    for use, extra in (("http://127.0.0.1:1/r", "server"), ("ray:jpeg_compressibility", "ray")):
        with pytest.raises(UserError, match=rf"pip install -e '.*\[{extra}\]'"):
            check_reward(use)


@pytest.mark.slow
def test_a_real_ray_actor_gives_the_same_numbers() -> None:
    ray = pytest.importorskip("ray", reason="the extra ray")
    samples: Samples = pictures()
    expected = load_rewards(["mine.py:brightness"]).raw(samples)
    try:
        path = str(Path("mine.py").resolve())
        uses: Sequence[str] = ("brightness", "private")
        good, bad = (
            load_rewards([{"use": f"ray:{path}:{name}", "options": {"ray": {"address": "local", "num_cpus": 0.1}}}])
            for name in uses
        )
        assert torch.equal(good.raw(samples), expected)
        with pytest.raises(RewardError, match="raised OSError"):
            bad.raw(samples)
        good.close()
        with pytest.raises(RewardError, match="failed in its actor"):
            good.raw(samples)
        with pytest.raises(UserError, match=r"does not load in its actor: .*has no function or class 'absent'"):
            load_rewards([{"use": f"ray:{path}:absent"}])
    finally:
        ray.shutdown()

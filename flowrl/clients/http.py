"""A reward that a server scores: ``use: http://host:port/NAME``.

Images travel as 8-bit PNG, ``round(255 x)``: scores are those of the reward called here on images of 256 levels, which
is what a saved picture holds. Beyond a network you trust use https (a reverse proxy before the server): over http the
token and the samples can be read.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import torch
from torch import Tensor

from flowrl.clients.protocol import MEDIA_TYPE, TOKEN_VARIABLE, VERSION, encode_images
from flowrl.clients.remote_reward import GroupedRemoteReward, RemoteReward, ScoreInputs, seeing_groups
from flowrl.clients.results import NOT_APPLICABLE, RewardError
from flowrl.connections import Backoff, ConnectionFailure, read_within, retry_after
from flowrl.errors import UserError, did_you_mean
from flowrl.media import quantise

CONNECT_SECONDS = 10.0
BACKOFF = Backoff(first=0.5, most=30.0)
MAX_ANSWER = 1 << 20
"""Bytes of an answer; a server that says more is not understood."""
REJECTED = (401, 403)
BUSY = (429, 503)


@dataclass(frozen=True)
class Address:
    """Where a reward is scored."""

    base: str
    name: str

    @classmethod
    def of(cls, use: str) -> Self:
        """From ``http://host:port/NAME``. Raises `UserError` for another form, which may hold a password."""
        try:
            parts = urlsplit(use)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
            parts = urlsplit("")
        name = parts.path.removeprefix("/")
        if not host or not re.fullmatch(r"[\w.\-]+", name) or parts.query or parts.fragment or "@" in parts.netloc:
            raise UserError(
                "a remote reward is http://host:port/NAME, NAME as the server's /health lists it, without user, "
                f"password or query; found host {host!r}, path {parts.path[:100]!r}"
            )
        host = f"[{host}]" if ":" in host else host
        return cls(f"{parts.scheme}://{host}{f':{port}' if port else ''}", name)


def connect_to_server(
    address: Address,
    *,
    token_env: str = TOKEN_VARIABLE,
    timeout: float = 300.0,
    retries: int = 5,
    batch: int = 32,
) -> RemoteReward | GroupedRemoteReward:
    """What scores a reward on a server; it asks for ``group`` if the reward there does. As `ServerReward`."""
    return seeing_groups(ServerReward(address, token_env=token_env, timeout=timeout, retries=retries, batch=batch))


class _AgainError(Exception):
    """One try failed, and another may help; ``wait`` is what the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class ServerReward(RemoteReward):
    """Scores samples on a reward server, ``batch`` at a time and fewer where the server allows fewer.

    ``timeout`` is in seconds per request, from start to last byte; ``retries`` are further tries after a broken
    connection, 429 or 503. ``token_env`` names the environment variable of the token. Asks the server for its rewards
    at once, so that a mistake shows before training. Raises `UserError` for what the user can mend (address, token,
    name, request) and `RewardError` when the server failed or cannot be reached.
    """

    def __init__(
        self,
        address: Address,
        *,
        token_env: str = TOKEN_VARIABLE,
        timeout: float = 300.0,
        retries: int = 5,
        batch: int = 32,
    ) -> None:
        self._address, self._timeout, self._retries, self._variable = address, timeout, retries, token_env
        for key, value, least in (("retries", retries, 0), ("batch", batch, 1)):
            if not isinstance(value, int) or value < least:
                raise UserError(f"{self}: {key} should be a whole number of at least {least}, found {value!r}")
        if not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
            raise UserError(f"{self}: timeout should be seconds above 0, found {timeout!r}")
        token = os.environ.get(token_env, "").strip()
        if not token:
            raise UserError(f"{self}: the environment variable {token_env} is not set; export the server's token in it")
        if not token.isascii() or not token.isprintable():
            raise UserError(f"{self}: the token in ${token_env} has characters that no token has")
        self._http = httpx.Client(
            base_url=address.base,
            headers={"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout)),
            trust_env=False,  # a proxy or .netrc of the environment should not see the token
        )
        self.facts = self._find()
        """What the server says about the reward: range, its version, versions of packages."""
        self.version = self.facts.get("version")
        self.grouped = bool(self.facts.get("grouped", False))
        limits = self.facts["limits"]
        self._body, self._pixels = int(limits["body"]), int(limits["pixels"])
        self._batch = max(1, min(batch, int(limits["samples"])))

    def score(self, inputs: ScoreInputs) -> Tensor:
        """As a call; whole groups go in one request."""
        count = len(inputs.prompts)
        size = self._request_size(inputs)
        parts = [torch.zeros(0, dtype=torch.float64)]
        for start in range(0, count, size):
            parts.extend(self._scores(_request(inputs, slice(start, min(start + size, count)))))
        return torch.cat(parts)

    def _request_size(self, inputs: ScoreInputs) -> int:
        """Samples of a request, as far as the server's limits say before it is built."""
        if inputs.images is not None and (inputs.images.ndim != 4 or inputs.images.shape[1] != 3):
            shape = "x".join(map(str, inputs.images.shape))
            raise UserError(f"{self}: remote rewards take images [N, 3, H, W], found {shape}")
        if inputs.group is not None:
            return max(1, len(inputs.prompts))
        if inputs.images is None:
            return self._batch
        height, width = inputs.images.shape[2:]
        return max(1, min(self._batch, self._pixels // max(1, height * width)))

    def __str__(self) -> str:
        return f"reward {self._address.name!r} at {self._address.base}"

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _find(self) -> dict[str, Any]:
        try:
            health = self._ask("GET", "/health")
            served = {entry["name"]: entry for entry in health["rewards"]}
            limits = {key: int(health["limits"][key]) for key in ("body", "samples", "pixels")}
        except UserError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self}: what answers there is no reward server of flowrl") from error
        if health.get("protocol") != VERSION:
            raise UserError(
                f"{self}: the server speaks version {health.get('protocol')!r} of the protocol, this flowrl {VERSION}; "
                "install the same flowrl on both sides"
            )
        if self._address.name not in served:
            raise UserError(f"{self}: the server has no such reward{did_you_mean(self._address.name, served)}")
        return dict(served[self._address.name]) | {"limits": limits}

    def _scores(self, request: Mapping[str, Any]) -> Iterator[Tensor]:
        """Scores of the call's samples, in halves when it is too large for one request."""
        count = len(request["prompts"])
        body = self._body_of(request)
        if len(body) > self._body:
            if count == 1 or "group" in request:
                what = "one sample" if count == 1 else "a batch of whole groups"
                raise UserError(f"{self}: {what} has {len(body)} bytes, the server's limit is {self._body}")
            for half in (slice(0, count // 2), slice(count // 2, count)):
                yield from self._scores(_rows(request, half))
            return
        answer = self._ask("POST", "/score", body)
        values = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(values, list) or len(values) != count or not all(map(_is_score, values)):
            raise RewardError(f"{self}: the server's answer is not {count} scores")
        absent = answer.get("absent", [])
        if not isinstance(absent, list) or not all(type(row) is int and 0 <= row < count for row in absent):
            raise RewardError(f"{self}: the server's answer names rows that were not asked")
        scores = torch.tensor([torch.nan if value is None else value for value in values], dtype=torch.float64)
        if bool(scores.isinf().any()):
            raise RewardError(f"{self}: the server's answer holds inf; scores are finite")
        scores[absent] = NOT_APPLICABLE
        yield scores

    def _body_of(self, request: Mapping[str, Any]) -> bytes:
        message = {"protocol": VERSION, "reward": self._address.name, **request}
        try:
            return json.dumps(message, allow_nan=False, default=_plain).encode()
        except (TypeError, ValueError) as error:
            raise UserError(f"{self}: a column of the prompts cannot be sent as JSON ({error}); remove it") from error

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        """The JSON of a 200, after as many tries as allowed."""
        for attempt in range(self._retries + 1):
            try:
                return self._try(method, path, body)
            except _AgainError as problem:
                if attempt == self._retries:
                    tries = f"{attempt + 1} tries" if attempt else "one try"
                    raise RewardError(f"{self}: {problem} ({tries}); is the server still running?") from problem
                time.sleep(BACKOFF.seconds(attempt, problem.wait))
        raise AssertionError("unreachable: the last try returns or raises")

    def _try(self, method: str, path: str, body: bytes | None) -> Any:
        """One request. Raises `_AgainError`, `UserError` (4xx) or `RewardError` (5xx, too slow, unreadable)."""
        deadline = time.monotonic() + self._timeout
        headers = {} if body is None else {"Content-Type": MEDIA_TYPE}
        try:
            with self._http.stream(method, path, content=body, headers=headers) as response:
                data = read_within(response.iter_raw(), deadline, MAX_ANSWER)
        except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout) as error:
            failure = ConnectionFailure.of(error)
            if failure.permanent:
                raise RewardError(f"{self}: no connection: {failure.reason}; check the address") from error
            raise _AgainError(f"no connection ({failure.reason})") from error
        except (httpx.TimeoutException, TimeoutError) as error:
            raise RewardError(f"{self}: no answer within timeout={self._timeout:g} s") from error
        except OverflowError as error:
            raise RewardError(f"{self}: the server's answer is {error}") from error
        except httpx.HTTPError as error:
            raise RewardError(f"{self}: the request failed ({type(error).__name__})") from error
        if response.status_code in BUSY:
            wait = retry_after(response.headers.get("Retry-After"))
            raise _AgainError(f"the server is busy (HTTP {response.status_code})", wait)
        if response.status_code != 200:
            self._complain(response.status_code, data)
        try:
            return json.loads(data, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise RewardError(f"{self}: the server's answer is not JSON") from error

    def _complain(self, status: int, data: bytes) -> None:
        if status in REJECTED:
            raise UserError(f"{self}: the server does not accept the token in ${self._variable} (HTTP {status})")
        said = _sentence(data)
        if status >= 500:
            raise RewardError(f"{self}: HTTP {status}{said}")
        raise UserError(f"{self}: HTTP {status}{said or '; is this the address of a reward server?'}")


def _request(inputs: ScoreInputs, rows: slice) -> dict[str, Any]:
    """The members of a request for some of the samples (`flowrl.clients.protocol`)."""
    request: dict[str, Any] = {"prompts": list(inputs.prompts[rows])}
    if inputs.columns:
        request["columns"] = {name: list(values[rows]) for name, values in inputs.columns.items()}
    if inputs.images is not None:
        request["images"] = encode_images(quantise(inputs.images[rows]).permute(0, 2, 3, 1).cpu().numpy())
    if inputs.completions is not None:
        request["completions"] = list(inputs.completions[rows])
    if inputs.group is not None:
        request["group"] = list(inputs.group[rows])
    return request


def _rows(request: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    part: dict[str, Any] = {name: values[rows] for name, values in request.items() if name != "columns"}
    if "columns" in request:
        part["columns"] = {name: values[rows] for name, values in request["columns"].items()}
    return part


def _is_score(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _plain(value: Any) -> Any:
    """Numbers and arrays of NumPy and torch as plain lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _sentence(data: bytes) -> str:
    """The server's own words, as far as they can be shown."""
    try:
        said = json.loads(data)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return ": " + "".join(c for c in said if c.isprintable())[:500] if isinstance(said, str) else ""

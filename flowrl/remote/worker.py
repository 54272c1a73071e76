"""One reward in a process of its own, and the asyncio side that asks it, kills it when it hangs and starts it anew.

Both sides speak length-prefixed JSON through the worker's standard input and output.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from flowrl.clients.protocol import TOKEN_VARIABLE, Call, Limits, RefusedError, decode_images
from flowrl.errors import UserError

START_SECONDS = 600.0
"""For a worker's imports and its weights, on a busy machine."""
LENGTH = struct.Struct(">Q")


@dataclass(frozen=True)
class Answer:
    """What became of a call: an HTTP status and the JSON object that goes with it."""

    status: int
    content: Mapping[str, Any]

    @classmethod
    def error(cls, status: int, sentence: str) -> Answer:
        """An answer that says what went wrong."""
        return cls(status, {"error": sentence})


class RewardProcess:
    """Asks one reward, one call at a time. ``facts`` (name, range, version, ...) are known once it has started."""

    def __init__(self, spec: Mapping[str, Any], limits: Limits) -> None:
        self._setup = json.dumps({"reward": spec, "limits": limits.model_dump()}).encode()
        self._seconds = limits.seconds
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self.facts: Mapping[str, Any] = {}

    async def start(self) -> None:
        """Start the process and let it load the reward. Raises `UserError` with the reason when it cannot."""
        await self.close()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", __name__),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=_environment(),
            start_new_session=True,  # Ctrl-C goes to the server, which ends its workers
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                answer = await self._exchange(self._setup)
        except (TimeoutError, EOFError, ConnectionError) as error:
            await self.close()
            raise UserError(f"a reward's process did not start ({type(error).__name__}); its output says why") from None
        if answer.status != 200:
            await self.close()
            raise UserError(str(answer.content["error"]))
        self.facts = answer.content

    async def ask(self, body: bytes) -> Answer:
        """The answer to a request; 503 when the reward is busy for too long, 504 when it took too long itself."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._lock.acquire()
        except TimeoutError:
            return Answer.error(503, "the reward is busy; come back later")
        try:
            return await self._ask(body)
        finally:
            self._lock.release()

    async def close(self) -> None:
        """End the process, whatever it is doing."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def _ask(self, body: bytes) -> Answer:
        name = self.facts.get("name")
        try:
            if self._process is None or self._process.returncode is not None:
                await self.start()
            async with asyncio.timeout(self._seconds):
                return await self._exchange(body)
        except UserError as error:
            _log(f"reward {name!r} cannot be started again: {error}")
            return Answer.error(500, f"reward {name!r} cannot be started again; the server's log says why")
        except TimeoutError:
            await self.close()
            return Answer.error(504, f"reward {name!r} took more than {self._seconds:g} s, and was stopped")
        except (EOFError, ConnectionError):
            await self.close()
            return Answer.error(500, f"the process of reward {name!r} died")
        except asyncio.CancelledError:
            await self.close()  # its answer would be taken for that of the next call
            raise

    async def _exchange(self, body: bytes) -> Answer:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdin.write(LENGTH.pack(len(body)) + body)
        await process.stdin.drain()
        (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
        return Answer(**json.loads(await process.stdout.readexactly(length)))


def _environment() -> dict[str, str]:
    """The server's, with its import path and without its token, which is no reward's business."""
    kept = {key: value for key, value in os.environ.items() if key != TOKEN_VARIABLE}
    return kept | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def main() -> None:
    """The worker's side: load the reward of the first message, then answer calls until standard input ends."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a reward prints must not look like an answer
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()
    setup = json.loads(_receive(sys.stdin.buffer) or b"{}")
    limits = Limits(**setup["limits"])
    try:
        rewards, facts = load(setup["reward"])
    except UserError as error:
        return _send(replies, Answer.error(422, str(error)))
    except Exception as error:  # a stranger's module: the operator reads the sentence, and the traceback above it
        traceback.print_exc()
        return _send(replies, Answer.error(500, f"a reward raised {type(error).__name__} while it was loaded: {error}"))
    _send(replies, Answer(200, facts))
    while (body := _receive(sys.stdin.buffer)) is not None:
        _send(replies, answer(rewards, facts["name"], body, limits))
    return None


def answer(rewards: Any, name: str, body: bytes, limits: Limits) -> Answer:
    """The scores of one request. What a reward raised is in the log of the server, not in the answer."""
    from flowrl.score import RewardError

    start = time.perf_counter()
    try:
        samples, group = samples_of(Call.parse(body, limits), limits)
        values = rewards.answers(samples, group)[0]
    except RefusedError as refusal:
        return Answer.error(refusal.status, refusal.sentence)
    except RewardError as error:
        traceback.print_exc()
        if error.__cause__ is None:  # our own sentence about the answer, such as its length
            return Answer.error(500, str(error))
        return Answer.error(
            500, f"reward {name!r} raised {type(error.__cause__).__name__}; the server's log says where"
        )
    except UserError as error:
        return Answer.error(422, str(error))
    except Exception:  # a bug of ours: the same as for a reward's
        traceback.print_exc()
        return Answer.error(500, "the server failed; its log says why")
    scores = [None if value != value else value for value in values]
    content = {"protocol": 1, "scores": scores, "seconds": round(time.perf_counter() - start, 6)}
    absent = [row for row, value in enumerate(values) if value is None]  # JSON's null has been NaN
    return Answer(200, content | ({"absent": absent} if absent else {}))


def samples_of(call: Call, limits: Limits) -> tuple[Any, Any]:
    """`Samples` with images float32 [N, 3, H, W] in [0, 1], as rewards get them from a policy, and groups int64 [N]."""
    import torch

    from flowrl.types import Prompt, Samples

    images = None
    if call.images is not None:
        pixels = torch.from_numpy(decode_images(call.images, limits))
        images = pixels.permute(0, 3, 1, 2).contiguous().float() / 255
    prompts = [
        Prompt(text, row, {name: values[row] for name, values in call.columns.items()})
        for row, text in enumerate(call.prompts)
    ]
    group = torch.tensor(range(len(prompts)) if call.group is None else call.group, dtype=torch.int64)
    return Samples(prompts, images, call.completions), group


def load(spec: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A reward ready to score, and what the server says of it. Raises `UserError`."""
    from flowrl.records.machine import versions
    from flowrl.score import list_rewards, load_rewards

    rewards = load_rewards([spec])
    known = next((entry for entry in list_rewards() if entry.name == spec["use"]), None)
    facts = {
        "name": rewards.names[0],
        "range": known.range if known else "unknown",
        "grouped": rewards.grouped,
        "version": rewards.versions.get(rewards.names[0]),
        "versions": versions(),
    }
    return rewards, facts


def _receive(channel: BinaryIO) -> bytes | None:
    header = channel.read(LENGTH.size)
    return channel.read(LENGTH.unpack(header)[0]) if len(header) == LENGTH.size else None


def _send(channel: BinaryIO, reply: Answer) -> None:
    data = json.dumps({"status": reply.status, "content": reply.content}, allow_nan=False).encode()
    channel.write(LENGTH.pack(len(data)) + data)
    channel.flush()


def _follow_parent(parent: int) -> None:
    """End a worker, also one that hangs, whose server was killed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _log(line: str) -> None:
    print(f"reward-server: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""A reward in a process of its own: it cannot slow the trainer's interpreter down, and it can be stopped.

Both sides speak frames (8 bytes of length, then the content) through the worker's standard input and output: JSON for
prompts, columns and scores, safetensors for images. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from flowrl.clients.results import RewardError
from flowrl.errors import UserError
from flowrl.types import Samples

START_SECONDS = 600.0
"""For the imports and weights of a new worker, on a busy machine."""
PROGRAM = "flowrl.remote.child"
"""The other side. It imports rewards, so nothing here may import it."""
LENGTH = struct.Struct(">Q")


class WorkerError(RuntimeError):
    """What happened in the worker, as text."""


class ProcessReward:
    """A reward as `adapt` makes it, in a process that starts now, and anew after it died or was stopped.

    Raises `UserError` where loading the reward does, `RewardError` when it raises, dies or takes longer than
    ``timeout`` seconds.
    """

    def __init__(
        self,
        use: str,
        name: str,
        options: Mapping[str, Any],
        device: str | None,
        dtype: str | None,
        batch_size: int | None,
        timeout: float | None,
        messages: bool | None = None,
    ) -> None:
        self.function, self.name, self.timeout = self, name, timeout
        self._spec = [use, name, dict(options), device, dtype, batch_size, messages]
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    @property
    def grouped(self) -> bool:
        return self._facts["grouped"]

    @property
    def style(self) -> str:
        return self._facts["style"]

    @property
    def version(self) -> str | None:
        """The reward's own, as it says in its process."""
        return self._facts["version"]

    def __call__(self, samples: Samples, group: Tensor | None = None) -> list[float | None]:
        if self._process is None:
            self._start()
        chats = [prompt.chat and prompt.chat.content for prompt in samples.prompts]
        prompts = [[p.text, p.id, dict(p.columns), chat] for p, chat in zip(samples.prompts, chats, strict=True)]
        texts = None if samples.completions is None else list(samples.completions)
        numbers = None if group is None else group.tolist()
        try:
            header = json.dumps([prompts, texts, numbers]).encode()
        except TypeError as error:
            raise UserError(
                f"reward {self.name!r} with process=true needs columns that JSON can hold: {error}; set process=false"
            ) from None
        images = {} if samples.images is None else {"images": samples.images.cpu().contiguous()}
        reply = self._exchange([header, save(images)], self.timeout)
        if "mistake" in reply:
            raise UserError(reply["mistake"])
        if "error" in reply:
            raise RewardError(reply["error"]) from WorkerError(reply["trace"])
        return reply["scores"]

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-P", "-m", PROGRAM],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C goes to the trainer, which closes the worker
        )
        try:
            spec = json.dumps([*self._spec, torch.get_num_threads()]).encode()
        except TypeError as error:
            self.close()
            raise UserError(f"reward {self.name!r} with process=true: options must be plain values: {error}") from None
        self._facts = self._exchange([spec], START_SECONDS)
        if "mistake" in self._facts:
            self.close()
            raise UserError(self._facts["mistake"])

    def _exchange(self, frames: list[bytes], seconds: float | None) -> dict[str, Any]:
        """Send frames and wait for the reply. Raises `RewardError` when there is none; the process is then gone."""
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            for frame in frames:
                write_frame(self._process.stdin, frame)
            return json.loads(read_frame(self._process.stdout, deadline))
        except TimeoutError:
            self.close()
            raise RewardError(f"reward {self.name!r} took longer than {seconds:g} s and was stopped") from None
        except (EOFError, BrokenPipeError):
            code = self._process.wait()
            self.close()
            how = f"by signal {-code} ({_signal(-code)})" if code < 0 else f"with code {code}"
            raise RewardError(f"reward {self.name!r}: its process ended {how}") from None
        except BaseException:  # half a message may have been sent: what comes next would be misread
            self.close()
            raise


def _signal(number: int) -> str:
    """The name of a signal; SIGKILL is what a system sends whose memory runs out."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        return "unknown"
    return f"{name}, as from a system without memory" if name == "SIGKILL" else name


def write_frame(pipe: Any, content: bytes) -> None:
    """Send one frame."""
    for part in (LENGTH.pack(len(content)), content):
        view = memoryview(part)
        while len(view):
            view = view[pipe.write(view) :]


def read_frame(pipe: Any, deadline: float | None = None) -> bytes:
    """The next frame's content. Raises `EOFError` at the end of the pipe, `TimeoutError` after the deadline."""
    return _exactly(pipe, LENGTH.unpack(_exactly(pipe, LENGTH.size, deadline))[0], deadline)


def _exactly(pipe: Any, count: int, deadline: float | None) -> bytes:
    """``count`` bytes. Raises `EOFError` at the end of the pipe, `TimeoutError` after the deadline."""
    content = bytearray()
    while len(content) < count:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([pipe], [], [], left)[0]:
            raise TimeoutError
        block = os.read(pipe.fileno(), min(count - len(content), 1 << 20))
        if not block:
            raise EOFError
        content += block
    return bytes(content)

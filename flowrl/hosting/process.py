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
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from flowrl.errors import UserError, told
from flowrl.hosting.answers import as_scores, plain
from flowrl.score.adapting import Answer, adapt, version_of
from flowrl.score.asking import RewardError
from flowrl.score.finding import find_reward
from flowrl.types import Chat, Prompt, Samples

START_SECONDS = 600.0
"""For the imports and weights of a new worker, on a busy machine."""
LENGTH = struct.Struct(">Q")


class WorkerError(RuntimeError):
    """What happened in the worker, as text."""


class ProcessCall:
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
            [sys.executable, "-u", "-c", "from flowrl.hosting.process import main; main()"],
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
                _write(self._process.stdin, frame)
            return json.loads(_read(self._process.stdout, deadline))
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


def _write(pipe: Any, content: bytes) -> None:
    for part in (LENGTH.pack(len(content)), content):
        view = memoryview(part)
        while len(view):
            view = view[pipe.write(view) :]


def _read(pipe: Any, deadline: float | None = None) -> bytes:
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


def _serve(requests: Any, replies: Any) -> None:
    """The worker's side: load the reward, then answer until the requests end."""
    try:
        use, name, options, device, dtype, batch_size, messages, threads = json.loads(_read(requests))
        torch.set_num_threads(threads)
        answer = adapt(find_reward(use), name, options, device, dtype, batch_size, messages)
    except (Exception, SystemExit) as error:  # reported by the parent, as the user's mistake
        kind = "" if isinstance(error, UserError) else f"reward with process=true: {type(error).__name__}: "
        _say(replies, {"mistake": f"{kind}{error}"})
        return
    _say(replies, {"grouped": answer.grouped, "style": answer.style, "version": version_of(answer)})
    while True:
        try:
            header, blob = json.loads(_read(requests)), _read(requests)
        except EOFError:
            return
        prompts, texts, numbers = header
        samples = Samples([_prompt(*prompt) for prompt in prompts], load(blob).get("images"), texts)
        _say(replies, _reply(answer, name, samples, None if numbers is None else torch.tensor(numbers)))


def _prompt(text: str, number: int, columns: dict[str, Any], chat: str | None) -> Prompt:
    return Prompt(text, number, columns, None if chat is None else Chat(chat))


def _reply(answer: Answer, name: str, samples: Samples, group: Tensor | None) -> dict[str, Any]:
    """Scores, or what went wrong: ``mistake`` is the user's, which no policy forgives."""
    try:
        with torch.no_grad():
            found = answer(samples, group)
    except RewardError as error:
        return {"error": str(error), "trace": traceback.format_exc()}
    except UserError as error:
        return {"mistake": str(error)}
    except (Exception, SystemExit) as error:  # a failure is an answer; the parent follows the declared policy
        return {"error": f"reward {name!r} raised {told(error)}", "trace": traceback.format_exc()}
    try:
        return {"scores": plain(as_scores(found, len(samples), name))}
    except UserError as error:
        return {"error": str(error), "trace": ""}


def _say(replies: Any, value: Any) -> None:
    _write(replies, json.dumps(value).encode())


def _leave_with(parent: int) -> None:
    """End this process when its trainer is gone; one that was killed could not end it."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    """A worker process: the loop between its standard input and output."""
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a reward prints must not look like an answer
    _serve(os.fdopen(os.dup(0), "rb", buffering=0), output)

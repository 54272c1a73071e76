"""A reward in a process of its own: it cannot slow the trainer's interpreter down, and it can be stopped.

Frames (`flowrl.processes`) carry JSON for prompts, columns and scores, safetensors for images. Nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from flowrl.clients.results import RewardError
from flowrl.errors import UserError
from flowrl.processes import START_SECONDS, Child, ChildError
from flowrl.types import Samples

PROGRAM = "flowrl.remote.child"
"""The other side. It imports rewards, so nothing here may import it."""


class ProcessReward:
    """A reward in a process that starts now, and anew after it died or was stopped. ``settings`` are the arguments of
    `flowrl.score.signatures.adapt` there, as plain values.

    Raises `UserError` where loading the reward does, `RewardError` when it raises, dies or takes longer than
    ``timeout`` seconds.
    """

    def __init__(self, use: str, name: str, timeout: float | None, settings: Mapping[str, Any]) -> None:
        self.function, self.name, self.timeout = self, name, timeout
        self._setup = {"use": use, "name": name, "settings": dict(settings)}
        self._child, self._facts = self._start()

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
        """N scores. Raises `UserError` also for columns that JSON cannot hold."""
        if self._child is None:
            self._child, self._facts = self._start()
        images = {} if samples.images is None else {"images": samples.images.cpu().contiguous()}
        reply = self._ask(self._child, self._described(samples, group), save(images), seconds=self.timeout)
        if "mistake" in reply:
            raise UserError(reply["mistake"])
        if "error" in reply:
            raise RewardError(reply["error"]) from ChildError(reply["trace"])
        return reply["scores"]

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _described(self, samples: Samples, group: Tensor | None) -> bytes:
        """All of the samples but their images."""
        chats = [prompt.chat and prompt.chat.content for prompt in samples.prompts]
        prompts = [[p.text, p.id, dict(p.columns), chat] for p, chat in zip(samples.prompts, chats, strict=True)]
        texts = None if samples.completions is None else list(samples.completions)
        try:
            return json.dumps([prompts, texts, None if group is None else group.tolist()]).encode()
        except TypeError as error:
            raise UserError(
                f"reward {self.name!r} with process=true needs columns that JSON can hold: {error}; set process=false"
            ) from error

    def _start(self) -> tuple[Child, dict[str, Any]]:
        """The process, and what it says of its reward."""
        try:
            setup = json.dumps(self._setup | {"threads": torch.get_num_threads()}).encode()
        except TypeError as error:
            raise UserError(f"reward {self.name!r} with process=true: options must be plain values: {error}") from error
        child = Child.start(PROGRAM)
        facts = self._ask(child, setup, seconds=START_SECONDS)
        if "mistake" in facts:
            child.close()
            raise UserError(facts["mistake"])
        return child, facts

    def _ask(self, child: Child, *frames: bytes, seconds: float | None) -> dict[str, Any]:
        """The answer to some frames. Raises `RewardError` when there is none; the process is then gone."""
        try:
            return json.loads(child.ask(*frames, seconds=seconds))
        except BaseException as failure:
            self._child = None
            if isinstance(failure, TimeoutError):
                words = f"took longer than {seconds:g} s and was stopped"
                raise RewardError(f"reward {self.name!r} {words}") from failure
            if isinstance(failure, EOFError):
                raise RewardError(f"reward {self.name!r}: {failure}") from failure
            raise

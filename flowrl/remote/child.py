"""A reward's own process, started by `flowrl.clients.process`: load it, then answer calls."""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from flowrl.clients.process import read_frame, write_frame
from flowrl.clients.results import RewardError, as_scores, plain
from flowrl.errors import UserError, describe_exception
from flowrl.score.registry import find_reward
from flowrl.score.signatures import Answer, adapt, version_of
from flowrl.types import Chat, Prompt, Samples


def _serve(requests: Any, replies: Any) -> None:
    """The worker's side: load the reward, then answer until the requests end."""
    try:
        use, name, options, device, dtype, batch_size, messages, threads = json.loads(read_frame(requests))
        torch.set_num_threads(threads)
        answer = adapt(find_reward(use), name, options, device, dtype, batch_size, messages)
    except (Exception, SystemExit) as error:  # reported by the parent, as the user's mistake
        kind = "" if isinstance(error, UserError) else f"reward with process=true: {type(error).__name__}: "
        _say(replies, {"mistake": f"{kind}{error}"})
        return
    _say(replies, {"grouped": answer.grouped, "style": answer.style, "version": version_of(answer)})
    while True:
        try:
            header, blob = json.loads(read_frame(requests)), read_frame(requests)
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
        return {"error": f"reward {name!r} raised {describe_exception(error)}", "trace": traceback.format_exc()}
    try:
        return {"scores": plain(as_scores(found, len(samples), name))}
    except UserError as error:
        return {"error": str(error), "trace": ""}


def _say(replies: Any, value: Any) -> None:
    write_frame(replies, json.dumps(value).encode())


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


if __name__ == "__main__":
    main()

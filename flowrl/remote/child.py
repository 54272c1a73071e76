"""A reward's own process, started by `flowrl.clients.process`: load it, then answer calls."""

from __future__ import annotations

import json
import traceback
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from flowrl.clients.results import RewardError, as_list, as_scores
from flowrl.errors import UserError
from flowrl.processes import end_with_parent, open_channel, read_frame, write_frame
from flowrl.score.registry import find_reward
from flowrl.score.reward_function import RewardFunction
from flowrl.score.signatures import adapt
from flowrl.types import Chat, Prompt, Samples


def main() -> None:
    """Load the reward of the first request, then answer the others until they end."""
    requests, replies = open_channel()
    end_with_parent()
    setup = json.loads(read_frame(requests) or b"{}")
    torch.set_num_threads(setup["threads"])
    try:
        reward = adapt(find_reward(setup["use"]), setup["name"], **setup["settings"])
    except (Exception, SystemExit) as error:  # reported by the parent, as the user's mistake
        kind = "" if isinstance(error, UserError) else f"reward with process=true: {type(error).__name__}: "
        return write_frame(replies, json.dumps({"mistake": f"{kind}{error}"}).encode())
    facts = {"grouped": reward.grouped, "style": reward.style, "version": reward.version}
    write_frame(replies, json.dumps(facts).encode())
    while (described := read_frame(requests)) is not None:
        samples, group = _samples(described, read_frame(requests) or b"")
        write_frame(replies, json.dumps(_scores(reward, setup["name"], samples, group)).encode())


def _samples(described: bytes, images: bytes) -> tuple[Samples, Tensor | None]:
    rows, texts, group = json.loads(described)
    prompts = [
        Prompt(text, number, columns, None if chat is None else Chat(chat)) for text, number, columns, chat in rows
    ]
    return Samples(prompts, load(images).get("images"), texts), None if group is None else torch.tensor(group)


def _scores(reward: RewardFunction, name: str, samples: Samples, group: Tensor | None) -> dict[str, Any]:
    """Scores, or what went wrong: ``mistake`` is the user's, which no policy forgives."""
    try:
        with torch.no_grad():
            return {"scores": as_list(as_scores(reward(samples, group), len(samples), name))}
    except RewardError as error:
        return {"error": str(error), "trace": traceback.format_exc()}
    except UserError as error:
        return {"mistake": str(error)}
    except (Exception, SystemExit) as error:  # a failure is an answer; the parent follows the declared policy
        return {"error": str(RewardError.of(name, error)), "trace": traceback.format_exc()}


if __name__ == "__main__":
    main()

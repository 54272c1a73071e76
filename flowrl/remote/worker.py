"""A served reward in its own process, started by `flowrl.remote.reward_process`: it checks and answers requests."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flowrl.clients.protocol import RefusedError, RequestLimits, ScoreRequest, decode_images
from flowrl.errors import UserError
from flowrl.processes import end_with_parent, open_channel, read_frame, write_frame
from flowrl.records.machine import versions
from flowrl.remote.reward_process import Response
from flowrl.score import RewardError, Rewards, list_rewards, load_rewards
from flowrl.types import Prompt, Samples


def main() -> None:
    """Load the reward of the first frame, then answer requests until there are no more."""
    requests, replies = open_channel()
    end_with_parent()
    setup = json.loads(read_frame(requests) or b"{}")
    limits = RequestLimits(**setup["limits"])
    try:
        rewards, facts = load(setup["reward"])
    except UserError as error:
        return write_frame(replies, _encoded(Response.error(422, str(error))))
    except Exception as error:  # a user's module: the operator reads the sentence, and the traceback above it
        traceback.print_exc()
        sentence = f"a reward raised {type(error).__name__} while it was loaded: {error}"
        return write_frame(replies, _encoded(Response.error(500, sentence)))
    write_frame(replies, _encoded(Response(200, facts)))
    while (body := read_frame(requests)) is not None:
        write_frame(replies, _encoded(answer(rewards, facts["name"], body, limits)))


def load(spec: Mapping[str, Any]) -> tuple[Rewards, dict[str, Any]]:
    """A reward ready to score, and what the server says of it. Raises `UserError`."""
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


def answer(rewards: Rewards, name: str, body: bytes, limits: RequestLimits) -> Response:
    """The scores of one request. What a reward raised is in the log of the server, not in the answer."""
    start = time.perf_counter()
    try:
        request = ScoreRequest.parse(body, limits)
        if request.reward != name:  # it names two
            raise RefusedError(422, f"reward: found {name!r} and {request.reward!r}; a request is for one")
        samples, group = samples_of(request, limits)
        values = rewards.raw_lists(samples, group)[0]
    except RefusedError as refusal:
        return Response.error(refusal.status, refusal.sentence)
    except RewardError as error:
        traceback.print_exc()
        if error.__cause__ is None:  # our own sentence about the answer, such as its length
            return Response.error(500, str(error))
        return Response.error(
            500, f"reward {name!r} raised {type(error.__cause__).__name__}; the server's log says where"
        )
    except UserError as error:
        return Response.error(422, str(error))
    except Exception:  # a bug of ours: the same as for a reward's
        traceback.print_exc()
        return Response.error(500, "the server failed; its log says why")
    scores = [None if value != value else value for value in values]
    content = {"protocol": 1, "scores": scores, "seconds": round(time.perf_counter() - start, 6)}
    absent = [row for row, value in enumerate(values) if value is None]  # JSON's null has been NaN
    return Response(200, content | ({"absent": absent} if absent else {}))


def samples_of(request: ScoreRequest, limits: RequestLimits) -> tuple[Samples, Tensor]:
    """Samples with images float32 [N, 3, H, W] in [0, 1], as rewards get them from a policy, and groups int64 [N]."""
    images = None
    if request.images is not None:
        pixels = torch.from_numpy(decode_images(request.images, limits))
        images = pixels.permute(0, 3, 1, 2).contiguous().float() / 255
    prompts = [
        Prompt(text, row, {name: values[row] for name, values in request.columns.items()})
        for row, text in enumerate(request.prompts)
    ]
    group = torch.tensor(range(len(prompts)) if request.group is None else request.group, dtype=torch.int64)
    return Samples(prompts, images, request.completions), group


def _encoded(response: Response) -> bytes:
    return json.dumps({"status": response.status, "content": response.content}, allow_nan=False).encode()


if __name__ == "__main__":
    main()

"""An environment's own process, started by `flowrl.environments.process`: make it, then answer resets and steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flowrl.environments.opening import make_environment
from flowrl.environments.process import KNOWN, pack, unpack
from flowrl.environments.protocol import Array
from flowrl.errors import UserError, describe_exception
from flowrl.exit_guard import catch_exit
from flowrl.processes import end_with_parent, open_channel, read_frame, write_frame
from flowrl.types import Prompt


def main() -> None:
    """Answer questions until they end."""
    requests, replies = open_channel()
    end_with_parent()
    rows = _Rows()
    while (frame := read_frame(requests)) is not None:
        try:
            with catch_exit():
                answer = rows.answer(*unpack(frame))
        except UserError as error:
            answer = pack({"mistake": str(error)})
        except (Exception, SystemExit) as error:  # whatever a user's environment raises; the parent has the policy
            answer = pack({"error": describe_exception(error)})
        write_frame(replies, answer)


class _Rows:
    """The rows of the present environment."""

    def __init__(self) -> None:
        self._environment: Any = None

    def answer(self, asked: dict[str, Any], arrays: list[Array]) -> bytes:
        match asked["do"]:
            case "make":
                torch.set_num_threads(asked["threads"])
                self._close()
                self._environment = made = make_environment(asked["name"], asked["count"])
                return pack({"sizes": [getattr(made, f"{what}_size", None) for what in ("observation", "action")]})
            case "reset":
                prompts = [Prompt(text, number, columns) for text, number, columns in asked["prompts"]]
                return pack({}, [np.asarray(self._environment.reset(asked["seeds"], prompts), dtype=np.float64)])
            case _:
                actions, rows = arrays
                *found, known = self._environment.step(actions, rows)
                nothing = {"success": np.full(len(rows), np.nan), "mode": np.full(len(rows), -1)}
                found += [known.get(name, nothing[name]) for name in KNOWN]
                return pack({}, [np.asarray(value, dtype=np.float64) for value in found])

    def _close(self) -> None:
        close = getattr(self._environment, "close", None)
        if close is not None:
            close()


if __name__ == "__main__":
    main()

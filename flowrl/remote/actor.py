"""What runs in an actor of a Ray cluster, started by `flowrl.clients.ray`: one reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from flowrl.score import load_rewards
from flowrl.types import Prompt, Samples


class RewardActor:
    """What runs in the actor: one reward, loaded there."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._rewards = load_rewards([dict(spec)])

    def facts(self) -> tuple[bool, str | None]:
        """Whether the reward sees whole groups, and its version; answers once it is loaded."""
        return self._rewards.grouped, self._rewards.versions.get(self._rewards.names[0])

    def score(
        self,
        prompts: Sequence[str],
        columns: Mapping[str, Any],
        images: Any,
        completions: Sequence[str] | None,
        group: Sequence[int],
    ) -> list[float | None]:
        """N scores, None where the reward does not apply; ``images`` is a float32 array [N, 3, H, W] or None."""
        rows = range(len(prompts))
        asked = [Prompt(prompts[i], i, {name: values[i] for name, values in columns.items()}) for i in rows]
        pixels = None if images is None else torch.from_numpy(images.copy())  # Ray's arrays are read-only
        numbers = torch.tensor(group, dtype=torch.int64)
        return self._rewards.raw_lists(Samples(asked, pixels, completions), numbers)[0]

"""How often each loop waits for the device, per step, token or optimiser batch: the slope between a short and a long
run, so that what an iteration does once does not count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from flowrl import composition, load_policy
from flowrl.config import Config
from flowrl.data import load_prompts
from flowrl.math.random import seeds
from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.masked import MaskedSampler
from flowrl.session import open_session
from flowrl.startup.preflight import check_run
from flowrl.types import Draw, Prompt, Sampler
from tests import fakegpu
from tests.device.iterations import config, iteration

ROWS = 8
UPDATE_PRESETS = ("flow_grpo", "diffusion_nft", "ppo", "trajectory_pg")


def measure() -> dict[str, dict[str, float]]:
    """Waits and blocking copies by loop."""
    return {**_sampling(), **_updates()}


def _slope(short: fakegpu.Events, long: fakegpu.Events, steps: int, phase: str | None = None) -> dict[str, float]:
    counts = {
        "waits": (long.waits(phase) - short.waits(phase)) / steps,
        "blocking copies": (long.blocking_copies(phase) - short.blocking_copies(phase)) / steps,
    }
    return {name: round(value, 3) for name, value in counts.items()}


def _sampling() -> dict[str, dict[str, float]]:
    found = {}
    flow = load_policy("shapes", device="fakegpu", call={"guidance_scale": 1.0})
    grpo = composition.build("flow_grpo").sampler
    prompts = list(load_prompts("shapes:train").prompts[:4])
    assert isinstance(grpo, FlowSampler)
    found["diffusion step, deterministic"] = _steps(flow, prompts, lambda n: FlowSampler(steps=n), 4, 8)
    found["diffusion step, recorded"] = _steps(flow, prompts, lambda n: replace(grpo, steps=n), 4, 8)
    masked: Any = load_policy("sudoku", family="masked", device="fakegpu")
    prompts = list(load_prompts("sudoku:train").prompts[:4])
    found["masked step"] = _steps(masked, prompts, lambda n: MaskedSampler(length=16, block=16, steps=n), 4, 8)
    causal: Any = load_policy("countdown", family="causal", device="fakegpu")
    causal.end_tokens = ()  # so that every row goes on to the end
    prompts = list(load_prompts("countdown:train").prompts[:4])
    found["causal token"] = _steps(causal, prompts, lambda n: CausalSampler(length=n), 4, 8)
    padded = [replace(prompt, text=prompt.text[: len(prompt.text) - 2 * (i % 2)]) for i, prompt in enumerate(prompts)]
    found["causal token, prompts padded"] = _steps(causal, padded, lambda n: CausalSampler(length=n), 4, 8)
    return found


def _steps(policy: Any, prompts: list[Prompt], made: Callable[[int], Sampler], few: int, many: int) -> dict[str, float]:
    asked = [prompt for prompt in prompts for _ in range(ROWS // len(prompts))]
    condition = policy.condition(asked)
    group = torch.arange(ROWS) // (ROWS // len(prompts))
    seen = {}
    for steps in (
        few,
        few,
        many,
        many,
    ):  # the second time, since what is made once for a number of steps does not count
        with fakegpu.watch("/flowrl/") as seen[steps]:
            made(steps)(policy, condition, Draw.of(seeds(0, "waits", count=ROWS), group, 0, 0))
    return _slope(seen[few], seen[many], many - few)


def _updates() -> dict[str, dict[str, float]]:
    """Of optimiser batches at equal micro-batches, and of micro-batches at equal optimiser batches."""
    found = {}
    for preset in UPDATE_PRESETS:
        session = open_session(check_run(Config.of(config(preset, "fakegpu"))))
        runs = {}
        for updates, micro_batch in ((1, 4), (1, 1), (2, 2), (4, 2)):
            train = session.config.train.model_copy(update={"updates": updates, "micro_batch": micro_batch})
            session.config = session.config.model_copy(update={"train": train})
            runs[updates, micro_batch] = iteration(session).events
        found[f"{preset}: optimiser batch"] = _slope(runs[2, 2], runs[4, 2], 2, "update")
        found[f"{preset}: micro-batch"] = _slope(runs[1, 4], runs[1, 1], ROWS - ROWS // 4, "update")
        session.rewards.close()
    return found

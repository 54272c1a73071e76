"""What flowrl adds to the work itself, and what the conditional-branch gradient saves; ratios within one process.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py [--rounds 5]

1. An iteration of `flow_grpo` and of `diffusion_nft` on the shapes model, against a raw loop of the same denoiser
calls (same batch
   sizes, forwards without and with backward), the same decoding, reward and optimiser steps, and nothing else.
2. The policy update with guidance: `cfg_grad: cond` against `both` (one doubled batch with gradient), as time.
Rounds alternate between the arms, and the median of the paired ratios is reported.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from flowrl.config import Config
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import Session, open_session
from flowrl.startup.preflight import check_run
from flowrl.train import iterate
from flowrl.types import Samples, iterate_blocks


def config(algorithm: dict, call: dict | None = None) -> Config:
    return Config.of(
        {
            "name": "overhead",
            "model": {"path": "shapes", "full": True, **({"call": call} if call else {})},
            "algorithm": algorithm,
            "data": {"prompts": 18, "group": 12},
            "rewards": ["shapes"],
            "optimizer": {"lr": 1e-4},
            "train": {"iterations": 1000, "updates": 2, "micro_batch": 216, "sample_batch": 216, "ema": None},
            "eval": {"every": 0, "weights": "live"},
            "monitor": {"samples": 0},
        }
    )


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class RawLoop:
    """The denoiser calls of an iteration, made directly on the transformer, with decoding, reward and optimiser
    step."""

    def __init__(self, session: Session, decisions: int, frozen: int) -> None:
        self.session, self.decisions, self.frozen = session, decisions, frozen
        self.count = 216
        prompts = session.prompts.draw(0, 18, 0)
        self.prompts = [p for p in prompts for _ in range(12)]
        policy = session.policy
        encoded = policy.pipeline.encode_prompt(
            [p.text for p in prompts], None, None, do_classifier_free_guidance=False, max_sequence_length=1
        )
        self.text, self.pooled = (encoded[i].repeat_interleave(12, dim=0).detach() for i in (0, 2))
        self.group = torch.arange(18).repeat_interleave(12)
        self.steps = session.algorithm.sampler.steps
        self.optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0, fused=True)

    def call(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return self.session.policy.network(
            hidden_states=x,
            timestep=torch.full((len(x),), 500.0),
            encoder_hidden_states=self.text[rows],
            pooled_projections=self.pooled[rows],
            return_dict=False,
        )[0]

    def __call__(self) -> None:
        policy, everyone = self.session.policy, torch.arange(self.count)
        x = torch.randn(self.count, *policy.latent_shape)
        with torch.no_grad():
            for _ in range(self.steps):
                x = x - 0.01 * self.call(x, everyone)
        images = policy.decode(x)
        self.session.rewards(Samples(self.prompts, images=images), self.group)
        for half in everyone.chunk(2):
            for rows, decisions in iterate_blocks(len(half), self.decisions, 1, 216):
                cells = (decisions.stop - decisions.start) * (rows.stop - rows.start)
                index = half[rows].repeat_interleave(decisions.stop - decisions.start)
                noisy = torch.randn(cells, *policy.latent_shape)
                with torch.no_grad():
                    for _ in range(self.frozen):
                        self.call(noisy, index)
                self.call(noisy, index).square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def paired(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median seconds of each and the median of the paired ratios; the first round warms up."""
    times = [(seconds(first), seconds(second)) for _ in range(rounds + 1)][1:]
    ratios = [a / b for a, b in times]
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times), statistics.median(ratios)


def overhead(name: str, algorithm: dict, decisions: int, frozen: int, rounds: int) -> None:
    session = open_session(check_run(config(algorithm)))
    raw = RawLoop(session, decisions, frozen)
    ours, theirs, ratio = paired(lambda: iterate(session, PhaseTimer()), raw, rounds)
    print(f"{name}: iteration {ours:.3f} s, raw loop {theirs:.3f} s, ratio {ratio:.3f}", flush=True)


def guided_update(rounds: int) -> None:
    times = {}
    sessions = {
        grad: open_session(
            check_run(
                config(
                    {"use": "flow_grpo", "kl": 0.0, "steps": 8, "cfg_grad": grad, "guidance": 3.0},
                    call={"guidance_scale": 3.0},
                )
            )
        )
        for grad in ("cond", "both")
    }
    for _ in range(rounds + 1):
        for grad, session in sessions.items():
            timer = PhaseTimer()
            iterate(session, timer)
            times.setdefault(grad, []).append(timer.collect()["time/update"])
    ratios = [a / b for a, b in zip(times["cond"][1:], times["both"][1:], strict=True)]
    cond, both = (statistics.median(times[g][1:]) for g in ("cond", "both"))
    print(f"guided update: cond {cond:.3f} s, both {both:.3f} s, ratio {statistics.median(ratios):.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    overhead(
        "flow_grpo, 8 steps",
        {"use": "flow_grpo", "kl": 0.0, "steps": 8, "guidance": 1.0},
        decisions=7,
        frozen=0,
        rounds=rounds,
    )
    nft = {"use": "diffusion_nft", "reference": 0.0, "steps": 8, "draws": 2}
    overhead("diffusion_nft, 8 steps, 2 draws", nft, decisions=2, frozen=1, rounds=rounds)
    guided_update(rounds)


if __name__ == "__main__":
    main()

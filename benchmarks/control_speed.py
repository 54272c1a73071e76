"""Training throughput of policies that act, and what flowrl adds to the work itself, on the world avoid.

    OMP_NUM_THREADS=1 python -m benchmarks.control_speed [--methods fpo dppo ppo_gaussian] [--rounds 5]

Whole iterations, updates included: 64 episodes of at most 40 decisions of 4 actions, 5 sampling steps, networks of
three layers of 128, 4 epochs of 4 updates. Beside each runs a raw loop: the same calls of the same networks on batches
of the same sizes, the same environment steps, losses of the same form, clipping and AdamW, and nothing else. The arms
alternate; medians of CPU seconds for one environment step, and of their paired ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowrl.config import Config
from flowrl.math.flow import DDIM, Floored
from flowrl.models.control.load import load_control
from flowrl.records.machine import processor
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import Session, open_session
from flowrl.startup.preflight import check_run
from flowrl.train import iterate
from flowrl.types import Prompt
from flowrl.worlds.avoid.board import Board
from flowrl.worlds.avoid.prompts import prompts

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart_control.yaml"
METHODS = {
    "fpo": "{use: fpo, family: control, draws: 4, steps: 5, gamma: 0.99}",
    "dppo": "{use: dppo, steps: 5}",
    "ppo_gaussian": "{use: ppo_gaussian}",
}
COUNT, DECISIONS, STEPS, DRAWS, EPOCHS, UPDATES = 64, 40, 5, 4, 4, 4
GAMMA, LAM, RATE = 0.99, 0.95, 3e-4
CLIP = {"fpo": 0.05, "dppo": 0.01, "ppo_gaussian": 0.2}


def session_of(method: str) -> Session:
    """flowrl's own run; as anybody's, with its monitor and self-checks."""
    overrides = [f"algorithm={METHODS[method]}", "data.prompts=16", "data.group=4", "eval.every=0"]
    return open_session(check_run(Config.load(CONFIG, overrides)))


class Raw:
    """An iteration by hand."""

    def __init__(self, method: str) -> None:
        self.method, self.policy = method, load_control("avoid", critic="network")
        groups = [self.policy.adaptation.parameters.values(), self.policy.critic_parameters()]
        rates = zip(groups, (RATE, 1e-3), strict=True)
        self.optimizer = torch.optim.AdamW([{"params": list(g), "lr": r} for g, r in rates], weight_decay=0.0)
        self.asked = [Prompt("p", i, row) for i, row in enumerate(prompts("train"))]
        self.times = torch.linspace(1, 0, STEPS + 1)
        a, b, s = Floored(DDIM(1.0), 0.1).coefficients(self.times[:-1], self.times[1:])
        self.kernel = [x.float() for x in (a, b, s)]
        self.iteration = 0

    def iterate(self) -> int:
        """Environment steps that were made, four a decision."""
        self.iteration += 1
        policy, board, t = self.policy, Board(COUNT), self.times
        seen, chunks, chains = [], [], []
        alive = torch.zeros(COUNT, DECISIONS, dtype=torch.bool)
        slot = torch.full((COUNT, DECISIONS + 1), -1)
        reward = torch.zeros(COUNT, DECISIONS, dtype=torch.float64)
        number = np.random.default_rng(self.iteration)
        chosen = number.choice(len(self.asked), 16, replace=False)
        rows_of = [self.asked[i] for i in chosen for _ in range(4)]
        observed = torch.from_numpy(board.reset(number.integers(2**62, size=COUNT).tolist(), rows_of)).float()
        going, made, cut = torch.arange(COUNT), 0, torch.zeros(COUNT, dtype=torch.bool)
        with torch.no_grad():
            for event in range(DECISIONS):
                if not len(going):
                    break
                at = observed[going][:, None]
                x, chain = self._act(at, t)
                alive[going, event] = True
                slot[going, event] = torch.arange(made, made + len(going))
                made += len(going)
                seen.append(at), chunks.append(x), chains.append(chain)
                actions = policy.network.actions.undo(x).double().numpy()
                place = np.arange(len(going))
                for j in range(actions.shape[1]):
                    here = going.numpy()[place]
                    found, paid, ended, over, _ = board.step(actions[place, j], here)
                    observed[here] = torch.from_numpy(found).float()
                    reward[here, event] += torch.from_numpy(paid)
                    cut[here] |= torch.from_numpy(over)
                    place = place[~(ended | over)]
                    if not len(place):
                        break
                going = going[place]
        seen.append(observed[:, None])
        slot[:, -1] = torch.arange(made, made + COUNT)
        self._update(torch.cat(seen), torch.cat(chunks), torch.cat(chains), alive, slot, reward, cut, made)
        return int(alive.sum()) * 4

    def _act(self, at: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Chunks [n, h, d], and the chain of what led to them [n, K + 1, h, d] of dppo."""
        network, n = self.policy.network, len(at)
        x = torch.randn(n, *self.policy.latent_shape)
        if self.method == "ppo_gaussian":
            return self._mean(at) + network.log_std.exp() * x, x
        states = [x]
        for k in range(STEPS):
            v = network(at, x, t[k].expand(n))
            if self.method == "fpo":
                x = x + v * (t[k + 1] - t[k])
                continue
            a, b, s = (c[k] for c in self.kernel)
            x = a * x + b * v + s * torch.randn_like(x)
            states.append(x)
        return x, torch.stack(states, dim=1) if len(states) > 1 else x

    def _mean(self, at: Tensor) -> Tensor:
        n = len(at)
        return -self.policy.network(at, torch.zeros(n, *self.policy.latent_shape), torch.ones(n))

    def _logp(self, at: Tensor, chunk: Tensor, drawn: tuple[Tensor, ...]) -> Tensor:
        """[l, per] of decisions."""
        network, count = self.policy.network, len(at)
        if self.method == "ppo_gaussian":
            z = (chunk - self._mean(at)) / network.log_std.exp()
            return (-0.5 * z**2 - network.log_std).flatten(1).sum(dim=1, keepdim=True)
        if self.method == "fpo":
            t, noise = drawn
            x = (1 - t)[..., None, None] * chunk[:, None] + t[..., None, None] * noise
            v = network(at.repeat_interleave(DRAWS, dim=0), x.flatten(0, 1), t.flatten()).view_as(x)
            error = ((v - (noise - chunk[:, None])) ** 2).flatten(2).mean(dim=2)
            return -((1 - t) ** 2 * error).mean(dim=1, keepdim=True)
        states = drawn[0]
        a, b, s = (c[None, :, None, None] for c in self.kernel)
        t = self.times[:-1].expand(count, -1).flatten()
        x = states[:, :-1]
        v = network(at.repeat_interleave(STEPS, dim=0), x.flatten(0, 1), t).view_as(x)
        return (-(((states[:, 1:] - a * x - b * v) / s) ** 2) / 2 - s.log()).flatten(2).mean(dim=2)

    def _update(
        self,
        seen: Tensor,
        chunk: Tensor,
        chain: Tensor,
        alive: Tensor,
        slot: Tensor,
        reward: Tensor,
        cut: Tensor,
        made: int,
    ) -> None:
        policy = self.policy
        place = torch.randint(STEPS, (made, DRAWS))
        drawn = (
            (self.times[place], torch.randn(made, DRAWS, *policy.latent_shape)) if self.method == "fpo" else (chain,)
        )
        with torch.no_grad():
            value = policy.value(seen)
            old = self._logp(seen[:made], chunk, drawn)
        advantage, returns = self._gae(value.double(), alive, slot, reward, cut)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        clip = CLIP[self.method]
        for _ in range(EPOCHS):
            for episodes in torch.randperm(COUNT).chunk(UPDATES):
                own = slot[episodes, :-1][alive[episodes]]
                logp = self._logp(seen[own], chunk[own], tuple(part[own] for part in drawn))
                ratio, gain = (logp - old[own]).exp(), advantage[own, None]
                loss = torch.maximum(-gain * ratio, -gain * ratio.clamp(1 - clip, 1 + clip)).mean()
                loss = loss + 0.25 * (policy.value(seen[own]) - returns[own]).square().mean()
                loss.backward()
                for group in self.optimizer.param_groups:
                    torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)

    def _gae(self, value: Tensor, alive: Tensor, slot: Tensor, reward: Tensor, cut: Tensor) -> tuple[Tensor, Tensor]:
        of = torch.where(slot >= 0, value[slot.clamp(min=0)], 0.0)
        last = value[slot[:, -1]]
        following = torch.cat([alive[:, 1:], torch.zeros(COUNT, 1, dtype=torch.bool)], dim=1)
        after = torch.where(following, of[:, 1:], (last * (cut | alive.all(dim=1)))[:, None])
        delta = torch.where(alive, reward + GAMMA * after - of[:, :-1], 0.0)
        advantage, running = torch.zeros_like(delta), torch.zeros(COUNT, dtype=torch.float64)
        for step in reversed(range(DECISIONS)):
            running = delta[:, step] + GAMMA * LAM * running
            advantage[:, step] = running
        flat = torch.empty(int(alive.sum()), dtype=torch.float64)
        flat[slot[:, :-1][alive]] = advantage[alive]
        return flat.float(), (flat + value[: len(flat)]).float()


def per_step(work: Any, iterations: int) -> float:
    """CPU seconds for an environment step of several iterations."""
    begun, steps = time.process_time(), 0
    for _ in range(iterations):
        steps += work()
    return (time.process_time() - begun) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=3, help="of a round")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}, torch {torch.__version__}, one thread")
    print("| method | environment steps per CPU s, flowrl | raw loop | ratio (range) |")
    print("|---|---|---|---|")
    for method in given.methods:
        session, raw = session_of(method), Raw(method)

        def ours(session: Session = session) -> int:
            return round(float(iterate(session, PhaseTimer())[0]["episode/decisions"]) * COUNT) * 4

        for _ in range(2):  # and past the first iterations, which are checked
            ours(), raw.iterate()
        pairs = [
            (per_step(ours, given.iterations), per_step(raw.iterate, given.iterations)) for _ in range(given.rounds)
        ]
        ratios = [a / b for a, b in pairs]
        speeds = [1 / statistics.median(column) for column in zip(*pairs, strict=True)]
        print(
            f"| `{method}` | {speeds[0] / 1000:.1f}k | {speeds[1] / 1000:.1f}k | "
            f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f}-{max(ratios):.2f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()

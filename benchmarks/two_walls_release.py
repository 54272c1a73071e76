"""FPO's grid world once more, apart from flowrl: the settings of its release (akanazawa/fpo, gridworld, 12 Jan 2026)
and of a Gaussian PPO beside it, with many episodes at a time. Does it keep both goals, and when is it looked at?

    OMP_NUM_THREADS=1 python -m benchmarks.two_walls_release --seeds 0 1 2 --draws 16 --methods fpo ppo

As released: networks of two hidden layers of 64 with ReLU and torch's own initialisation, the time a plain number,
10 Euler steps from N(0, 1), uniform times, error of the velocity, differences of errors cut to 3, clip .2, rate 3e-4,
2048 environment steps an iteration, 10 epochs of 6 minibatches, gamma .99, lambda .98, no value at a time limit,
gradients clipped at .5. The Gaussian has the fixed variance .5 and ends an iteration's epochs at a KL of .02; the
release evaluates it by its mean, and the flow by samples. Fewer draws than its 50 are a matter of time alone.

``--zero`` begins with a last layer of 0. The settings of the project's first prototype, which kept both goals at the
step where all arrive: ``--rate 1e-3 --clip .05 --epochs 4 --updates 4 --batch 2560 --steps 5 --lam .95 --grid``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.types import Prompt
from flowrl.worlds.two_walls.grid import MIDDLE, SADDLE, Grid

GAMMA, STD = 0.99, 0.5**0.5
EACH, LEAST = 64, 0.1
"""Episodes from each of the eleven cells; the share from which on a goal is kept."""


def network(inputs: int, outputs: int) -> nn.Sequential:
    """The release's."""
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))


def flow(actor: nn.Module, seen: Tensor, steps: int) -> Tensor:
    """Sampled actions [n, 2]; time runs from the noise, 0, to the action, 1."""
    x = torch.randn(len(seen), 2)
    for k in range(steps):
        x = x + actor(torch.cat([seen, x, torch.full((len(seen), 1), k / steps)], dim=1)) / steps
    return x


def error(actor: nn.Module, seen: Tensor, action: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """[n, M] matching errors at times [n, M, 1] and noises [n, M, 2]."""
    x = (1 - t) * noise + t * action[:, None]
    v = actor(torch.cat([seen[:, None].expand(-1, t.shape[1], -1), x, t], dim=2))
    return (v - (action[:, None] - noise)).square().mean(dim=2)


@torch.no_grad()
def episodes(
    act: Callable[[Tensor], Tensor], starts: list[dict], seed: int
) -> tuple[list[list], np.ndarray, np.ndarray]:
    """For each episode its (observations, actions, rewards); goals reached, -1 for none, and decisions."""
    grid, count = Grid(len(starts)), len(starts)
    seeds = (np.arange(count) + count * seed + 1).tolist()
    seen = grid.reset(seeds, [Prompt("p", 0, start) for start in starts])
    found: list[list] = [[[], [], []] for _ in starts]
    mode, rows = np.full(count, -1), np.arange(count)
    while len(rows):
        action = act(torch.from_numpy(seen).float()).numpy()
        after, reward, ended, cut, known = grid.step(action, rows)
        for n, row in enumerate(rows):
            for kept, value in zip(found[row], (seen[n], action[n], reward[n]), strict=True):
                kept.append(value)
        mode[rows] = known["mode"]
        seen, rows = after[~(ended | cut)], rows[~(ended | cut)]
    return found, mode, np.array([len(f[2]) for f in found])


def advantages(found: list[list], critic: nn.Module, seen: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """GAE [L] and returns [L] of all decisions, the end of an episode worth nothing."""
    with torch.no_grad():
        value = critic(seen)[:, 0].double().numpy()
    out, at = [], 0
    for _, _, reward in found:
        v, running, own = value[at : at + len(reward)], 0.0, np.zeros(len(reward))
        for t in reversed(range(len(reward))):
            following = GAMMA * v[t + 1] if t + 1 < len(reward) else 0.0
            running = reward[t] + following - v[t] + GAMMA * lam * running
            own[t] = running
        out.append(own)
        at += len(reward)
    gain = np.concatenate(out)
    return torch.from_numpy(gain).float(), torch.from_numpy(gain + value).float()


def kept(act: Callable[[Tensor], Tensor]) -> str:
    """How many of the cells between the goals lead to both, the shares of the top, and how long it takes."""
    starts = [{"start": [column, MIDDLE]} for column in SADDLE for _ in range(EACH)]
    _, mode, decisions = episodes(act, starts, 999)
    mode = mode.reshape(len(SADDLE), EACH)
    top = (mode == 1).sum(axis=1) / np.maximum((mode >= 0).sum(axis=1), 1)
    both = int(((top > LEAST) & (top < 1 - LEAST)).sum())
    return f"{both:2d} of {len(SADDLE)} (top {top.min():.2f}-{top.max():.2f}), {decisions.mean():.1f} decisions"


def run(method: str, seed: int, given: argparse.Namespace) -> None:
    torch.manual_seed(seed)
    inputs = 5 if method == "fpo" else 2
    actor, critic = network(inputs, 2), network(2, 1)
    if given.zero:
        nn.init.zeros_(actor[-1].weight), nn.init.zeros_(actor[-1].bias)
    optimizers = [torch.optim.Adam(net.parameters(), lr=given.rate) for net in (actor, critic)]

    def act(seen: Tensor) -> Tensor:
        return flow(actor, seen, given.steps) if method == "fpo" else actor(seen) + STD * torch.randn(len(seen), 2)

    length, steps, solved, begun = 60.0, 0, 0, time.process_time()
    for iteration in range(1, given.iterations + 1):
        found, mode, decisions = episodes(act, [{}] * max(1, round(given.batch / length)), 10_000 * seed + iteration)
        length, steps = decisions.mean(), steps + int(decisions.sum())
        seen, action = (torch.from_numpy(np.concatenate([np.stack(f[i]) for f in found])).float() for i in (0, 1))
        gain, returns = advantages(found, critic, seen, given.lam)
        gain = (gain - gain.mean()) / (gain.std() + 1e-10)
        noise, t = torch.randn(len(seen), given.draws, 2), torch.rand(len(seen), given.draws, 1)
        if given.grid:
            t = (t * given.steps).floor() / given.steps
        with torch.no_grad():
            old = error(actor, seen, action, noise, t) if method == "fpo" else actor(seen)
        for _ in range(given.epochs):
            for own in torch.randperm(len(seen)).split(max(1, len(seen) // given.updates)):
                if method == "fpo":
                    apart = old[own] - error(actor, seen[own], action[own], noise[own], t[own])
                    log_ratio = apart.clamp(-3, 3).mean(dim=1)
                else:
                    before, now = (
                        (action[own] - m).square().sum(dim=1) / (2 * STD**2) for m in (old[own], actor(seen[own]))
                    )
                    log_ratio = before - now
                ratio = log_ratio.exp()
                cut = ratio.clamp(1 - given.clip, 1 + given.clip)
                losses = [-torch.minimum(ratio * gain[own], cut * gain[own]).mean()]
                losses.append((critic(seen[own])[:, 0] - returns[own]).square().mean())
                for loss, optimizer, net in zip(losses, optimizers, (actor, critic), strict=True):
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(net.parameters(), 0.5)
                    optimizer.step()
            if method == "ppo" and float((ratio - 1 - log_ratio).detach().mean()) > 0.02:
                break
        first = not solved and bool((mode >= 0).all())
        solved = steps if first else solved
        if first or iteration in given.look:
            words = f"{method}, seed {seed}, iteration {iteration}, {steps} steps{' (all arrive)' if first else ''}: "
            words += kept(act)
            if method == "ppo":
                words += f"; by its mean {kept(lambda seen: actor(seen))}"
            print(f"{words}; {time.process_time() - begun:.0f} CPU s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="*", choices=("fpo", "ppo"), default=["fpo", "ppo"])
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument(
        "--look", nargs="*", type=int, default=[10, 20, 30, 40, 60], help="iterations, and where all arrive"
    )
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lam", type=float, default=0.98)
    parser.add_argument("--grid", action="store_true", help="times of the sampler's own grid")
    parser.add_argument("--clip", type=float, default=0.2)
    parser.add_argument("--zero", action="store_true", help="the last layer begins at 0")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for method in given.methods:
        for seed in given.seeds:
            run(method, seed, given)


if __name__ == "__main__":
    main()

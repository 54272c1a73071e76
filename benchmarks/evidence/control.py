"""Methods that act, on the world avoid at equal environment steps: where prompts ask for ways, and where none is asked.

``python -m benchmarks.evidence.control [--seeds 0 1 2 3 4]`` makes the runs that are missing from the page's data, a
pilot for the rates first, and writes ``docs/evidence/control.md``; ``--write`` writes the page alone.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.page import put, written_range
from benchmarks.evidence.runs import PACKAGES, ROOT, read, write
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.evaluation.statistics import wilson
from flowrl.math.random import seeds as seeds_of
from flowrl.records.machine import commit, installed, processor
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import Session, open_session
from flowrl.startup.preflight import check_run
from flowrl.train import iterate
from flowrl.types import Draw, Prompt
from flowrl.worlds.avoid.layout import WAYS, way_name
from flowrl.worlds.avoid.prompts import HELD_OUT

NAME, TITLE = "control", "Control: one board, seven policy gradients"
SEEDS = 5
CONFIG = ROOT / "configs" / "quickstart_control.yaml"
ARMS = {
    "fpo": "{use: fpo, family: control, draws: 4, gamma: 0.99}",
    "fpo_pp": "{use: fpo_pp, family: control, draws: 16, clip: 0.05, weight: uniform, noise: 0.0}",
    "dppo": "{use: dppo, steps: 10, tuned: null}",
    "reinflow": "{use: reinflow}",
    "policy_flow": "{use: policy_flow}",
    "awm": "{use: awm, family: control, steps: 10, ema: 0.1, reference: 0.0}",
    "ppo_gaussian": "{use: ppo_gaussian}",
}
PLAIN = ("fpo", "dppo", "ppo_gaussian")
"""Arms that also learn where no way is asked for."""
RATES = (1e-4, 3e-4, 1e-3)
PILOT_SEED = 100
BUDGET, SHORT, EVERY = 240_000, 120_000, 24_000
"""Environment steps of a run or pilot, of a run that is asked for no way, and between evaluations."""
EACH = 42
"""Episodes of a way in an evaluation."""
MARK = 0.8
LEAST = 0.01
"""A way is kept that takes at least this share of the successes."""
DATA_FILE = {"prompt": "cross the board"}


def opened(arm: str, rate: float, seed: int, asked: bool) -> Session:
    """A session before its first iteration."""
    overrides = [f"algorithm={ARMS[arm]}", f"optimizer.lr={rate}", f"train.seed={seed}", "eval.every=0"]
    if arm == "awm":  # credit of groups: there is no critic
        overrides += ["optimizer.critic_lr=null", "optimizer.critic_warmup=0"]
    with tempfile.TemporaryDirectory() as folder:
        if not asked:
            file = Path(folder) / "plain.jsonl"
            file.write_text(json.dumps(DATA_FILE) + "\n")
            overrides += [f"data={{train: {file}, test: {file}, prompts: 1, group: 72}}"]
        return open_session(check_run(Config.load(CONFIG, overrides)))


def evaluated(session: Session, ways: list[str | None]) -> dict[str, Any]:
    """By the deployed sampler, `EACH` episodes of every way (``None``: of none): successes [ways], and of all of them
    the entropy of the ways taken, in nats, and how many took at least a share of `LEAST`."""
    prompts = [Prompt("p", n, {} if way is None else {"way": way}) for n, way in enumerate(ways) for _ in range(EACH)]
    group = torch.arange(len(ways)).repeat_interleave(EACH)
    draw = Draw.of(seeds_of(20_000, "evidence", count=len(prompts)), group, 0, 0, prompts)
    sampler = session.algorithm.sampler.heldout(None, None, None)
    with session.policy.using("live") as policy, torch.no_grad():
        final = sampler(policy, policy.condition(prompts), draw).final
    success = final[:, 3] == 1
    share = torch.bincount(final[success, 4].long(), minlength=len(WAYS)).double() / success.sum().clamp(min=1)
    entropy = (share * -share.clamp(min=1e-12).log()).sum()
    return {
        "success": success.view(len(ways), EACH).sum(dim=1).tolist(),
        "entropy": round(float(entropy), 4),
        "ways": int((share >= LEAST).sum()),
    }


def names(asked: bool) -> list[str | None]:
    """The prompts of an evaluation: all ways, or as many that ask for none."""
    return [way_name(way) if asked else None for way in WAYS]


def trained(arm: str, rate: float, seed: int, asked: bool, budget: int = BUDGET) -> dict[str, Any]:
    """A run up to ``budget`` environment steps, four a decision; ``points`` are [steps, success, CPU seconds of the
    iterations] of held-out ways, or of the whole where none is asked for."""
    session = opened(arm, rate, seed, asked)
    watched: list[str | None] = [*HELD_OUT] if asked else [None] * len(HELD_OUT)
    policy: Any = session.policy
    chunk = policy.config.chunk
    steps, seconds, points, whole = 0, 0.0, [], True

    def look() -> None:
        found = evaluated(session, watched)["success"]
        points.append([steps, round(sum(found) / (EACH * len(found)), 4), round(seconds, 2)])

    look()
    base = evaluated(session, names(asked)) if seed in (0, PILOT_SEED) else None
    try:
        while steps < budget:
            begun = time.process_time()
            metrics = iterate(session, PhaseTimer())[0]
            seconds += time.process_time() - begun
            steps += round(float(metrics["episode/decisions"]) * episodes_an_iteration(session) * chunk)
            if steps // EVERY > points[-1][0] // EVERY or steps >= budget:
                look()
    except UserError as error:
        whole = False
        print(error)
    return {"points": points, "whole": whole, "base": base, "end": evaluated(session, names(asked))}


def episodes_an_iteration(session: Session) -> int:
    """How many are made."""
    return session.config.data.prompts * session.config.data.group


def chosen(data: dict[str, Any], arm: str) -> float:
    """The rate with the best mean of the pilot's curve."""
    scores = data["pilot"][arm]
    return float(max(scores, key=lambda rate: scores[rate]))


def run(seeds: list[int], arms: list[str]) -> None:
    """What is missing: the pilot, then seed by seed all arms."""
    data = read(NAME)
    facts = {"commit": str(commit())[:7], "processor": processor(), **{name: installed(name) for name in PACKAGES}}

    def keep(kind: str, arm: str, key: str, value: Any) -> None:
        data.setdefault(kind, {}).setdefault(arm, {})[key] = value
        write(NAME, data)
        print(kind, arm, key, value if kind == "pilot" else value["points"][-1], flush=True)

    for arm in arms:
        for rate in RATES:
            if f"{rate:g}" not in data.get("pilot", {}).get(arm, {}):
                points = trained(arm, rate, PILOT_SEED, asked=True)["points"]
                keep("pilot", arm, f"{rate:g}", round(statistics.fmean(point[1] for point in points[1:]), 4))
    for kind, some, budget in (("arms", arms, BUDGET), ("plain", [arm for arm in PLAIN if arm in arms], SHORT)):
        for seed in seeds:
            for arm in some:
                if str(seed) not in data.get(kind, {}).get(arm, {}):
                    found = trained(arm, chosen(data, arm), seed, kind == "arms", budget)
                    keep(kind, arm, str(seed), found | facts)


# ------------------------------------------------------------------------------------------------------------ the page
def shares(found: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Successes and episodes of the trained ways, and of the held-out ones."""
    kept: list[list[int]] = [[], []]
    for way, count in zip(WAYS, found["success"], strict=True):
        kept[way_name(way) in HELD_OUT].append(count)
    first, second = ((sum(counts), EACH * len(counts)) for counts in kept)
    return first, second


def ordered(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Arms and their runs by seed, in the order of `ARMS` and of the seeds."""
    return [(arm, {s: found[arm][s] for s in sorted(found[arm], key=int)}) for arm in ARMS if arm in found]


def pooled(pairs: list[tuple[int, int]]) -> str:
    """The share of all seeds together with Wilson's interval, and each seed's."""
    successes, trials = (sum(column) for column in zip(*pairs, strict=True))
    low, high = wilson(successes, trials)
    each = " ".join(f"{a / b:.3f}" for a, b in pairs)
    return f"{successes / trials:.3f} [{low:.3f}, {high:.3f}] ({each})"


def reached(points: list[list[float]]) -> float:
    """Environment steps of the first evaluation at `MARK`; NaN if none is."""
    return next((point[0] for point in points if point[1] >= MARK), math.nan)


def _thousands(values: list[float]) -> str:
    return " ".join("never" if math.isnan(value) else f"{value / 1000:.0f}k" for value in values)


def pilots(data: dict[str, Any]) -> str:
    """The table of the rates."""
    rows = [f"| arm | {' | '.join(f'{rate:g}' for rate in RATES)} |", "|---" * (1 + len(RATES)) + "|"]
    for arm, scores in data["pilot"].items():
        best = f"{chosen(data, arm):g}"
        cells = [f"**{scores[key]:.3f}**" if key == best else f"{scores[key]:.3f}" for key in scores]
        rows.append(f"| `{arm}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def asked_table(data: dict[str, Any]) -> str:
    """Of the prompts that ask for ways: base beside tuned."""
    rows = [
        "| arm | seeds | trained ways | held-out ways | base, held out | way entropy, % of the base's "
        f"| steps to {MARK:g} | CPU s of a run |",
        "|---" * 8 + "|",
    ]
    for arm, runs in ordered(data["arms"]):
        ends, base = [shares(run["end"]) for run in runs.values()], runs["0"]["base"]
        entropy = [100 * run["end"]["entropy"] / base["entropy"] for run in runs.values()]
        cells = [
            str(len(runs)),
            pooled([end[0] for end in ends]),
            pooled([end[1] for end in ends]),
            f"{shares(base)[1][0] / shares(base)[1][1]:.3f}",
            written_range(entropy, 0),
            _thousands([reached(run["points"]) for run in runs.values()]),
            written_range([run["points"][-1][2] for run in runs.values()], 1),
        ]
        rows.append(f"| `{arm}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def curve_table(data: dict[str, Any], kind: str) -> str:
    """Success over environment steps, mean of the seeds."""
    marks = range(0, (BUDGET if kind == "arms" else SHORT) + 1, 2 * EVERY if kind == "arms" else EVERY)
    rows = [f"| arm | {' | '.join(f'{mark // 1000}k' for mark in marks)} |", "|---" * (1 + len(marks)) + "|"]
    for arm, runs in ordered(data[kind]):
        cells = []
        for mark in marks:
            at = [next((p[1] for p in run["points"] if p[0] >= mark), run["points"][-1][1]) for run in runs.values()]
            cells.append(f"{statistics.fmean(at):.3f}")
        rows.append(f"| `{arm}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def plain_table(data: dict[str, Any]) -> str:
    """Of the prompt that asks for no way."""
    rows = [
        "| arm | base | success | ways kept, of the base's | way entropy, nats, of the base's | CPU s of a run |",
        "|---" * 6 + "|",
    ]
    for arm, runs in ordered(data["plain"]):
        ends, base = [run["end"] for run in runs.values()], runs["0"]["base"]
        total = EACH * len(WAYS)
        cells = [
            f"{sum(base['success']) / total:.3f}",
            pooled([(sum(end["success"]), total) for end in ends]),
            f"{' '.join(str(end['ways']) for end in ends)} of {base['ways']}",
            f"{' '.join(format(abs(end['entropy']), '.2f') for end in ends)} of {abs(base['entropy']):.2f}",
            written_range([run["points"][-1][2] for run in runs.values()], 1),
        ]
        rows.append(f"| `{arm}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def block(data: dict[str, Any]) -> str:
    """Everything on the page that comes from the data."""
    records = [run for runs in (*data["arms"].values(), *data["plain"].values()) for run in runs.values()]
    machines, *versions, commits = (
        " and ".join(sorted({run[key] for run in records})) for key in ("processor", *PACKAGES, "commit")
    )
    packages = ", ".join(f"{name} {found}" for name, found in zip(PACKAGES, versions, strict=True))
    broken = [f"`{arm}` seed {s}" for arm, runs in data["arms"].items() for s, r in runs.items() if not r["whole"]]
    parts = [
        "`python -m benchmarks.evidence.control`",
        f"{BUDGET:,} environment steps a run (four a decision); {machines}, one thread; {packages}; flowrl at "
        f"{commits}." + (f" Ended early: {', '.join(broken)}." if broken else ""),
        f"Learning rates: mean held-out success over a run of {BUDGET:,} environment steps on seed "
        f"{PILOT_SEED}, which is none of the seeds below.",
        pilots(data),
        f"Prompts that ask for a way: success at the end by the deployed sampler, {EACH} episodes of each of 18 ways "
        "that were rewarded and of 6 that never were, all seeds together with Wilson's 95 % interval (each seed). "
        "Entropy of the ways of the successes, mean and range of the seeds.",
        asked_table(data),
        "Held-out success after so many environment steps (the first evaluation from there on), mean of the seeds:",
        curve_table(data, "arms"),
        f"A prompt that asks for no way, {SHORT:,} environment steps: success of {EACH * len(WAYS)} episodes, ways "
        f"that took at least {LEAST:.0%} of the successes, and their entropy, each seed.",
        plain_table(data),
        "Its success over the steps, mean of the seeds:",
        curve_table(data, "plain"),
        "What each arm sets:\n\n" + "\n".join(f"- `{arm}`: `{ARMS[arm]}`" for arm in data["arms"]),
    ]
    return "\n\n".join(parts)


def runs_of(data: dict[str, Any]) -> list[dict[str, Any]]:
    """What was measured of each of the arms that have all seeds."""
    return [data["arms"][arm] for arm in PLAIN]


def write_page() -> None:
    """Bring the page up to its data."""
    put(NAME, TITLE, block(read(NAME)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="*", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--write", action="store_true", help="no runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.write:
        run(given.seeds, given.arms)
    write_page()


if __name__ == "__main__":
    main()

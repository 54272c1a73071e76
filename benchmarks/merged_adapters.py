"""What `model.merge_adapters` saves: an iteration of each quickstart with LoRA, and single network calls without
gradient; CPU seconds of one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.merged_adapters [--rounds 12]

Arms take turns within one process, first one and then the other; medians, and the median of the paired ratios with
their quartiles. The quickstarts of language models train all weights; here they have the default LoRA instead.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from flowrl.config import Config
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import Session, open_session
from flowrl.startup.preflight import check_run
from flowrl.train import iterate
from flowrl.types import prompts_of

CONFIGS = Path(__file__).parent.parent / "configs"
QUICKSTARTS = ("quickstart", "quickstart_masked_lm", "quickstart_causal_lm")


def sessions(name: str) -> tuple[Session, Session]:
    """Without merged adapters, and with them."""
    values: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    if values["model"].pop("full", False):
        values["model"]["lora"] = {"rank": 32}
    plain, merged = (
        open_session(check_run(Config.of({**values, "model": {**values["model"], "merge_adapters": merge}})))
        for merge in (False, True)
    )
    return plain, merged


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(name: str, arms: Sequence[Callable[[], object]], rounds: int) -> None:
    """Print the medians of both arms and of their ratio; the first round warms up."""
    times = []
    for number in range(rounds + 1):
        order = (0, 1) if number % 2 else (1, 0)
        found = {arm: cpu_seconds(arms[arm]) for arm in order}
        times.append((found[0], found[1]))
    ratios = [merged / plain for plain, merged in times[1:]]
    low, middle, high = statistics.quantiles(ratios, n=4)
    plain, merged = (statistics.median(pair[arm] for pair in times[1:]) for arm in (0, 1))
    print(f"{name}: {plain:.4f} s, merged {merged:.4f} s, ratio {middle:.3f} ({low:.3f} to {high:.3f})", flush=True)


def denoise(session: Session, rows: int) -> Callable[[], object]:
    """A call of the denoiser without gradient."""
    policy: Any = session.policy
    move(session)
    x, t = torch.randn(rows, *policy.latent_shape), torch.full((rows,), 0.5)
    condition = policy.condition(prompts_of(["a red circle"])).take(torch.zeros(rows, dtype=torch.int64))

    @torch.no_grad()
    def call() -> None:
        policy.velocity(x, t, condition, guidance=1.0)

    return call


@torch.no_grad()
def move(session: Session) -> None:
    """An adapter that is not 0, or there were nothing to merge."""
    for parameter in session.policy.parameters():
        parameter.add_(torch.randn(parameter.shape) * 0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    for name in QUICKSTARTS:
        pair = sessions(name)
        compare(f"{name}, iteration", [lambda s=s: iterate(s, PhaseTimer()) for s in pair], rounds)
        if name == "quickstart":
            for rows in (1, 16, 216):
                compare(f"{name}, call of {rows} rows", [denoise(s, rows) for s in pair], 4 * rounds)


if __name__ == "__main__":
    main()

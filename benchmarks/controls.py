"""The two controls every reinforcement result on an image world stands beside.

    OMP_NUM_THREADS=1 python benchmarks/controls.py --world shapes --seconds 120 --seeds 0 1 2

1. The base at several guidance scales, on the same held-out prompts and noise as the runs' own evaluation.
2. The base after more pre-training for as many CPU seconds as a run uses (averaged weights, rate decayed to the end).
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline

from flowrl.config import Config
from flowrl.heldout import evaluate_heldout
from flowrl.models import load_policy
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import open_session
from flowrl.startup.preflight import check_run
from flowrl.worlds.images.pretraining import Recipe, continue_pretraining


def score(world: str, guidance: float, pipeline: StableDiffusion3Pipeline | None = None) -> float:
    """Held-out strict score of the base, or of ``pipeline`` in its place, at a guidance scale."""
    loaded = max(guidance, 1.5)  # a policy loaded without guidance has no unconditional branch
    file = Path(__file__).parent / f"{world}.yaml"
    config = Config.load(file, [f"model.call={{guidance_scale: {loaded}}}", f"eval.guidance={guidance}"])
    session = open_session(check_run(config))
    if pipeline is not None:
        arguments = config.model.arguments("diffusion") | {"path_or_pipeline": pipeline}
        session.policy = load_policy(**(arguments | {"call": {**config.model.call, "max_sequence_length": 1}}))
        session.policy.update_ema("ema", 0.0)
    return evaluate_heldout(session, PhaseTimer()).metrics["eval/strict/mean"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=("shapes", "scenes"), default="shapes")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--guidance", nargs="*", type=float, default=[1.0, 1.5, 2.0, 3.0, 4.0])
    parser.add_argument("--lr", type=float, default=5e-4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for guidance in options.guidance:
        print(f"base, guidance {guidance:g}: strict {score(options.world, guidance):.3f}", flush=True)
    base = importlib.import_module(f"flowrl.worlds.{options.world}").BASE
    lessons = importlib.import_module(f"flowrl.worlds.{options.world}.pretrain").lessons
    for seed in options.seeds:
        pipeline = StableDiffusion3Pipeline.from_pretrained(base, dtype=torch.float32)
        _, finish = lessons(pipeline.vae, 1.0, 0)[-1]  # on what the base was finished
        recipe = Recipe(seconds=options.seconds, lr=options.lr, decay_from=0.3, seed=1000 + seed)
        longer = continue_pretraining(pipeline, recipe, finish)
        strict = score(options.world, 1.0, longer)
        print(f"more pre-training, {options.seconds:g} CPU s, seed {seed}: strict {strict:.3f}", flush=True)


if __name__ == "__main__":
    main()

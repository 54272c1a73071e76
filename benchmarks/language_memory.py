"""Peak memory and time of a masked language model's update: only the positions asked for pass the vocabulary layer,
against a version that makes all logits; and BGPO's memory as its number of views grows.

Usage: python benchmarks/language_memory.py [--repeats 3]
Vocabulary 32k, BERT of 4 layers and width 256, completions of 128 tokens after prompts of 32. Every measurement has its
own process and one thread; memory is the peak resident set above what was there before the update.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from flowrl.types import Draw, prompts_of

VOCABULARY, LENGTH, PROMPT_TOKENS, SAMPLES = 32_000, 128, 32, 16
# Freed blocks of over 1 MB go back to the system at once, so that the peak is of live memory, not of fragments.
QUIET = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
SIDES = {
    "asked positions": {"preset": "elbo_pg", "draws": 4, "micro": 16, "all_logits": False},
    "all logits": {"preset": "elbo_pg", "draws": 4, "micro": 16, "all_logits": True},
    "bgpo, 1 view": {"preset": "bgpo", "draws": 1, "micro": 16, "all_logits": False},
    "bgpo, 4 views": {"preset": "bgpo", "draws": 4, "micro": 16, "all_logits": False},
    "bgpo, 16 views": {"preset": "bgpo", "draws": 16, "micro": 16, "all_logits": False},
    "gdpo_dllm, 16 nodes": {"preset": "gdpo_dllm", "draws": 16, "micro": 16, "all_logits": False},
}


def build(folder: Path) -> None:
    """A BERT with random weights and a word tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    plain = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w3"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="w0", eos_token="w1", mask_token="w2", unk_token="w3"
    ).save_pretrained(folder)
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=256, **sizes, **dropout)
    BertForMaskedLM(config).save_pretrained(folder)


def measure(folder: Path, side: dict[str, Any]) -> dict[str, float]:
    """Seconds and peak megabytes of one update of 16 completions."""
    import torch

    from flowrl import composition
    from flowrl.math.random import seeds
    from flowrl.models import load_policy
    from flowrl.step import UpdateSettings, improve
    from flowrl.types import Rollout, Scores, TokenScores, TokenTrace

    torch.set_num_threads(1)
    policy = load_policy(str(folder), family="masked", lora=None, full=True)
    if side["all_logits"]:

        def score(condition: Any, tokens: Any, targets: Any, labels: Any, **options: Any) -> TokenScores:
            prompt = torch.cat([condition.prompts[i][None] for i in condition.index.tolist()])
            logits = policy.network.model(input_ids=torch.cat([prompt, tokens], dim=1)).logits[:, prompt.shape[1] :]
            logits = logits.float().index_fill(-1, torch.tensor([policy.mask_token]), -torch.inf)
            logp = logits.log_softmax(dim=-1).gather(-1, labels[..., None])[..., 0]
            return TokenScores(torch.where(targets, logp, torch.zeros_like(logp)))

        policy.score = score
    sizes = {"length": LENGTH, "steps": LENGTH, "block": LENGTH}
    name = "nodes" if side["preset"] == "gdpo_dllm" else "draws"
    algorithm = composition.build({"use": side["preset"], name: side["draws"], **sizes})
    for weights in algorithm.weight_sets:
        policy.update_ema(weights, 0.0)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, VOCABULARY, (SAMPLES, LENGTH), generator=generator)
    prompts = [" ".join(f"w{(7 * i + j) % 900 + 10}" for j in range(PROMPT_TOKENS)) for i in range(SAMPLES)]
    group = torch.zeros(SAMPLES, dtype=torch.long)
    trace = TokenTrace(tokens, torch.ones_like(tokens, dtype=torch.bool), 1.0)
    draw = Draw.of(seeds(0, "s", count=SAMPLES), group, 0, 0, prompts_of(prompts))
    rollout = Rollout.of(draw, policy.condition(draw.prompts), tokens, trace)
    rewards = torch.rand(SAMPLES, 1, generator=generator).double()
    valid = torch.ones(SAMPLES, dtype=torch.bool)
    scores = Scores(rewards, torch.ones(1).double(), ("r",), group, group, valid)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-6)  # no state: the memory is the update's own
    advantage = algorithm.advantage(scores, {})
    before, start = peak(), time.perf_counter()
    improve(policy, optimizer, algorithm, rollout, scores, advantage, UpdateSettings(micro_batch=side["micro"]))
    return {"seconds": time.perf_counter() - start, "megabytes": peak() - before}


def peak() -> float:
    """Peak resident set of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure every side in turns, print medians and ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=list(SIDES))
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.side:
        print("RESULT " + json.dumps(measure(arguments.folder, SIDES[arguments.side])))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        for _ in range(arguments.repeats):
            for side, results in found.items():
                command = [sys.executable, __file__, "--side", side, "--folder", folder]
                done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **QUIET})
                lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
                if not lines:
                    raise SystemExit(done.stderr[-4000:])
                results.append(json.loads(lines[0].removeprefix("RESULT ")))
    middle = {s: {k: statistics.median(r[k] for r in found[s]) for k in ("seconds", "megabytes")} for s in SIDES}
    for side, values in middle.items():
        print(f"{side:22} {values['seconds']:6.2f} s {values['megabytes']:8.0f} MB")
    ours, naive = middle["asked positions"], middle["all logits"]
    ratios = {key: ours[key] / naive[key] for key in ours}
    print(f"asked positions over all logits: time {ratios['seconds']:.2f}, memory {ratios['megabytes']:.2f}")


if __name__ == "__main__":
    main()

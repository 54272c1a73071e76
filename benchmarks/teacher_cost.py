"""What an update of a student costs beside one of GRPO with and without its KL: CPU seconds and memory, on one network.

Usage: python -m benchmarks.teacher_cost [--repeats 3]
Vocabulary 32k, Llama of 4 layers and width 256 with LoRA, 16 completions of 128 tokens after prompts of 32, one update
in one micro-batch. Every measurement has its own process and one thread; seconds are the quicker of two updates,
memory is the peak resident set above what was there before the first (`benchmarks.language_memory`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.language_memory import LENGTH, PROMPT_TOKENS, QUIET, SAMPLES, VOCABULARY, peak
from flowrl.types import Draw, prompts_of

OWN = {"on_policy": 1.0, "temperature": 1.0}
SIDES: dict[str, dict[str, Any]] = {
    "grpo, no kl": {"use": "grpo", "kl": 0.0},
    "grpo, kl": {"use": "grpo", "kl": 0.04},
    "opd, an adapter": {"use": "opd"},
    "opd, another model": {"use": "opd"},
    "vopd, an adapter": {"use": "vopd"},
    "gkd, beta 0": {"use": "gkd", "beta": 0.0, **OWN},
    "gkd, beta 0, top 64": {"use": "gkd", "beta": 0.0, **OWN, "estimator": {"top": 64}},
    "gkd, beta .5": {"use": "gkd", **OWN},
}


def build(folder: Path) -> None:
    """A Llama with random weights and a word tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    plain = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w3"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"pad_token": "w0", "eos_token": "w1", "unk_token": "w3"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **named).save_pretrained(folder)
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}
    ends = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=256, **sizes, **ends)).save_pretrained(
        folder
    )


def measure(folder: Path, side: str) -> dict[str, float]:
    """CPU seconds and peak megabytes of an update."""
    import torch

    from flowrl import composition
    from flowrl.math.random import seeds
    from flowrl.models import LoRAOptions, load_policy
    from flowrl.models.teachers import Peer
    from flowrl.step import UpdateSettings, improve
    from flowrl.types import Rollout, Scores, TokenTrace

    torch.set_num_threads(1)

    def load() -> Any:
        return load_policy(str(folder), family="causal", lora=LoRAOptions(rank=8, alpha=16))

    policy: Any = load()
    algorithm = composition.build({"length": LENGTH, **SIDES[side]})
    for weights in (*algorithm.weight_sets, *algorithm.teachers):
        policy.update_ema(weights, 0.0)
    if side.endswith("another model"):
        policy.weights.drop("teacher")
        policy.teachers = {"teacher": Peer(load())}
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.parameters():  # a student that is not its teacher
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    tokens = torch.randint(4, VOCABULARY, (SAMPLES, LENGTH), generator=generator)
    prompts = [" ".join(f"w{(7 * i + j) % 900 + 10}" for j in range(PROMPT_TOKENS)) for i in range(SAMPLES)]
    group = torch.arange(SAMPLES) // 8
    trace = TokenTrace(tokens, torch.ones_like(tokens, dtype=torch.bool), 1.0)
    draw = Draw.of(seeds(0, "s", count=SAMPLES), group, 0, 0, prompts_of(prompts))
    rollout = Rollout.of(draw, policy.condition(draw.prompts), tokens, trace)
    rewards = torch.rand(SAMPLES, 1, generator=generator).double()
    valid = torch.ones(SAMPLES, dtype=torch.bool)
    scores = Scores(rewards, torch.ones(1).double(), ("r",), group, group, valid)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-6)  # no state: the memory is the update's own
    advantage = algorithm.advantage(scores, {})
    before, found = peak(), {}
    for turn in range(2):
        start = time.process_time()
        improve(policy, optimizer, algorithm, rollout, scores, advantage, UpdateSettings(micro_batch=SAMPLES))
        found["seconds"] = min(found.get("seconds", 1e9), time.process_time() - start)
        if not turn:
            found["megabytes"] = peak() - before
    return found


def main() -> None:
    """Measure every side in turns and print medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=list(SIDES))
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.side:
        print("RESULT " + json.dumps(measure(given.folder, given.side)))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        for _ in range(given.repeats):
            for side, results in found.items():
                command = [sys.executable, "-m", "benchmarks.teacher_cost", "--side", side, "--folder", folder]
                done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **QUIET})
                lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
                if not lines:
                    raise SystemExit(done.stderr[-4000:])
                results.append(json.loads(lines[0].removeprefix("RESULT ")))
    middle = {s: {k: statistics.median(r[k] for r in found[s]) for k in ("seconds", "megabytes")} for s in SIDES}
    base = middle["grpo, kl"]
    for side, value in middle.items():
        seconds, held = value["seconds"], value["megabytes"]
        ratio, more = seconds / base["seconds"], held - base["megabytes"]
        print(f"{side:22} {seconds:6.2f} s ({ratio:.2f}) {held:6.0f} MB ({more:+.0f})", flush=True)


if __name__ == "__main__":
    main()

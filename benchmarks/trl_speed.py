"""GRPO on a small causal language model: flowrl against TRL, same model, prompts, group, lengths and updates.

Usage (in an environment with both): python benchmarks/trl_speed.py [--repeats 3]
Each side runs in its own process, in turns, one thread. Time is the median of the iterations after the first; memory is
the peak resident set above what the process had after loading the model.
"""

from __future__ import annotations

import argparse
import itertools
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

VOCABULARY, PROMPT_TOKENS, ITERATIONS = 32_000, 24, 8
SETTINGS = {
    "random Llama, vocabulary 32k, 64 tokens": {"world": None, "length": 64, "prompts": 4, "group": 8},
    "countdown world, completions end early": {"world": "countdown", "length": 16, "prompts": 16, "group": 16},
}


def build(folder: Path) -> None:
    """A Llama of 4 layers with random weights and a word tokenizer of 32,000 words; it practically never ends."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = {f"w{i}": i for i in range(VOCABULARY)}
    plain = Tokenizer(models.WordLevel(words, unk_token="w3"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="w0", eos_token="w1", unk_token="w3")
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def place(folder: Path, options: dict[str, Any]) -> tuple[Path, list[dict[str, Any]], Any]:
    """The model's folder, the prompts with their columns, and the reward of a setting."""
    if options["world"] is None:
        return folder, [{"prompt": text} for text in prompts()], even
    from flowrl.worlds import countdown
    from rewards.countdown import countdown as score

    def scored(completions: list[str], prompts: list[str], numbers: Any, target: Any, **rest: Any) -> list[float]:
        return score(completions, prompts, numbers=numbers, target=target).tolist()

    return countdown.BASES["causal"], [dict(row) for row in countdown.prompts("train")], scored


def prompts() -> list[str]:
    """Word sequences."""
    return [" ".join(f"w{(7 * i + 13 * j) % 900 + 10}" for j in range(PROMPT_TOKENS)) for i in range(64)]


def even(completions: list[str], **columns: Any) -> list[float]:
    """Share of words with an even number."""
    return [sum(int(word[1:]) % 2 == 0 for word in text.split()) / max(len(text.split()), 1) for text in completions]


def run_trl(folder: Path, options: dict[str, Any]) -> dict[str, float]:
    """Times and memory of TRL."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

    path, rows, reward = place(folder, options)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    config = GRPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=options["prompts"] * options["group"],
        num_generations=options["group"],
        max_completion_length=options["length"],
        num_iterations=1,
        beta=0.0,
        temperature=1.0,
        learning_rate=1e-5,
        max_steps=ITERATIONS,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(path),
        callbacks=[Clock()],
    )
    before = peak()
    start = time.perf_counter()
    trainer.train()
    ends = [start, *marks[1::2]]
    steps = [b - a for a, b in itertools.pairwise(ends)]
    return {"seconds": statistics.median(steps[1:]), "megabytes": peak() - before}


def run_flowrl(folder: Path, options: dict[str, Any]) -> dict[str, float]:
    """Times and memory of flowrl, through its ordinary training loop."""
    import torch

    import flowrl
    from flowrl.config import Config
    from flowrl.session import open_session
    from flowrl.startup.preflight import check_run

    path, rows, _ = place(folder, options)
    data = folder / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = options["prompts"] * options["group"]
    config = Config.of(
        {
            "name": "speed",
            "model": {"path": str(path), "full": True},
            "algorithm": {"use": "grpo", "kl": 0.0, "length": options["length"]},
            "data": {"train": str(data), "test": None, "prompts": options["prompts"], "group": options["group"]},
            "rewards": [options["world"] or f"{__file__}:even"],
            "optimizer": {"lr": 1e-5, "weight_decay": 0.0},
            "train": {"iterations": ITERATIONS, "micro_batch": samples, "threads": 1, "ema": None},
            "eval": {"every": 0, "weights": "live"},
            "checkpoint": {"every": 0},
            "log": {"samples": 0},
            "out": str(folder / "run"),
        }
    )
    torch.set_num_threads(1)
    session = open_session(check_run(config))  # what TRL has loaded before its clock starts
    before = peak()
    del session
    flowrl.train(config)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    times = [0.0, *(line["time"] for line in lines)]
    steps = [b - a for a, b in itertools.pairwise(times)]
    return {"seconds": statistics.median(steps[1:]), "megabytes": peak() - before}


def peak() -> float:
    """Peak resident set of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run both sides in turns and print the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=["trl", "flowrl"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--setting")
    arguments = parser.parse_args()
    if arguments.side:
        found = (run_trl if arguments.side == "trl" else run_flowrl)(arguments.folder, SETTINGS[arguments.setting])
        print("RESULT " + json.dumps(found))
        return
    for title in SETTINGS:
        results: dict[str, list[dict[str, float]]] = {"trl": [], "flowrl": []}
        for _ in range(arguments.repeats):
            for side, found in results.items():
                found.append(_apart(side, title))
        print(title)
        for key in ("seconds", "megabytes"):
            trl, ours = (statistics.median(r[key] for r in results[side]) for side in ("trl", "flowrl"))
            print(f"  {key}: TRL {trl:.2f}, flowrl {ours:.2f}, ratio {ours / trl:.2f}")


def _apart(side: str, title: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        command = [sys.executable, __file__, "--side", side, "--folder", folder, "--setting", title]
        quiet = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, capture_output=True, text=True, env=quiet)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
        return json.loads(lines[0].removeprefix("RESULT "))


if __name__ == "__main__":
    main()

"""GRPO on a small causal language model: flowrl against TRL, same model, prompts, group, lengths and updates.

Usage (in an environment with both): python benchmarks/trl_speed.py [--repeats 5] [--only "512 tokens"]
Each side runs in its own process, in turns, one thread. Time is the median of the iterations after the first, in CPU
seconds of the process (what else the machine does matters less) and on the wall; memory is the peak resident set above
what the process had after loading the model. ``--profile`` prints where flowrl's seconds go.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VOCABULARY, PROMPT_TOKENS = 32_000, 24
SETTINGS: dict[str, dict[str, Any]] = {
    f"{length} tokens": {"world": None, "length": length, "prompts": 2, "group": 4, "iterations": rounds}
    for length, rounds in ((64, 8), (128, 6), (256, 5), (512, 4), (1024, 4))
}
"""2 prompts x 4 completions of a Llama of 4 layers, width 256, vocabulary 32k, random weights: none ends early."""
SETTINGS["32 completions of 64 tokens"] = {**SETTINGS["64 tokens"], "prompts": 4, "group": 8}
SETTINGS["countdown"] = {"world": "countdown", "length": 16, "prompts": 16, "group": 16, "iterations": 8}
"""The world's base: completions end early."""


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
        max_position_embeddings=2048,
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
    cpu: list[float] = []
    wall: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            cpu.append(time.process_time())
            wall.append(time.perf_counter())

    path, rows, reward = place(folder, options)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    config = GRPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=micro_batch(options),
        gradient_accumulation_steps=options["prompts"] * options["group"] // micro_batch(options),
        num_generations=options["group"],
        max_completion_length=options["length"],
        num_iterations=1,
        beta=0.0,
        temperature=1.0,
        learning_rate=1e-5,
        max_steps=options["iterations"],
        use_cpu=options.get("device", "cpu") == "cpu",
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
    trainer.train()
    return {"cpu": per_iteration(cpu), "wall": per_iteration(wall), "megabytes": peak() - before}


def run_flowrl(folder: Path, options: dict[str, Any]) -> dict[str, float]:
    """Times and memory of flowrl, through its ordinary training loop."""
    import torch

    import flowrl
    from flowrl.config import Config
    from flowrl.runtime.timing import PhaseTimer
    from flowrl.session import open_session
    from flowrl.startup.preflight import check_run

    path, rows, _ = place(folder, options)
    data = folder / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Config.of(
        {
            "name": "speed",
            "model": {"path": str(path), "full": True, "device": options.get("device", "cpu")},
            "algorithm": {"use": "grpo", "kl": 0.0, "length": options["length"]},
            "data": {"train": str(data), "test": None, "prompts": options["prompts"], "group": options["group"]},
            "rewards": [options["world"] or f"{__file__}:even"],
            "optimizer": {"lr": 1e-5, "weight_decay": 0.0},
            "train": {
                "iterations": options["iterations"],
                "micro_batch": micro_batch(options),
                "threads": 1,
                "ema": None,
            },
            "eval": {"every": 0, "weights": "live"},
            "checkpoint": {"every": 0},
            "log": {"samples": 0},
            "out": str(folder / "run"),
        }
    )
    torch.set_num_threads(1)
    PhaseTimer.clock = time.process_time
    session = open_session(check_run(config))  # what TRL has loaded before its clock starts
    before = peak()
    del session
    with profiled(options.get("profile", False)):
        flowrl.train(config)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    found = {"wall": per_iteration([line["time"] for line in lines]), "megabytes": peak() - before}
    for phase in ("iteration", "sample", "update"):
        found[f"cpu {phase}"] = statistics.median(line.get(f"time/{phase}", 0.0) for line in lines[1:])
    found["cpu"] = found.pop("cpu iteration")
    return found


@contextlib.contextmanager
def profiled(wanted: bool) -> Iterator[None]:
    """Print what the inside spends its time on: operators of torch, and functions of Python."""
    if not wanted:
        yield
        return
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        yield
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40))


def per_iteration(ends: list[float]) -> float:
    """Median seconds of the iterations after the first, by the times at which iterations ended."""
    return statistics.median(after - before for before, after in itertools.pairwise(ends))


def micro_batch(options: dict[str, Any]) -> int:
    """Rows per forward and backward, the same for both: what fits into memory with all logits, 2048 tokens."""
    return min(options["prompts"] * options["group"], max(1, 2048 // options["length"]))


def peak() -> float:
    """Peak resident set of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run both sides in turns and print the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--side", choices=["trl", "flowrl"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--device", default="cpu", help="of one --side; times are then of the wall")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    if arguments.side:
        options = {**SETTINGS[arguments.only[0]], "profile": arguments.profile, "device": arguments.device}
        if arguments.folder is None:
            print(json.dumps(_apart(arguments.side, arguments.only[0], arguments.profile, arguments.device)))
            return
        found = (run_trl if arguments.side == "trl" else run_flowrl)(arguments.folder, options)
        print("RESULT " + json.dumps(found))
        return
    print(f"{'setting':>28} | CPU s TRL / flowrl, ratio (range) | wall s, ratio | peak MB, ratio")
    for title in arguments.only:
        pairs = [(_apart("trl", title), _apart("flowrl", title)) for _ in range(arguments.repeats)]
        shown = [f"{title:>28}"]
        for key in ("cpu", "wall", "megabytes"):
            trl, ours = (statistics.median(pair[side][key] for pair in pairs) for side in (0, 1))
            ratios = sorted(ours[key] / trl[key] for trl, ours in pairs)
            shown.append(f"{trl:.2f} / {ours:.2f}, {ours / trl:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})")
        print(" | ".join(shown), flush=True)


def _apart(side: str, title: str, profile: bool = False, device: str = "cpu") -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        command = [sys.executable, __file__, "--side", side, "--folder", folder, "--only", title]
        command += ["--device", device]
        quiet = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run([*command, *["--profile"] * profile], capture_output=True, text=True, env=quiet)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
        if profile:
            print(done.stdout)
        return json.loads(lines[0].removeprefix("RESULT "))


if __name__ == "__main__":
    main()

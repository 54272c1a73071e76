"""What `benchmarks.gpu` measures: one function per kind of arm, each called in a process of its own."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECTIONS = ("quickstarts", "sd35", "flux", "llada", "qwen3", "trl")
QUICKSTARTS = ("quickstart", "quickstart_masked_lm", "quickstart_causal_lm")
METRIC_BOUND, CHANGE_BOUND = 1e-3, 1e-2
"""A quickstart's iteration on the device is that on the CPU where no metric differs by more than the first, relative to
1 or its size, and the change of the weights by no more than the second of its own norm (AdamW's first step divides by
the gradient, which magnifies its rounding where it is small)."""


@dataclass(frozen=True)
class Arm:
    """One row of the table."""

    section: str
    name: str
    kind: str
    """The function below."""
    options: dict[str, Any] = field(default_factory=dict)
    limit: float = 90.0
    """Seconds."""


OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "sd35": {
        "bfloat16": {},
        "float32": {"model.dtype": "float32"},
        "float16": {"model.dtype": "float16"},
        "compile": {"model.compile": True},
        "attention: xformers": {"model.attention": "xformers"},
        "gradient checkpointing": {"model.gradient_checkpointing": True},
        "micro_batch 1": {"train.micro_batch": 1},
        "micro_batch 8": {"train.micro_batch": 8},
        "sample_batch 2": {"train.sample_batch": 2},
        "decode_batch 1": {"model.decode_batch": 1},
        "vae_slicing": {"model.vae_slicing": True},
        "vae_tiling": {"model.vae_tiling": True},
        "prompt_cache": {"model.prompt_cache": True},
        "offload: encoders": {"model.offload": "encoders"},
        "offload: sequential": {"model.offload": "sequential"},
        "quantize: nf4": {"model.quantize": "nf4"},
        "quantize: int8": {"model.quantize": "int8"},
        "quantize_encoders: nf4": {"model.quantize_encoders": "nf4"},
        "AdamW8bit": {"optimizer.use": "AdamW8bit"},
        "trained weights in bfloat16": {"model.trained_dtype": "bfloat16"},
        "images: uint8": {"train.images": "uint8"},
    },
    "flux": {
        "LoRA": {"model.gradient_checkpointing": True},
        "LoRA, attention: flash": {"model.gradient_checkpointing": True, "model.attention": "flash"},
        "LoRA on NF4": {"model.gradient_checkpointing": True, "model.quantize": "nf4"},
    },
    "llada": {
        "LoRA": {"model.gradient_checkpointing": True},
        "LoRA on NF4": {"model.gradient_checkpointing": True, "model.quantize": "nf4"},
    },
    "qwen3": {
        "LoRA": {"model.gradient_checkpointing": True},
        "LoRA, micro_tokens": {"model.gradient_checkpointing": True, "train.micro_tokens": 1024},
        "LoRA on NF4": {"model.gradient_checkpointing": True, "model.quantize": "nf4"},
    },
}
"""What each option changes; the first of a section is what the others are compared with."""
ALGORITHMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sd35": ({"use": "flow_grpo", "sampler": {"steps": 10}}, {"use": "flow_grpo", "sampler": {"steps": 2}}),
    "flux": ({"use": "flow_grpo", "sampler": {"steps": 6}}, {"use": "flow_grpo", "sampler": {"steps": 2}}),
    "llada": (
        {"use": "elbo_pg", "draws": 2, "length": 128, "steps": 64, "block": 32},
        {"use": "elbo_pg", "draws": 2, "length": 8, "steps": 2, "block": 4},
    ),
    "qwen3": ({"use": "grpo", "length": 256}, {"use": "grpo", "length": 4}),
}
"""At full size, and tiny."""


def arms(sections: tuple[str, ...], tiny: bool) -> list[Arm]:
    """All rows of some sections, in the order in which they are run."""
    found: list[Arm] = []
    for section in sections:
        if section == "quickstarts":
            found += [Arm(section, name, "equality", {"config": name}) for name in QUICKSTARTS]
        elif section == "trl":
            found.append(Arm(section, "GRPO, 32 completions of 64 tokens", "against_trl", {}, 120.0))
        else:
            found.append(Arm(section, "model", "build", {"model": section}, 120.0))
            for name, changes in OPTIONS[section].items():
                found.append(Arm(section, name, "iterations", {"model": section, "changes": changes, "tiny": tiny}))
    return found


def run(arm: Arm, device: str, scratch: Path, tiny: bool) -> dict[str, Any]:
    """The numbers of an arm, or ``{"skipped": sentence}``."""
    os.environ["FLOWRL_CACHE"] = str(scratch / "cache")
    os.environ["HF_HUB_OFFLINE"] = "1"
    if device == "fakegpu":
        importlib.import_module("tests.fakegpu")  # which makes the device
    functions = {"equality": equality, "build": build, "iterations": iterations, "against_trl": against_trl}
    return functions[arm.kind](arm.options, device, scratch, tiny)


def build(options: Mapping[str, Any], device: str, scratch: Path, tiny: bool) -> dict[str, Any]:
    """Save the model of a section."""
    from benchmarks import gpu_models

    return gpu_models.save(options["model"], scratch / options["model"], device, tiny)


def settings(options: Mapping[str, Any], device: str, scratch: Path, tiny: bool) -> dict[str, Any]:
    """The config of an iteration with a random model: 2 prompts x 4 samples, LoRA of rank 32, AdamW."""
    name: str = options["model"]
    folder, side = scratch / name, 16 if tiny else 512
    model: dict[str, Any] = {"path": str(folder), "device": device, "dtype": "bfloat16"}
    model["lora"] = {"rank": 4, "alpha": 8} if tiny else {"rank": 32, "alpha": 64}
    images = name in ("sd35", "flux")
    if images:
        guidance = 4.5 if name == "sd35" else 3.5
        model["call"] = {"guidance_scale": guidance, "height": side, "width": side}
        model["call"]["max_sequence_length"] = 16 if tiny else 128
    values: dict[str, Any] = {
        "name": name,
        "model": model,
        "algorithm": ALGORITHMS[name][tiny],
        "data": {"train": str(folder / "prompts.txt"), "test": None, "prompts": 2, "group": 2 if tiny else 4},
        "rewards": ["jpeg_incompressibility" if images else f"{ROOT / 'benchmarks/gpu_models.py'}:even"],
        "optimizer": {"lr": 1e-5},
        "train": {"iterations": 2, "micro_batch": 4, "sample_batch": 8, "ema": None},
        "eval": {"every": 0, "weights": "live"},
        "out": str(scratch / "run"),
    }
    for key, value in options.get("changes", {}).items():
        section, _, last = key.partition(".")
        values[section][last] = value
    return values


def iterations(options: Mapping[str, Any], device: str, scratch: Path, tiny: bool) -> dict[str, Any]:
    """The second of two iterations: seconds of its phases, samples a second, the peak of both, and what rounding does
    to the ratio before the first update."""
    from flowrl.config import Config
    from flowrl.devices import in_use, peak_allocated, reset_peaks
    from flowrl.parts.diagnostics import DEVIATION, OUTSIDE
    from flowrl.runtime.timing import PhaseTimer
    from flowrl.session import open_session
    from flowrl.startup.preflight import check_run
    from flowrl.train import iterate

    session, timer = open_session(check_run(Config.of(settings(options, device, scratch, tiny)))), PhaseTimer()
    reset_peaks()
    with closing(session.rewards):
        first, _, _ = iterate(session, timer)
        timer.collect()
        metrics, batch, _ = iterate(session, timer)
    times = timer.collect()
    made = len(batch.samples) / times["time/iteration"]
    peak = max((peak_allocated(device) for device in in_use()), default=0)
    return {
        "samples/s": made,
        **{f"{phase} s": times.get(f"time/{phase}", 0.0) for phase in ("sample", "decode", "reward", "update")},
        **({"peak GB": peak / 1e9} if peak else {}),
        "ratio deviation": max(first[DEVIATION], metrics[DEVIATION]),
        "outside clip": metrics.get(OUTSIDE, math.nan),
        "clip share": metrics.get("clip_fraction", math.nan),
    }


def equality(options: Mapping[str, Any], device: str, scratch: Path, tiny: bool) -> dict[str, Any]:
    """A quickstart's first iteration, with 4 groups of 4 (tiny: 2 of 2), on the CPU and on the device."""
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    size = ["data.prompts=2", "data.group=2"] if tiny else ["data.prompts=4", "data.group=4"]
    host, there = (_first(f"{ROOT}/configs/{options['config']}.yaml", size, kind) for kind in ("cpu", device))
    worst, where = 0.0, ""
    for key, value in host["metrics"].items():
        gap = abs(value - there["metrics"][key]) / max(1.0, abs(value))
        if not (math.isnan(value) and math.isnan(there["metrics"][key])) and not gap <= worst:
            worst, where = gap, key
    change = float((host["change"] - there["change"]).norm() / host["change"].norm().clamp(min=1e-30))
    equal = worst <= METRIC_BOUND and change <= CHANGE_BOUND
    said = f"metrics apart by {worst:.1e} ({where or 'none'}), weight changes by {change:.1e} of their norm"
    bounds = f"{METRIC_BOUND:g} and {CHANGE_BOUND:g}"
    return {
        "metrics apart": worst,
        "changes apart": change,
        "equal": equal,
        "note": f"{'equal within' if equal else 'NOT within'} {bounds}: {said}",
    }


def _first(config: str, overrides: list[str], device: str) -> dict[str, Any]:
    """Metrics that are no times, and the change of all weights [P]."""
    import torch

    from flowrl.config import Config
    from flowrl.runtime.timing import PhaseTimer
    from flowrl.session import open_session
    from flowrl.startup.preflight import check_run
    from flowrl.train import iterate

    torch.manual_seed(0)
    loaded = Config.load(config, [*overrides, "train.updates=1", "eval.every=0", f"model.device={device}"])
    session = open_session(check_run(loaded))
    before = [parameter.detach().cpu().clone() for parameter in session.policy.parameters()]
    with closing(session.rewards):
        metrics, _, _ = iterate(session, PhaseTimer())
    after = [parameter.detach().cpu() for parameter in session.policy.parameters()]
    change = torch.cat([(b - a).flatten().double() for a, b in zip(before, after, strict=True)])
    timed = ("time", "memory")
    kept = {k: v for k, v in metrics.items() if not k.startswith(timed) and "seconds" not in k}
    return {"metrics": kept, "change": change}


def against_trl(options: Mapping[str, Any], device: str, scratch: Path, tiny: bool) -> dict[str, Any]:
    """Wall seconds of an iteration of GRPO by both: a Llama of 4 layers, the same prompts, lengths and updates."""
    import json
    import subprocess
    import sys

    missing = [name for name in ("trl", "datasets") if importlib.util.find_spec(name) is None]
    if missing:
        return {"skipped": f"not measured: {' and '.join(missing)} not installed"}
    where = "cpu" if device == "fakegpu" else device
    found = {}
    for side in ("trl", "flowrl"):
        command = [sys.executable, str(ROOT / "benchmarks/trl_speed.py"), "--side", side, "--device", where]
        command += ["--only", "64 tokens" if tiny else "32 completions of 64 tokens"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
        if done.returncode:
            raise RuntimeError(f"{side}: {done.stderr[-300:]}")
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        found[side] = json.loads(lines[-1])["wall"]
    return {"TRL s": found["trl"], "flowrl s": found["flowrl"], "flowrl / TRL": found["flowrl"] / found["trl"]}

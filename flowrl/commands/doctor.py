"""Is this machine fit for training, and this config fit for this machine?"""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch

from flowrl.commands.trial import Finding, open_trial, try_iteration
from flowrl.config import Config
from flowrl.devices import accelerators
from flowrl.errors import UserError, counted, install_command
from flowrl.models import check_parity
from flowrl.records import machine
from flowrl.runtime.out_of_memory import explain_out_of_memory
from flowrl.startup.doubts import doubts
from flowrl.startup.memory import estimate, size
from flowrl.startup.preflight import CheckedRun, check_run
from flowrl.startup.shortage import shortage

EXTRAS = {
    "rewards": ("rapidocr", "onnxruntime", "rapidfuzz"),
    "text": ("math_verify", "jsonschema"),
    "data": ("datasets", "pyarrow"),
    "server": ("fastapi", "uvicorn", "httpx"),
    "tracking": ("tensorboard", "wandb"),
    "ray": ("ray",),
    "quantize": ("bitsandbytes",),
    "optimizers": ("prodigyopt",),
    "vllm": ("vllm",),
    "xformers": ("xformers",),
    "control": ("gymnasium", "mujoco", "imageio"),
}
"""Modules of each extra; a test compares them with pyproject.toml."""
GIB = 2**30
SCARCE_GIB = 5.0
"""Less free disk than this is reported."""
NAMED = 8
"""Releases to name."""


def check_machine(folder: Path) -> list[Finding]:
    """Versions, threads, devices, optional packages and disk space, independent of any config."""
    versions = machine.versions()
    missing = [name for name, version in versions.items() if version is None]
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    free, cores = shutil.disk_usage(_existing(folder)).free / GIB, counted(os.cpu_count() or 1, "cores")
    return [
        Finding("packages", "bad" if missing else "ok", f"missing: {', '.join(missing)}" if missing else found),
        _combination(),
        _extras(),
        Finding(
            "cpu",
            "ok",
            f"{cores}, torch uses {counted(torch.get_num_threads(), 'threads')}",
        ),
        *_devices(),
        Finding("disk", "note" if free < SCARCE_GIB else "ok", f"{free:.1f} GiB free for {folder}"),
    ]


def _combination() -> Finding:
    """Whether the releases are those that were tested together."""
    bad = machine.refused()
    if bad:
        listed = ", ".join(f"{name} {mine} (needed: {bounds})" for name, (mine, bounds) in bad.items())
        return Finding("releases", "bad", f"flowrl does not work with {listed}: {install_command(constrained=True)}")
    odd = machine.untested()
    if not odd:
        return Finding("releases", "ok", "those that flowrl was tested with")
    pairs = [f"{name} {mine} (tested: {theirs})" for name, (mine, theirs) in odd.items()]
    listed = ", ".join(pairs[:NAMED]) + (f" and {len(pairs) - NAMED} more" if len(pairs) > NAMED else "")
    return Finding(
        "releases", "note", f"not tested together: {listed}; for the tested ones: {install_command(constrained=True)}"
    )


def _extras() -> Finding:
    lacking = {name: [m for m in modules if not importlib.util.find_spec(m)] for name, modules in EXTRAS.items()}
    whole = [name for name, modules in lacking.items() if not modules]
    parts = [f"{name} ({', '.join(modules)})" for name, modules in lacking.items() if modules]
    missing = f"; not: {', '.join(parts)}, each added with {install_command('NAME')}" if parts else ""
    return Finding("extras", "ok", f"installed: {', '.join(whole) or 'none'}{missing}")


def check_config(config: Config) -> Iterator[Finding]:
    """A trial of everything a run does, through its first update. Stops at the first thing that fails."""
    try:
        plan = check_run(config)
        yield Finding("config", "ok", f"{config.name}: {plan.workload.samples} samples per iteration")
        yield from (Finding("config", "note", sentence) for sentence in doubts(plan))
        memory = _memory(plan)
        yield memory
        if memory.state == "bad":
            return  # trying might end this process
        start = time.perf_counter()
        with explain_out_of_memory(config, "load"):
            session = open_trial(plan)
        policy = session.policy
        trained = sum(parameter.numel() for parameter in policy.parameters())
        loaded = f"{config.model.path} in {time.perf_counter() - start:.1f} s, {trained:,} trained parameters"
        yield Finding("model", "ok", loaded)
        described, *notes = session.notes
        yield Finding("trained", "ok", described)
        yield from (Finding("model", "note", sentence) for sentence in notes)
        with explain_out_of_memory(config, "sample"):
            deviation = check_parity(policy)
        equal = (
            "our sampler equals the pipeline" if plan.algorithm.family == "diffusion" else "a batch equals single rows"
        )
        yield Finding("parity", "ok", f"{equal} within {deviation:.1e}")
        with closing(session.rewards):
            yield from try_iteration(session, plan)
    except UserError as error:
        yield Finding("stopped", "bad", str(error))


def _memory(plan: CheckedRun) -> Finding:
    found = estimate(plan.config, plan.algorithm, plan.workload)
    if isinstance(found, str):
        return Finding("memory", "note", found)
    short = shortage(found, plan.config)
    if short is not None:
        return Finding("memory", "bad" if short.lacking else "note", short.sentence)
    name, phase = max(found.phases.items(), key=lambda item: (item[1].device, item[1].host))
    where = f"{size(phase.device)} of the device" if phase.device else f"{size(phase.host)} of the host"
    return Finding("memory", "ok", f"about {where} at the peak, in the phase {name}; lower: {phase.keys}")


def _devices() -> list[Finding]:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        listed = ", ".join(f"{p.name} ({p.total_memory / GIB:.0f} GiB)" for p in names)
        several = f"; flowrl train uses one, torchrun --nproc-per-node {len(names)} -m flowrl train CONFIG all"
        return [Finding("gpu", "ok", listed + (several if len(names) > 1 else ""))]
    if accelerators():
        return [Finding("gpu", "ok", ", ".join(accelerators()))]
    if shutil.which("nvidia-smi"):
        why = (
            f"its driver is too old for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else "it was built without CUDA"
        )
        return [Finding("gpu", "note", f"none that torch {torch.__version__} sees, although nvidia-smi is here: {why}")]
    return [Finding("gpu", "note", "none: fine for the embedded worlds, too slow for large models")]


def _existing(folder: Path) -> Path:
    """The nearest folder above that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())

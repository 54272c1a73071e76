"""What `flowrl train --dry-run` tells of a run; the loop itself is `flowrl.train`."""

from __future__ import annotations

from pathlib import Path

from flowrl.commands.algorithms import part_text, parts_of
from flowrl.config import Config
from flowrl.config.teacher import every_teacher
from flowrl.models.lora_preview import preview_adapter
from flowrl.startup.memory import Estimate, estimate
from flowrl.startup.preflight import CheckedRun
from flowrl.startup.shortage import shortage


def planned(plan: CheckedRun, file: Path) -> list[tuple[str, str]]:
    """``(label, text)`` of a checked run: where it writes, how many samples it makes, what is trained, its parts."""
    config, algorithm = plan.config, plan.algorithm
    options = config.model.arguments(algorithm.family).get("lora")
    adapter = preview_adapter(config.model.path, algorithm.family, options)
    memory = estimate(config, algorithm, plan.workload)
    return [
        ("run", config.name),
        ("directory", str(config.directory)),
        ("config", str(file)),
        *plan.workload.lines(),
        *([("trained", adapter)] if adapter else []),
        *_teachers(config),
        *_memory(config, memory),
        *((slot, part_text(part)) for slot, part in parts_of(algorithm).items()),
    ]


def _teachers(config: Config) -> list[tuple[str, str]]:
    """Who teaches, and what is held for it."""
    found = []
    for key, _, member in every_teacher(config.teachers):
        what = " with ".join(name for name in (member.path or config.model.path, member.adapter) if name)
        own = member.is_peer or config.model.full
        held = "a model of its own, which the estimate of memory leaves out" if own else "a weight set"
        found.append((key, f"{what}: {held}"))
    return found


def _memory(config: Config, found: Estimate | str) -> list[tuple[str, str]]:
    """The estimate, and whether this machine has less."""
    if isinstance(found, str):
        return [("memory", found)]
    short = shortage(found, config)
    return found.lines() + ([] if short is None else [("too little memory" if short.lacking else "", short.sentence)])

"""Keys and parts of configs that have another name today, or none: a new config that has the old one is refused with a
sentence that says the new one; the config of a run that an older release wrote is translated."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

KEYS: dict[str, str] = {
    "eval.steps": "eval.sampling_steps",
    "log.images": "log.samples",
    "log.every_images": "log.samples_every",
    "model.vllm.memory": "model.vllm.gpu_memory_utilization",
    "algorithm.credit": "algorithm.token_advantage",
    "algorithm.emphasis": "algorithm.loss_weight",
    "algorithm.followers": "algorithm.ema_weights",
    "algorithm.drop_cut": "algorithm.mask_truncated_completions",
    "algorithm.estimator.plan": "algorithm.estimator.views",
}
"""Old key -> new key, both in full and without the numbers of lists: ``"algorithm.credit":
"algorithm.token_advantage"``, ``"rewards.timeout": "rewards.time_limit"``. What stands before the last dot of an old
key is written as it is called today. An old key may be no key of today's at the same place (``tests`` look)."""
REMOVED: dict[str, str] = {}
"""Key that is gone -> what to do instead, as the end of a sentence: ``"set train.ema instead"``."""
PARTS: dict[str, str] = {
    "ema_weights.Follower": "Ema",
    "selection.WithCredit": "NonzeroAdvantage",
    "selection.Everything": "AllSamples",
    "advantage.Plain": "RawReward",
    "advantage.AgainstGreedy": "GreedyBaseline",
    "advantage.BestAgainstWorst": "BestVersusWorst",
    "views.Trace": "Trajectory",
}
"""Slot (as it is called today) and old class name of a part -> new name; ``algorithm.`` and the old name of a preset.
Configs write the names of parts in either style, ``WithCredit`` or ``with_credit``."""


def sentence(path: str) -> str | None:
    """What became of an old key, or None if it never was one. ``path`` is the key in full, numbers of lists or not."""
    key = ".".join(part for part in path.split(".") if not part.isdigit())
    if key in KEYS:
        return f"{path} was renamed: write {_like(path, KEYS[key])}"
    if key in REMOVED:
        return f"{path} was removed: {REMOVED[key]}"
    return None


def new_name(slot: str, name: str) -> str | None:
    """What a part of that name (of the slot ``algorithm``: a preset) is called today, in the style in which ``name`` is
    written; None if it is no old name."""
    new = next((new for old, new in PARTS.items() if plain(old) == plain(f"{slot}.{name}")), None)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", new).lower() if new and name.islower() else new


def plain(name: str) -> str:
    """A class name without its style: that of ``GroupCentred`` and of ``group_centred``."""
    return name.replace("_", "").lower()


def translated(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config that an older release wrote, with today's names. A key that is gone is left out with a warning; where
    old and new are both there, the new one counts."""
    root = deepcopy(dict(values))
    _translate(root, "", root)
    return root


def _translate(here: object, path: str, root: dict[str, Any]) -> None:
    slot = path.rpartition(".")[2]
    if isinstance(here, list):
        for index, item in enumerate(here):
            here[index] = _translated_name(slot, item)
            _translate(item, path, root)
    if not isinstance(here, dict):
        return
    for key in list(here):
        _move(here, key, path, root)
    for key, value in list(here.items()):
        inside = f"{path}.{key}".lstrip(".")
        here[key] = _translated_name(slot if key == "use" else key, value)
        _translate(value, inside, root)


def _translated_name(slot: str, value: object) -> object:
    return (isinstance(value, str) and new_name(slot, value)) or value


def _move(here: dict[str, Any], key: str, path: str, root: dict[str, Any]) -> None:
    """Give one entry of a mapping its new name or place, or remove it."""
    old = f"{path}.{key}".lstrip(".")
    if old in REMOVED:
        value = here.pop(key)
        warnings.warn(f"{old}={value!r} was removed and is not used: {REMOVED[old]}", stacklevel=5)
    if old not in KEYS:
        return
    value, new = here.pop(key), KEYS[old]
    parent, _, name = new.rpartition(".")
    place = here if parent == path else _section(root, parent.split(".") if parent else [])
    place.setdefault(name, value)


def _section(root: dict[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    here = root
    for part in parts:
        inner = here.get(part)
        here[part] = inner if isinstance(inner, dict) else {} if inner is None else {"use": inner}
        here = here[part]
    return here


def _like(path: str, new: str) -> str:
    """The new key with the list numbers of the old one, where both stand in the same section."""
    parts = path.split(".")
    head, tail = parts[:-1], new.split(".")
    plain = [part for part in head if not part.isdigit()]
    return ".".join([*head, tail[-1]]) if plain == tail[:-1] else new

"""Several runs in one config, each of which starts from the weights of the one before: ``stages``.

```yaml
name: warm
model: {path: countdown}
stages:
  - {name: sft, algorithm: {use: sft, length: 14}, data: {train: solved.jsonl, test: null}, train: {iterations: 20}}
  - {name: rl, algorithm: grpo, data: {train: "countdown:train"}, rewards: [countdown], train: {iterations: 50}}
```
A stage has the keys of a config, which go over the common ones: sections are merged key by key, everything else takes
the place of what was there, and so does an ``algorithm`` that names a preset.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from flowrl.config.overrides import apply_overrides, read_overrides
from flowrl.config.schema import STAGES, Config
from flowrl.config.yaml_text import read_config
from flowrl.errors import UserError, short_repr

NAME = re.compile(r"\w[\w.\-]*")
SAME = ("path", "adapter", "full", "lora")
"""Keys of ``model`` that a stage may not have of its own: the weights of one are those that the next begins with."""


@dataclass(frozen=True)
class Stage:
    """One of the runs."""

    name: str
    config: Config
    """In ``out/name`` of the whole; of a later stage as if it started where the first one does."""

    def after(self, **start: str) -> Self:
        """The stage with keys of ``model`` that say where it starts."""
        return replace(
            self, config=self.config.model_copy(update={"model": self.config.model.model_copy(update=start)})
        )


def load_stages(path: Path, overrides: Sequence[str] = ()) -> list[Stage] | None:
    """The stages of a config file with overrides (``stages.0.train.iterations=5`` is one of the first stage); ``None``
    where it has none. Raises `UserError`."""
    found = read_overrides(overrides)
    values = apply_overrides(read_config(path), found)
    return stages_of(values, str(path), {override.key: override.place for override in found})


def stages_of(
    values: Mapping[str, Any], source: str = "config", overridden: Mapping[str, str] | None = None
) -> list[Stage] | None:
    """The stages of plain data, as `load_stages`. Raises `UserError` that names stage and key."""
    if STAGES not in values:
        return None
    common = {key: value for key, value in values.items() if key != STAGES}
    given = values[STAGES]
    if not isinstance(given, list) or not given or not all(isinstance(stage, dict) for stage in given):
        raise UserError(f"{source}: stages should be a list of mappings, a run each, found {short_repr(given)}")
    name = common.get("name")
    found: list[Stage] = []
    for number, stage in enumerate(given):
        own = stage.get("name", f"{number + 1}_{_preset(stage, common)}")
        where = f"{source}: stages.{number} ({own})"
        if not isinstance(own, str) or not NAME.fullmatch(own):
            raise UserError(f"{source}: stages.{number}.name={short_repr(own)} names a folder: letters, digits, . - _")
        if any(own == other.name for other in found):
            raise UserError(f"{source}: two stages are called {own}; give each a name of its own")
        _check_keys(stage, where)
        merged = _merged(common, {key: value for key, value in stage.items() if key != "name"}, ())
        whole = Path(common["out"]) if isinstance(common.get("out"), str) else Path("runs") / str(name)
        merged |= {"name": f"{name}-{own}" if name else name, "out": str(whole / own)}
        places = {key.removeprefix(f"{STAGES}.{number}."): place for key, place in (overridden or {}).items()}
        found.append(Stage(own, Config.of(merged, where, places)))
    return found


def _preset(stage: Mapping[str, Any], common: Mapping[str, Any]) -> str:
    """What the algorithm of a stage is called, for its folder."""
    spec = stage.get("algorithm", common.get("algorithm"))
    use = spec.get("use", _preset(common, {})) if isinstance(spec, dict) else spec
    return re.sub(r"[^\w\-]+", "_", str(use)) if use else "run"


def _check_keys(stage: Mapping[str, Any], where: str) -> None:
    for key in ("out", STAGES):
        if key in stage:
            raise UserError(f"{where}: a stage has no {key}; its folder is that of the whole, and its name")
    model = stage.get("model")
    given = model if isinstance(model, dict) else {}
    for key in SAME:
        if key in given:
            raise UserError(
                f"{where}: model.{key} is the same in all stages, as each goes on with the weights of the one before; "
                "give it once, beside stages"
            )


def _merged(common: Mapping[str, Any], stage: Mapping[str, Any], above: tuple[str, ...]) -> dict[str, Any]:
    """Common values with those of a stage over them."""
    out = deepcopy(dict(common))
    for key, value in stage.items():
        new_part = (*above, key)[0] == "algorithm" and isinstance(value, dict) and "use" in value
        if isinstance(value, dict) and isinstance(out.get(key), dict) and not new_part:
            out[key] = _merged(out[key], value, (*above, key))
        else:
            out[key] = deepcopy(value)
    return out

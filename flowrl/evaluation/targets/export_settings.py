"""What an export says of the run it came from: how the model was called and sampled there.

Every export of a run's policy has ``flowrl.json`` beside the weights, which other tools pass over; `flowrl sample` and
`flowrl eval` of the export then make samples as the run's evaluation did. Nothing in it is trusted with code or paths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flowrl.config.model import FAMILY_KEYS, TRAINED_WITH
from flowrl.errors import UserError, shorten
from flowrl.evaluation.decoding import Decoding, sampler_of_algorithm
from flowrl.models.export_folder import ORIGIN_FILE
from flowrl.renamed import translated
from flowrl.types import Sampler


@dataclass(frozen=True)
class ExportSettings:
    """The settings of a run that an export remembers."""

    algorithm: str | Mapping[str, Any]
    """As in the config."""
    family: str
    decoding: Decoding
    """Of the run's evaluation."""
    load: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``load_policy``: ``dtype``, and of language models the chat settings."""
    call: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the pipeline's call, such as height, width and guidance_scale."""

    def sampler(self, changes: Decoding) -> Sampler:
        """The sampler of the run's evaluation, changed as asked. Raises UserError for a change that it cannot make."""
        if changes.guidance is None:
            return sampler_of_algorithm(self.algorithm, self.decoding, changes, trusted=False)
        plain = replace(self.decoding, guidance=None), replace(changes, guidance=None)
        sampler: Any = sampler_of_algorithm(self.algorithm, *plain, trusted=False)
        return replace(sampler, guidance=None) if self.family == "diffusion" else sampler

    def pipeline_call(self, changes: Decoding, call: Mapping[str, Any] | None) -> dict[str, Any]:
        """The arguments of the pipeline's call, changed as asked: a scale of guidance is one of them, because a model
        whose guidance is an input has no other place for it, and a pipeline called without guidance loads no
        unconditional branch."""
        key = "true_cfg_scale" if "true_cfg_scale" in self.call else "guidance_scale"
        guided = {} if changes.guidance is None else {key: changes.guidance}
        return {**self.call, **guided, **(call or {})}


def read_export_settings(path: Path) -> ExportSettings | None:
    """Of an export's folder, or a file in it; None where nothing is said. Raises UserError for a damaged file."""
    file = (path if path.is_dir() else path.parent) / ORIGIN_FILE
    if not path.exists() or not file.is_file():
        return None
    try:
        facts = translated(json.loads(file.read_text(encoding="utf-8")))
        family, model, evaluation = facts["family"], dict(facts["model"]), facts["eval"]
        allowed = {"dtype", "quantize", *FAMILY_KEYS[family]} - set(TRAINED_WITH)
        load = {key: value for key, value in model.items() if key in allowed}
        call = dict(load.pop("call", {}))
        steps, guidance, temperature = (evaluation[key] for key in ("sampling_steps", "guidance", "temperature"))
        decoding = Decoding(steps, guidance, temperature=temperature)
        settings = ExportSettings(facts["algorithm"], family, decoding, load, call)
        settings.sampler(Decoding())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        words = shorten(" ".join(str(error).split()), 200)
        raise UserError(
            f"{file} is not one that this flowrl wrote ({words}); delete it to sample as the model does by itself"
        ) from error
    return settings

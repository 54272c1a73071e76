"""Signatures of other frameworks that score one sample at a time or take pictures: verl and Flow-Factory.

Facts from verl's `compute_score` (docs, "Implement Reward Function for Dataset") and Flow-Factory's
`rewards/abc.py`; flow_grpo's and TRL's rewards are calls by argument name and need no code of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from flowrl.errors import UserError
from flowrl.media import picture
from flowrl.score.async_calls import wait_for, wait_for_all
from flowrl.score.columns import flatten_columns
from flowrl.score.reward_function import AdaptedReward, takes_anything
from flowrl.score.samples import split_by_group
from flowrl.types import Samples

VERL = ("solution_str", "solution_image")
"""Parameters by which verl's and verl-omni's functions are known."""


class VerlReward(AdaptedReward):
    """``compute_score(data_source, solution_str, ground_truth, extra_info, **) -> float | {"score": float, ...}``, one
    sample a call, plain or async; verl-omni's takes ``solution_image`` [3, H, W] in [0, 1].

    ``ground_truth`` is the prompt's column of that name, or that key of its column ``reward_model`` (verl's parquet;
    `flowrl.score.columns.flatten_columns`).
    """

    grouped = False
    style = "verl"

    def __init__(self, function: Callable[..., Any], name: str, settings: Mapping[str, Any]) -> None:
        super().__init__(function, name)
        self.settings = dict(settings)

    def __call__(self, samples: Samples, group: Tensor | None = None) -> list[float | None]:
        results = [self.function(**self._arguments(samples, row)) for row in range(len(samples))]
        return [self._score(result) for result in wait_for_all(results)]

    def _arguments(self, samples: Samples, row: int) -> dict[str, Any]:
        known = {"extra_info": {}, **flatten_columns(samples.prompts[row].columns)}
        if samples.completions is not None:
            known["solution_str"] = samples.completions[row]
        if samples.images is not None:
            known["solution_image"] = samples.images[row]
        for key in VERL:
            if key in self.parameters and key not in known:
                made = "images" if samples.completions is None else "completions"
                raise UserError(f"reward {self.name!r} (verl signature) scores {key}, but the model makes {made}")
        found = {}
        for key, parameter in self.parameters.items():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or key in self.settings:
                continue
            if key in known:
                found[key] = known[key]
            elif parameter.default is parameter.empty:
                raise UserError(f"reward {self.name!r} (verl signature) needs the column {key!r}, which a prompt lacks")
        return {**found, **self.settings}

    def _score(self, result: object) -> float | None:
        if isinstance(result, Mapping):
            if "score" not in result:
                raise UserError(f"reward {self.name!r} should return a number or a dict with 'score', found {result!r}")
            result = result["score"]
        elif isinstance(result, Sequence) and not isinstance(result, str):
            result = result[0]
        return None if result is None else float(result)  # type: ignore[arg-type]


class FlowFactoryReward(AdaptedReward):
    """An instance of ``PointwiseRewardModel`` or ``GroupwiseRewardModel``: ``model(prompt=[...], image=[...], ...)``
    with PIL pictures (or tensors where it says ``use_tensor_inputs``), which answers with an object that has
    ``rewards``. A groupwise model sees one group a call."""

    style = "Flow-Factory"

    def __init__(self, model: Callable[..., Any], name: str) -> None:
        super().__init__(model, name)
        self.grouped = any(kind.__name__ == "GroupwiseRewardModel" for kind in inspect.getmro(type(model)))

    def __call__(self, samples: Samples, group: Tensor | None = None) -> object:
        if not self.grouped:
            return self._ask(samples, list(range(len(samples))))
        assert group is not None
        scores = torch.zeros(len(samples), dtype=torch.float64)
        for rows in split_by_group(group, range(len(samples))):
            scores[rows] = torch.as_tensor(self._ask(samples, rows), dtype=torch.float64).cpu()
        return scores

    def _ask(self, samples: Samples, rows: list[int]) -> Any:
        prompts = [samples.prompts[row] for row in rows]
        names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
        values: dict[str, Any] = {name: [prompt.columns.get(name) for prompt in prompts] for name in names}
        values["prompt"] = [prompt.text for prompt in prompts]
        if samples.images is not None:
            media = "image" if samples.images.ndim == 4 else "video"
            values[media] = [self._medium(samples.images[row]) for row in rows]
        wanted = set(values) if takes_anything(self.parameters) else set(values) & set(self.parameters)
        for key in getattr(self.function, "required_fields", ()):
            if key not in values:
                raise UserError(f"reward {self.name!r} (Flow-Factory signature) needs {key!r}; there is no such column")
        answer = wait_for(self.function(**{key: values[key] for key in values if key in wanted}))
        return answer.rewards if "rewards" in dir(answer) else answer

    def _medium(self, medium: Tensor) -> Tensor | Image | list[Image]:
        """A picture [3, H, W] or the frames of a video [F, 3, H, W] as the model wants them."""
        if getattr(self.function, "use_tensor_inputs", False):
            return medium
        return picture(medium) if medium.ndim == 3 else [picture(frame) for frame in medium]


def is_flow_factory(found: object) -> bool:
    """Whether a class is one of Flow-Factory's reward models: it declares its fields, or takes ``prompt`` and
    ``image``."""
    call = vars(found).get("__call__") if inspect.isclass(found) else None
    taken = inspect.signature(call).parameters if call is not None else {}
    return inspect.isclass(found) and ("required_fields" in dir(found) or {"prompt", "image"} <= set(taken))


def build_flow_factory(
    found: Callable[..., Any],
    name: str,
    options: Mapping[str, Any],
    device: str,
    dtype: torch.dtype,
    batch_size: int | None,
) -> FlowFactoryReward:
    """Construct ``found(config, accelerator)``. Both are plain records of what one process knows: ``config`` has
    device, dtype, batch_size, the options as attributes and as ``extra_kwargs``."""
    config = SimpleNamespace(
        name=name,
        device=torch.device(device),
        dtype=dtype,
        batch_size=batch_size or 16,  # Flow-Factory's own default
        extra_kwargs=dict(options),
        **options,
    )
    accelerator = SimpleNamespace(
        device=torch.device(device),
        process_index=0,
        local_process_index=0,
        num_processes=1,
        is_main_process=True,
        is_local_main_process=True,
        wait_for_everyone=lambda: None,
    )
    return FlowFactoryReward(found(config, accelerator), name)

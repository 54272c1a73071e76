"""Running a pipeline's own ``__call__`` with its denoiser and its scheduler watched, or replaced."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from flowrl.errors import UserError, first_line, is_out_of_memory
from flowrl.models.diffusion.call_arguments import batch_call, check_call, guidance_advice, typed_arguments

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

NETWORKS = ("transformer", "unet")
"""Where diffusers pipelines keep their denoiser."""

NEUTRAL_PROMPT = "a picture"
"""Prompt of runs whose outcome does not depend on the text."""


@dataclass
class DenoiserCall:
    """One call of the denoiser."""

    inputs: dict[str, Any]
    """By parameter name, positional arguments included."""
    prediction: Tensor | None = None
    """What the pipeline was given back, [k * n, ...]."""


@dataclass
class RecordedStep:
    """What happened between two scheduler steps."""

    calls: list[DenoiserCall]
    model_output: Tensor
    timestep: float
    sample: Tensor
    prev_sample: Tensor


@dataclass
class RecordedRun:
    """A watched run of a pipeline on ``n`` prompts."""

    steps: list[RecordedStep] = field(default_factory=list)
    open_calls: list[DenoiserCall] = field(default_factory=list)
    """Calls of the step in which the run was stopped."""
    timesteps: Tensor | None = None
    sigmas: Tensor | None = None
    init_noise_sigma: float = 1.0
    media: Tensor | None = None
    """The pipeline's output where it ran to its end."""


class _StopRun(Exception):  # noqa: N818  (it is no error)
    """Ends a watched run once everything needed has been seen."""


def denoiser_name(pipeline: DiffusionPipeline) -> str:
    """The attribute that holds the denoiser; a pipeline with none, or with two that `flowrl.models.diffusion.stages`
    has not joined, is refused."""
    found = [n for n in NETWORKS if isinstance(pipeline.components.get(n), nn.Module)]
    name = type(pipeline).__name__
    if not found or not hasattr(pipeline, "scheduler"):
        raise UserError(
            f"{name} has no transformer or unet with a scheduler, so it is no text-to-image or text-to-video pipeline"
        )
    second = pipeline.components.get(f"{found[0]}_2")
    if isinstance(second, nn.Module) and second is not pipeline.components[found[0]]:  # they were not joined
        raise UserError(f"{name} splits its steps between two denoisers ({found[0]}, {found[0]}_2); use load_policy")
    return found[0]


class Recorder:
    """Runs ``pipeline`` with the user's extra ``call`` arguments, watching its denoiser and its scheduler."""

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        call: Mapping[str, Any],
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.pipeline = pipeline
        self.precision = precision
        """Context the denoiser computes in."""
        self.release = release
        """Sends parts that wait on the host, and were fetched, back there."""
        self.network_name = denoiser_name(pipeline)
        self.network: nn.Module = getattr(pipeline, self.network_name)
        self._signature = inspect.signature(type(pipeline).__call__)
        self.parameters: Mapping[str, inspect.Parameter] = self._signature.parameters
        """Of the pipeline's call."""
        check_call(call, self._signature.parameters, type(pipeline).__name__)
        self.call = typed_arguments(call, self._signature.parameters)
        own = getattr(self.network, "call_signature", None)  # of one that stands for others
        self._network_signature: inspect.Signature = own or inspect.signature(self.network.forward)
        self.network_takes_return_dict = "return_dict" in self._network_signature.parameters
        self._texts: dict[int, Any] = {}
        self._form: Callable[[Tensor], Any] = lambda prediction: (prediction,)

    @property
    def guidance_advice(self) -> str:
        """What to do where guidance is asked of a pipeline that runs one branch."""
        embedded = "guidance" in self._network_signature.parameters
        return guidance_advice(self._signature.parameters, embedded)

    def record(
        self,
        prompts: Sequence[str],
        steps: int,
        *,
        outputs: Callable[[Tensor], Tensor] | None = None,
        step: Callable[..., Tensor] | None = None,
        output_type: str = "latent",
        seed: int = 0,
    ) -> RecordedRun:
        """A whole run of ``steps`` steps. ``outputs`` may put other numbers in place of the denoiser's prediction,
        ``step(model_output, index, sample)`` another rule in place of the scheduler's."""
        trace = RecordedRun()

        def forward(real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            call = DenoiserCall(_snapshot(self._bind(args, kwargs)))
            with self.precision():
                result = real(*args, **kwargs)
            prediction = prediction_of(result)
            self._form = form_of(result)
            if outputs is not None:
                prediction = outputs(prediction)
                result = self._form(prediction)
            call.prediction = prediction
            trace.open_calls.append(call)
            return result

        def advance(
            real: Callable[..., Any], model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any
        ) -> Any:
            index = len(trace.steps)
            before = sample.clone()
            if step is None:
                result = real(model_output, timestep, sample, *args, **kwargs)
            else:
                moved = step(model_output, index, sample)
                result = _StepResult(moved) if kwargs.get("return_dict", True) else (moved, moved)
            self._read_schedule(trace)
            moved = result[0]
            count = float(torch.as_tensor(timestep).flatten()[0])  # some hand one on for every sample
            trace.steps.append(RecordedStep(trace.open_calls, model_output.clone(), count, before, moved.clone()))
            trace.open_calls = []
            return result

        with self._intercepted(forward, advance):
            output = self._run(prompts, steps, output_type, seed)
        trace.media = _media(output)
        return trace

    def calls(
        self,
        prompts: Sequence[str],
        count: int,
        blank: Callable[[dict[str, Any]], Tensor],
        given: Mapping[str, Any] | None = None,
    ) -> list[DenoiserCall]:
        """The inputs of the ``count`` denoiser calls of the first step. None is computed: ``blank(inputs)`` takes the
        place of a prediction. ``given``: arguments that take the place of those of `call`."""
        seen: list[DenoiserCall] = []

        def forward(real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            seen.append(DenoiserCall(self._bind(args, kwargs)))
            if len(seen) == count:
                raise _StopRun
            return self._form(blank(seen[-1].inputs))

        def advance(real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            raise _StopRun

        with self._intercepted(forward, advance, computes=False):
            self._run(prompts, 2, "latent", 0, given=given)
        return seen

    def schedule(self, steps: int) -> RecordedRun:
        """Timesteps and sigmas as the pipeline itself sets them for ``steps`` steps."""
        trace = RecordedRun()

        def forward(real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            self._read_schedule(trace)
            raise _StopRun

        with self._intercepted(forward, forward, computes=False), self._cached_text(1):
            self._run([NEUTRAL_PROMPT], steps, "latent", 0)
        return trace

    def finish(
        self, final: Tensor, blank: Callable[[dict[str, Any]], Tensor], prompts: int, graph: bool = False
    ) -> Tensor:
        """Media [N, ...] the pipeline makes of ``final`` latents [N, ...]: its own code after the last step of a run
        for so many ``prompts``, with ``blank(inputs)`` in place of the denoiser's prediction. Text is encoded once per
        number of prompts. What decodes stays on the device until `release`. With ``graph`` they have a gradient."""

        def forward(real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return self._form(blank(self._bind(args, kwargs)))

        def advance(real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return _StepResult(final) if kwargs.get("return_dict", True) else (final, final)

        with self._intercepted(forward, advance, computes=False), self._cached_text(prompts):
            output = self._run([NEUTRAL_PROMPT] * prompts, 2, "pt", 0, release=False, graph=graph)
        media = _media(output)
        if media is None:
            raise UserError(
                f"{type(self.pipeline).__name__} does not return its images as tensors for output_type='pt'"
            )
        return media

    def _run(
        self,
        prompts: Sequence[str],
        steps: int,
        output_type: str,
        seed: int,
        release: bool = True,
        graph: bool = False,
        given: Mapping[str, Any] | None = None,
    ) -> Any:
        arguments = batch_call(self.call, len(prompts)) | dict(given or {})
        if not any("prompt_embeds" in key and not key.startswith("negative") for key in arguments):
            arguments["prompt"] = list(prompts)
        arguments["num_inference_steps"] = steps
        arguments["output_type"] = output_type
        if steps != 2 and "intermediate_timesteps" in self._signature.parameters:
            arguments["intermediate_timesteps"] = None  # of SANA-Sprint, which has a second time for two steps alone
        if "generator" in self._signature.parameters:
            arguments["generator"] = torch.Generator("cpu").manual_seed(seed)
        known, call = self._signature.parameters, cast(Callable[..., Any], self.pipeline)
        if graph:  # diffusers decorates its pipelines with no_grad; the function inside is their own code
            call = functools.partial(inspect.unwrap(type(self.pipeline).__call__), self.pipeline)
        try:
            with torch.set_grad_enabled(graph):
                return call(**{k: v for k, v in arguments.items() if k in known})
        except _StopRun:
            return None
        except UserError:
            raise
        except Exception as error:  # a pipeline's code raises what it likes for arguments that it cannot take
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"{type(self.pipeline).__name__} itself fails on {len(prompts)} prompts with model.call"
                f" {', '.join(sorted(self.call)) or '(none)'}: {first_line(error)}"
            ) from error
        finally:
            if release:
                self.release()

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        bound = self._network_signature.bind(*args, **kwargs).arguments
        flat = dict(bound)
        for name, parameter in self._network_signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                flat.update(flat.pop(name, {}))
        flat.pop("return_dict", None)
        return flat

    def _read_schedule(self, trace: RecordedRun) -> None:
        scheduler = self.pipeline.scheduler
        trace.timesteps = scheduler.timesteps.detach().cpu().double()
        sigmas = getattr(scheduler, "sigmas", None)
        trace.sigmas = None if sigmas is None else torch.as_tensor(sigmas).detach().cpu().double()
        trace.init_noise_sigma = float(getattr(scheduler, "init_noise_sigma", 1.0))

    @contextmanager
    def _intercepted(
        self, forward: Callable[..., Any], step: Callable[..., Any], computes: bool = True
    ) -> Iterator[None]:
        """Let ``forward`` and ``step`` take the place of the denoiser's and the scheduler's. Unless it ``computes``,
        the denoiser's weights are not needed: FSDP must not gather them, and then not be told that the forward
        ended."""

        def watched(real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if computes:
                self.release()  # the denoiser computes without the encoders beside it
            return forward(real, *args, **kwargs)

        bar = getattr(self.pipeline, "_progress_bar_config", {})
        self.pipeline.set_progress_bar_config(disable=True)
        try:
            alone = nullcontext() if computes else without_hooks(self.network)
            with alone, patched(self.network, "forward", watched), patched(self.pipeline.scheduler, "step", step):
                yield
        finally:
            self.pipeline.set_progress_bar_config(**bar)

    @contextmanager
    def _cached_text(self, count: int) -> Iterator[None]:
        """Text encoders answer from memory for ``count`` empty prompts: decoding does not depend on the text."""
        if not hasattr(self.pipeline, "encode_prompt"):
            yield
            return

        def encode(real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if count not in self._texts:
                if len(self._texts) >= 4:  # full batches, and a few sizes of last batches
                    self._texts.pop(next(iter(self._texts)))
                with torch.no_grad():
                    self._texts[count] = real(*args, **kwargs)
            return self._texts[count]

        with patched(self.pipeline, "encode_prompt", encode):
            yield


@contextmanager
def patched(owner: Any, name: str, substitute: Callable[..., Any]) -> Iterator[None]:
    """``owner.name(...)`` becomes ``substitute(original, ...)``, with the original's signature."""
    original = getattr(owner, name)
    own = owner.__dict__.get(name)
    wrapper = functools.wraps(original)(functools.partial(substitute, original))
    owner.__dict__[name] = wrapper
    try:
        yield
    finally:
        if own is None:
            del owner.__dict__[name]
        else:
            owner.__dict__[name] = own


@contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """Calls of ``module`` run its forward alone."""
    names = ("_forward_pre_hooks", "_forward_hooks")
    kept = {name: module.__dict__[name] for name in names}
    module.__dict__.update({name: type(hooks)() for name, hooks in kept.items()})
    try:
        yield
    finally:
        module.__dict__.update(kept)


def _snapshot(value: Any) -> Any:
    """A copy of nested inputs: some pipelines write the next latents into the same tensor."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _snapshot(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_snapshot(inner) for inner in value)
    return value


def prediction_of(result: Any) -> Tensor:
    """The prediction in a denoiser's output: its first field; a list of samples is stacked."""
    first = result if isinstance(result, Tensor) else result[0]
    return first if isinstance(first, Tensor) else torch.stack(list(first))


def form_of(result: Any) -> Callable[[Tensor], Any]:
    """Wraps a prediction as this network returns its own: bare, in a tuple or an output class; stacked or listed."""
    if isinstance(result, Tensor):
        return lambda prediction: prediction
    unstack: Callable[[Tensor], Any] = (lambda p: p) if isinstance(result[0], Tensor) else list
    if isinstance(result, tuple):
        rest = result[1:]
        return lambda prediction: (unstack(prediction), *rest)
    kind, key = type(result), next(iter(result.keys()))
    return lambda prediction: kind(**{key: unstack(prediction)})


class _StepResult(tuple):
    """Answers like a scheduler's output, whether the pipeline takes ``.prev_sample`` or ``[0]``."""

    def __new__(cls, sample: Tensor) -> _StepResult:
        return super().__new__(cls, (sample, sample))

    @property
    def prev_sample(self) -> Tensor:
        """The sample after the step."""
        return self[0]

    @property
    def pred_original_sample(self) -> Tensor:
        """The clean sample, where a pipeline asks for it."""
        return self[0]


def _media(output: Any) -> Tensor | None:
    if output is None:
        return None
    first = output[0]
    if isinstance(first, list) and first and all(isinstance(v, Tensor) for v in first):
        first = torch.stack(first)
    return first if isinstance(first, Tensor) else None

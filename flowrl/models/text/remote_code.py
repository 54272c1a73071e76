"""Model code that comes with a checkpoint and was written for transformers 4, run by transformers 5.

LLaDA, Dream and LLaDA 2 are such code. Without what is done here they do not load, or load and compute nonsense: rotary
frequencies of uninitialised memory, experts without gradients. Everything is done to the classes and modules of the
remote code alone; transformers itself stays as it is.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.utils import _contextlib

REMOVED_CHECKS = ("is_torch_fx_available",)
"""Questions of ``transformers.utils.import_utils`` that 5 no longer answers; the answer was yes."""


@contextmanager
def patched_transformers() -> Iterator[None]:
    """Open it around ``from_pretrained`` of remote code and `patch_model`.

    The classes are mended between their import and their use: were they imported earlier, transformers would take them
    for the user's own and not copy their files when the model is saved.
    """
    from transformers import dynamic_module_utils
    from transformers.initialization import no_init_weights
    from transformers.utils import import_utils

    original, kernels = dynamic_module_utils.get_class_in_module, torch.backends.cuda.mem_efficient_sdp_enabled()
    missing = [name for name in REMOVED_CHECKS if not hasattr(import_utils, name)]

    @functools.wraps(original)
    def get_class(*args: Any, **kwargs: Any) -> type:
        found = original(*args, **kwargs)
        if is_remote(found):
            _patch_package(found)
        return found

    for name in missing:
        setattr(import_utils, name, lambda: True)
    dynamic_module_utils.get_class_in_module = get_class
    try:
        with no_init_weights():  # code that insists on the CPU would initialise all weights, to be overwritten
            yield
    finally:
        dynamic_module_utils.get_class_in_module = original
        torch.backends.cuda.enable_mem_efficient_sdp(kernels)  # LLaDA's constructor turns it off for everybody
        for name in missing:
            delattr(import_utils, name)


def patch_model(model: nn.Module) -> None:
    """What can only be put right in a loaded model: its constants and its gradients."""
    if is_remote(type(model)):
        _restore_constants(model)
        _restore_gradients(model)


def is_remote(kind: type) -> bool:
    """Whether a class comes with a checkpoint."""
    return kind.__module__.startswith("transformers_modules.")


# ----------------------------------------------------------------------------------------------------------- classes
def _patch_package(kind: type) -> None:
    """Everything that was imported with a class of remote code."""
    package = kind.__module__.rsplit(".", 1)[0] + "."
    for name, module in list(sys.modules.items()):
        if name.startswith(package):
            patch_module(module)


def patch_module(module: types.ModuleType) -> None:
    """What a module of remote code defines and imported, in place."""
    from transformers import PreTrainedModel
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if getattr(module, "ROPE_INIT_FUNCTIONS", None) is ROPE_INIT_FUNCTIONS:
        # not in transformers' own table, where it would go before the functions of native models
        module.ROPE_INIT_FUNCTIONS = {"default": plain_frequencies, **ROPE_INIT_FUNCTIONS}  # pyright: ignore
    for kind in list(vars(module).values()):
        if isinstance(kind, type) and issubclass(kind, PreTrainedModel) and kind.__module__ == module.__name__:
            _patch_class(kind)


def plain_frequencies(config: Any, device: Any = None, seq_len: int | None = None, **_: Any) -> tuple[Tensor, float]:
    """``(inverse frequencies [d/2], 1)`` of rotary embeddings without scaling: ``base^(-2i/d)``."""
    options = getattr(config, "rope_parameters", None) or {}
    base = options.get("rope_theta") or config.rope_theta
    share = options.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    width = int((getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads) * share)
    return base ** -(torch.arange(0, width, 2, device=device).float() / width), 1.0


def _patch_class(kind: Any) -> None:
    if "from_pretrained" in vars(kind):
        del kind.from_pretrained  # Dream's: only adds settings of its own generation, with an interface of before
    if not hasattr(kind, "all_tied_weights_keys"):
        kind.all_tied_weights_keys = {}  # set by post_init, which LLaDA does not call
    for plan in ("_tp_plan", "_ep_plan"):  # likewise, and read where a model is quantised
        if getattr(kind, plan, {}) is None:
            setattr(kind, plan, {})
    given = inspect.signature(kind.tie_weights).parameters.values()
    if not any(p.name == "missing_keys" or p.kind is p.VAR_KEYWORD for p in given):
        kind.tie_weights = _ignoring_arguments(kind.tie_weights)
    kind.get_expanded_tied_weights_keys = _expanded_ties


def _ignoring_arguments(method: Any) -> Any:
    def call(self: Any, *_: Any, **__: Any) -> Any:
        return method(self)

    return call


def _expanded_ties(self: Any, all_submodels: bool = False) -> dict[str, str]:
    """Tied weights were a list of names; now they are a table that names the weight each is tied to."""
    from transformers import PreTrainedModel

    listed = self._tied_weights_keys
    if isinstance(listed, (list, tuple, set)):
        embeddings = self.get_input_embeddings().weight
        source = next(name for name, parameter in self.named_parameters() if parameter is embeddings)
        self._tied_weights_keys = {name: source for name in listed if name != source}
    return PreTrainedModel.get_expanded_tied_weights_keys(self, all_submodels)


# ------------------------------------------------------------------------------------------------------ loaded models
@torch.no_grad()
def _restore_constants(model: Any) -> None:
    """Tensors that are no weights and in no file (rotary frequencies, masks), computed by the constructor again.

    Transformers 5 builds models without memory and leaves such tensors to ``_init_weights``, which code of before does
    not know, so that they hold whatever was in memory.
    """
    from transformers.initialization import no_init_weights

    with init_empty_weights(include_buffers=False), no_init_weights():
        skeleton = type(model)(copy.deepcopy(model.config))  # all that is no weight is real
    for (_, module), (_, made) in zip(model.named_modules(), skeleton.named_modules(), strict=True):
        for name in module._non_persistent_buffers_set:
            ours, right = module._buffers[name], made._buffers[name]
            if ours is not None and right is not None and not right.is_meta:
                module._buffers[name] = right.to(ours.device, ours.dtype)
        for name, value in list(vars(module).items()):
            right = vars(made).get(name)
            if isinstance(value, Tensor) and value.is_meta and isinstance(right, Tensor) and not right.is_meta:
                setattr(module, name, right)


def _restore_gradients(model: nn.Module) -> None:
    """Methods of modules with weights that switch gradients off, as LLaDA 2's experts do outside of training mode,
    compute with gradients; ``forward`` itself, of rotary embeddings say, is left alone."""
    for module in model.modules():
        if next(module.parameters(), None) is None:
            continue
        for name, method in inspect.getmembers(type(module), inspect.isfunction):
            decorated = method.__code__.co_filename == _contextlib.__file__  # by torch.no_grad() and its like
            if name != "forward" and decorated and is_remote(type(module)):
                setattr(module, name, types.MethodType(inspect.unwrap(method), module))

"""Frozen layers in four or eight bits, by bitsandbytes: the base of an adapter that is trained (QLoRA,
arXiv:2305.14314).

``nf4`` holds a weight as one of sixteen quantiles of a normal distribution, times the largest of its block of 64, which
is itself stored in eight bits (4.127 bits a weight); ``int8`` as one of 255 even steps of its row's largest. Only the
stored weights are quantised: a layer computes with its dequantised weights, in the precision of the network, so that

- a likelihood is the same with and without gradient and in any batch. bitsandbytes' own forward has kernels for
  inference that round otherwise (on CPUs with AVX512-BF16, they also repack the weights once a call was made without
  gradient, and pass no gradient from then on), and its eight-bit one rounds activations and looks for outliers in the
  whole batch (arXiv:2208.07339), by which a sample would depend on its neighbours;
- the gradient is exactly that of a network with the dequantised weights.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import types
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowrl.errors import UserError, first_line, is_out_of_memory, missing_package

Method = Literal["nf4", "int8"]
METHODS: tuple[Method, ...] = ("nf4", "int8")

# Says which kernels it looked for, which are not used: also where peft imports it of itself.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def check_quantization(method: str, full: bool, key: str = "model.quantize", shard: str = "none") -> None:
    """Raise `UserError` for a method that does not exist, one that is not installed, full fine-tuning, and a network
    that is split over processes."""
    if method not in METHODS:
        raise UserError(f"{key} must be one of {', '.join(METHODS)}, got {method!r}")
    if full and key == "model.quantize":
        raise UserError(
            f"{key}={method} holds the base in a few bits, which cannot be trained, so model.full means nothing;"
            " remove one of them"
        )
    if shard != "none" and key == "model.quantize":
        raise UserError(f"{key}={method} and model.shard={shard} cannot be combined; remove one of them")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise missing_package(f"{key}={method}", "bitsandbytes", "quantize", "leave it out")


def check_device(method: str, device: torch.device, key: str = "model.quantize") -> None:
    """Raise `UserError` where bitsandbytes has no kernels for a device."""
    supported = getattr(_bitsandbytes(method), "supported_torch_devices", {"cuda", "cpu"})
    if device.type not in supported:
        found = ", ".join(sorted(supported & {"cpu", "cuda", "xpu", "hpu", "npu", "mps"}))
        raise UserError(f"{key}={method}: bitsandbytes has no kernels for {device.type}, but for {found}; leave it out")


@dataclass(frozen=True)
class Quantized:
    """Which networks of a pipeline are held in a few bits."""

    network: Method | None = None
    """The denoiser, on which the adapter is."""
    encoders: Method | None = None
    """The text encoders."""
    device: torch.device = torch.device("cpu")
    """Where they are quantised, and compute."""

    def options(self, name: str, dtype: torch.dtype, transformer: bool) -> dict[str, Any]:
        """Arguments of ``from_pretrained`` of the component ``name``, a model of transformers or of diffusers."""
        method = self._method(name)
        if method is None:
            return {}
        if transformer:
            return transformers_options(method, dtype, self.device)
        return diffusers_options(method, dtype, self.device)

    def finish(self, name: str, model: nn.Module) -> None:
        """Quantise a component that its library has read in full precision, and set its `compute_dequantized`."""
        method = self._method(name)
        if method is not None and not is_quantized(model):
            quantize_layers(model, method)
        compute_dequantized(model)

    def _method(self, name: str) -> Method | None:
        if name.startswith("text_encoder"):
            return self.encoders
        return self.network if name in ("transformer", "transformer_2", "unet") else None


FULL_PRECISION = Quantized()


def transformers_options(method: Method, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arguments of transformers' ``from_pretrained`` that quantise every linear layer but the vocabulary's as it is
    read, on the device."""
    import transformers

    config: Any = transformers.BitsAndBytesConfig(**_options(method, dtype))
    return {"quantization_config": config, "device_map": {"": device}}


def diffusers_options(method: Method, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The same for diffusers', and every linear layer. Diffusers quantises on accelerators alone: for a CPU there are
    no arguments, and `quantize_layers` follows."""
    import diffusers

    if device.type == "cpu":
        return {}
    config: Any = diffusers.BitsAndBytesConfig(**_options(method, dtype))
    return {"quantization_config": config, "device_map": {"": device}}


def _options(method: Method, dtype: torch.dtype) -> dict[str, Any]:
    if method == "int8":
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_use_double_quant": True,
    }


def quantize_layers(network: nn.Module, method: Method) -> None:
    """Quantise every linear layer of a network where it is, as diffusers does while it reads one."""
    bnb = _bitsandbytes(method)
    for name, layer in list(network.named_modules()):
        if type(layer) is not nn.Linear:
            continue
        shape: Any = (layer.in_features, layer.out_features, layer.bias is not None)
        if method == "nf4":
            made = bnb.nn.Linear4bit(*shape, layer.weight.dtype, quant_type="nf4", device="meta")
            made.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
        else:
            made = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False, device="meta")
            made.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        made.weight = made.weight.to(layer.weight.device)
        made.bias = layer.bias
        parent, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(parent), attribute, made.requires_grad_(False))
    declared: Any = network
    declared.is_loaded_in_4bit, declared.is_loaded_in_8bit = method == "nf4", method == "int8"  # PEFT asks for these


def is_quantized(network: nn.Module) -> bool:
    """Whether some layers of a network are held in a few bits."""
    return any(_scales(parameter) is not None for parameter in network.parameters())


def describe_quantized(network: nn.Module) -> str:
    """How much of a network is held in few bits, and what large is not: experts of a mixture that lie in one tensor."""
    few = [parameter for parameter in network.parameters() if _scales(parameter) is not None]
    held = sum(parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1) for parameter in few)  # two in a byte
    frozen = [(name, p) for name, p in network.named_parameters() if not p.requires_grad and _scales(p) is None]
    whole = sum(parameter.numel() for _, parameter in frozen)
    experts = sum(parameter.numel() for _, parameter in frozen if parameter.dim() == 3)
    said = f"quantised: {held:,} of {held + whole:,} frozen weights"
    if experts > held:
        said += f"; {experts:,} lie in tensors of several experts, which bitsandbytes does not quantise"
    return said


def check_mergeable(network: nn.Module) -> None:
    """Raise `UserError` where merged weights would have to be rounded to the few bits of a base."""
    if is_quantized(network):
        raise UserError(
            "the base is quantised (model.quantize), so merged weights would not be those that were trained; export the"
            " adapter, to peft or diffusers"
        )


def is_whole(parameter: nn.Parameter) -> bool:
    """Whether the numbers that a quantised parameter stands for are finite; true of every other one."""
    scales = _scales(parameter)
    return scales is None or bool(torch.isfinite(scales).all())


def compute_dequantized(network: nn.Module) -> None:
    """Let every quantised layer of a network, by whomever it was quantised, compute with its dequantised weights."""
    if "bitsandbytes" not in sys.modules:
        return
    layers = _bitsandbytes("").nn
    for layer in network.modules():
        if isinstance(layer, (layers.Linear4bit, layers.Linear8bitLt)):
            layer.forward = types.MethodType(_forward, layer)


def dequantized(layer: Any, dtype: torch.dtype) -> Tensor:
    """[out, in] the weights that a quantised layer stands for."""
    functional = _bitsandbytes("").functional
    weight = layer.weight
    if type(weight).__name__ == "Params4bit":
        return functional.dequantize_4bit(weight.data, weight.quant_state).to(dtype)
    scales = weight.SCB if weight.SCB is not None else layer.state.SCB  # where bitsandbytes' forward moves them
    return functional.int8_vectorwise_dequant(weight.data, scales).to(dtype)


class _Linear(torch.autograd.Function):
    """``x W^T + b`` with weights that are dequantised again in the backward instead of kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: Any) -> Tensor:  # pyright: ignore
        ctx.layer = layer
        return F.linear(x, dequantized(layer, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        return gradient @ dequantized(ctx.layer, gradient.dtype), None, None


def _forward(layer: Any, x: Tensor) -> Tensor:
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    with torch.autocast(kind, enabled=False):
        return _Linear.apply(x, bias, layer)  # pyright: ignore[reportReturnType]


def _scales(parameter: Any) -> Tensor | None:
    """What the stored numbers of a quantised parameter are multiplied by."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        return state.offset if state.nested else state.absmax  # the mean of all: NaN where one is
    return getattr(parameter, "SCB", None)


def _bitsandbytes(method: str) -> Any:
    try:
        import bitsandbytes  # pyright: ignore[reportMissingImports]
    except Exception as error:  # its compiled part does not load
        if is_out_of_memory(error):
            raise
        raise UserError(f"model.quantize={method}: bitsandbytes cannot be loaded here: {first_line(error)}") from error
    return bitsandbytes

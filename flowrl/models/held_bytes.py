"""How many bytes of tensors are alive at once while a network computes, found without computing: on the meta device,
where tensors have shapes and no numbers, everything but the numbers happens as on a real one. A forward saves for its
backward what it saves there, a backward frees it, recomputed blocks are recomputed.

Two things are stood in for. Attention saves what fused kernels save: queries, keys, values, the output and a float32
for every query, never the matrix of scores. And autocast, which does not know the meta device, is CUDA's two lists of
functions (torch's documentation of autocast), with the same memory for the casts of trained weights.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

LOWERED = frozenset(
    [
        "linear",
        "matmul",
        "__matmul__",
        "__rmatmul__",
        "mm",
        "bmm",
        "addmm",
        "baddbmm",
        "addbmm",
        "einsum",
        "chain_matmul",
        "prelu",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "scaled_dot_product_attention",
    ]
)
"""Functions whose floating-point arguments autocast casts to the lower precision, by their names in Python."""
RAISED = frozenset(
    [
        "layer_norm",
        "group_norm",
        "softmax",
        "log_softmax",
        "pow",
        "__pow__",
        "__rpow__",
        "rsqrt",
        "sum",
        "prod",
        "cumsum",
        "cumprod",
        "norm",
        "exp",
        "log",
        "softplus",
        "cosine_similarity",
        "mse_loss",
        "renorm",
        "cdist",
    ]
)
"""Those whose arguments it casts to float32."""


class HeldBytes(TorchDispatchMode):
    """Counts the meta tensors that are made inside, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        """Bytes alive."""
        self.peak = 0
        """Most of them since `restart`."""
        self._seen: set[int] = set()

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype == torch.bool  # of a question such as whether nothing is padded: yes
        before = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage(), before)
        return out

    def _add(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        key, count = id(storage), storage.nbytes()
        if key in known or key in self._seen:  # an argument, or a view of it
            return
        self._seen.add(key)
        self.now += count
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, count).atexit = False

    def _drop(self, key: int, count: int) -> None:
        self._seen.discard(key)
        self.now -= count


class _AsOnDevice(TorchFunctionMode):
    """Fused attention, and autocast to ``lower`` where there is one."""

    def __init__(self, lower: torch.dtype | None) -> None:
        super().__init__()
        self._lower = lower
        self.remembers = True
        """Whether the casts of trained weights are kept, as they are until a context of autocast ends."""
        self._casts: dict[int, Tensor] = {}

    def forget(self) -> None:
        """The end of a context of autocast, after which recomputed blocks have one each."""
        self._casts.clear()
        self.remembers = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if self._lower is not None and name in LOWERED:
            args, kwargs = tree_map(self._lowered, (args, kwargs))
        elif self._lower is not None and name in RAISED:
            args, kwargs = tree_map(_raised, (args, kwargs))
        if name == "scaled_dot_product_attention":
            return _Attention.apply(*args[:3], *(kwargs[key] for key in ("query", "key", "value")[len(args) :]))
        return func(*args, **kwargs)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Inside there is no autocast."""
        before, self._lower = self._lower, None
        try:
            yield
        finally:
            self._lower = before

    def _lowered(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == self._lower:
            return x
        if not (self.remembers and x.is_leaf and x.requires_grad):
            return x.to(self._lower)
        if id(x) not in self._casts:
            self._casts[id(x)] = x.to(self._lower)
        return self._casts[id(x)]


def _raised(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16) else x


class _Attention(torch.autograd.Function):
    """Fused attention, for its shapes and what it saves."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextmanager
def counting(lower: torch.dtype | None = None) -> Iterator[tuple[HeldBytes, Callable[[], None]]]:
    """Inside, meta tensors are counted; ``lower``: under autocast to it. Also what to call where autocast ends."""
    as_on_device, held = _AsOnDevice(lower), HeldBytes()
    real: Any = torch.autocast

    def autocast(device_type: str, *args: Any, enabled: bool = True, **kwargs: Any) -> Any:
        if device_type != "meta":
            return real(device_type, *args, enabled=enabled, **kwargs)
        return nullcontext() if enabled else as_on_device.switched_off()

    torch.autocast = autocast  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with as_on_device, held:
            yield held, as_on_device.forget
    finally:
        torch.autocast = real
        as_on_device.forget()


def forward_bytes(call: Callable[[], Any], lower: torch.dtype | None = None) -> int:
    """The peak of a call without gradient."""
    with torch.no_grad(), counting(lower) as (held, _):
        call()
        return held.peak


def training_bytes(call: Callable[[], Any], trained: Iterable[nn.Parameter], lower: torch.dtype | None = None) -> int:
    """The peak of a call with gradient and its backward, beside the parameters and gradients that are there already."""
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    with torch.enable_grad(), counting(lower) as (held, end):
        outputs = [out for out in tree_leaves(call()) if isinstance(out, Tensor) and out.requires_grad]
        end()
        slopes = tuple(torch.empty_like(out) for out in outputs)
        # not `torch.autograd.backward`, inside of which there are no modes, and blocks would be recomputed without
        engine: Any = torch.autograd.Variable._execution_engine
        engine.run_backward(tuple(outputs), slopes, False, False, (), allow_unreachable=True, accumulate_grad=True)
        return held.peak


@contextmanager
def fetched_layers(network: nn.Module) -> Iterator[None]:
    """Inside, every call of a layer makes copies of its frozen weights, as those do that wait on the host."""
    hooks = []
    for layer in network.modules():
        frozen = {name: p for name, p in layer.named_parameters(recurse=False) if not p.requires_grad}
        if frozen and not any(True for _ in layer.children()):
            hooks += [
                layer.register_forward_pre_hook(_fetch(frozen)),
                layer.register_forward_hook(_put_back(frozen), always_call=True),
            ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _fetch(frozen: Mapping[str, nn.Parameter]) -> Callable[[nn.Module, Any], None]:
    def fetch(layer: nn.Module, _: Any) -> None:
        for name, parameter in frozen.items():
            layer._parameters[name] = nn.Parameter(parameter.data.clone(), requires_grad=False)

    return fetch


def _put_back(frozen: Mapping[str, nn.Parameter]) -> Callable[[nn.Module, Any, Any], None]:
    return lambda layer, _, __: layer._parameters.update(frozen)

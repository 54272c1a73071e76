"""A network split over the processes by FSDP2 (`torch.distributed.fsdp.fully_shard`), and weight sets of its shards.

Every process holds a part of every frozen weight and, where all weights are trained, of every trained one, with its
part of gradient, optimiser state and weight sets; a block's weights are gathered while it computes. Adapters are small:
every process holds them whole.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowrl.errors import UserError
from flowrl.models.deviation import deviation
from flowrl.models.pace import Pace
from flowrl.models.placement import listed_blocks, repeated_blocks
from flowrl.models.weights import LIVE, PointerWeights, WeightSets

Shard = Literal["none", "fsdp"]
"""How the trained network lies on several processes: whole on each, or split by FSDP2."""


def check_shard(kind: Shard) -> None:
    """Raise `UserError` where this process cannot shard: it trains alone, or torch is too old; and where accelerate was
    told to, whose own plugins are not used."""
    for variable, plugin in (("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_FSDP", "FSDP")):
        if os.environ.get(variable, "").lower() in ("1", "true") and (kind == "none" or plugin == "DeepSpeed"):
            raise UserError(
                f"accelerate was configured for {plugin}, whose plugin flowrl does not use: take a configuration "
                "without it, and set model.shard=fsdp to split the network over the processes"
            )
    if kind == "none":
        return
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        raise UserError(
            "model.shard=fsdp splits the network over several processes, and this is the only one; start the run with "
            "torchrun or accelerate launch, or set model.shard=none"
        )
    try:
        from torch.distributed.fsdp import FSDPModule, fully_shard
    except ImportError as error:
        raise UserError("model.shard=fsdp needs torch 2.9 or newer; upgrade it, or set model.shard=none") from error
    takes = inspect.signature(fully_shard).parameters
    if "ignored_params" not in takes or not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise UserError(
            f"model.shard=fsdp needs torch 2.9 or newer, and this is {torch.__version__}; upgrade it, or set "
            "model.shard=none"
        )


def split(network: nn.Module, device: torch.device, full: bool) -> Pace:
    """Split ``network``, whose weights are the same on every process, block by block, and move it to ``device``. Of
    ``full`` fine-tuning all weights are split; else those that are trained stay whole. Gradients of split weights are
    summed over the processes in the backward. The pace is that of the network's forwards from here on.

    Raises:
        UserError: as `check_shard`, and for a network without repeated blocks or with adapters of parameters.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    check_shard("fsdp")
    blocks = repeated_blocks(network) or listed_blocks(network)
    if not blocks:
        raise UserError(f"{type(network).__name__} has no repeated blocks to split; set model.shard: none")
    if any(type(module).__name__ == "ParamWrapper" for module in network.modules()):
        raise UserError(
            "model.shard=fsdp cannot adapt experts that are one tensor; leave them out of model.lora.targets, or set "
            "model.shard=none"
        )
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    whole = set() if full else {parameter for parameter in network.parameters() if parameter.requires_grad}
    for module in (*reversed(blocks), network):  # inner ones first
        fully_shard(module, mesh=mesh, ignored_params=whole)
    for module in sharded_modules(network):
        module.set_gradient_divide_factor(1.0)  # our weights of the loss sum to 1 over all processes
        module.set_force_sum_reduction_for_comms(True)
        if hasattr(module, "set_reduce_scatter_unused_params"):  # experts that no token of a process chose
            module.set_reduce_scatter_unused_params(True)
    network.to(device)  # what is not split
    return Pace()


def sharded_modules(network: nn.Module) -> list[Any]:
    """The modules whose weights FSDP2 gathers and frees together, the network itself included; none where it is not
    split."""
    return [module for module in network.modules() if hasattr(module, "unshard") and hasattr(module, "reshard")]


def reshard(network: nn.Module) -> None:
    """Free all weights that are gathered: every process is left with its shards."""
    for module in sharded_modules(network):
        module.reshard()


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a part of a tensor that several processes hold together; its gradient is summed already."""
    return hasattr(tensor, "to_local")


def weight_sets(
    network: nn.Module, parameters: Mapping[str, nn.Parameter], apart: Mapping[str, nn.Parameter] | None = None
) -> WeightSets:
    """Weight sets of what is trained of a network, collected after it was placed or sharded."""
    reshard(network)  # weights that are gathered just now stand in the place of their shards
    there = {id(parameter) for parameter in network.parameters()}
    lost = [name for name, parameter in parameters.items() if id(parameter) not in there]
    if lost:
        raise ValueError(f"{lost[0]} was collected before its network was placed: it is no parameter of it any more")
    if any(is_sharded(parameter) for parameter in parameters.values()):
        return ShardedWeights(network, parameters, apart)
    return PointerWeights(parameters, apart)


class ShardedWeights(WeightSets):
    """Weight sets of parameters of which every process holds a shard. ``using(name)`` copies the set's shards over the
    live ones, and those back at the end: two reads and two writes of this process' shards. FSDP gathers weights from
    the memory of its own shards; weights that are gathered still are freed first, or they would go on computing what
    they were.

    A regularizer that compares with a frozen set pays this for every micro-batch.
    """

    def __init__(
        self,
        network: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        apart: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        self._network = network
        if not sharded_modules(network):
            raise ValueError("these parameters belong to a network that is not split")
        super().__init__(parameters, apart)

    def update_ema(self, name: str, decay: float, of: str = LIVE) -> None:
        self._reshard()
        super().update_ema(name, decay, of)

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._reshard()
        with torch.no_grad():
            super().load(state)

    def _switch(self, name: str) -> None:
        if name == self._active:
            return
        target = self._tensors(name)
        self._reshard()
        if self._active == LIVE:
            self._live = {key: self._present(key).clone() for key in self._parameters}
        for key, tensor in target.items():
            self._present(key).copy_(tensor)
        if name == LIVE:
            self._live = {}
        self._active = name

    def _reshard(self) -> None:
        """Free what is gathered. Raises `RuntimeError` where FSDP keeps it, as after a forward that was broken off."""
        reshard(self._network)
        there = {id(parameter) for parameter in self._network.parameters()}
        kept = [n for n, p in self._parameters.items() if n not in self._apart and id(p) not in there]
        if kept:
            raise RuntimeError(f"{kept[0]} is still gathered, so no other weights can be computed with")

    def _present(self, key: str) -> Tensor:
        found: Any = self._parameters[key].detach()
        return found.to_local() if is_sharded(found) else found

    def _stated(self, key: str, tensor: Tensor) -> Tensor:
        return as_shard(tensor, self._parameters[key])

    def _own(self, key: str, stored: Tensor) -> Tensor:
        return local_part(stored, self._parameters[key])

    def _whole(self, key: str, tensor: Tensor) -> Tensor:
        return whole_of(self._stated(key, tensor))


def whole_of(tensor: Tensor) -> Tensor:
    """The tensor of which this may be a process' part; all of them ask."""
    found: Any = tensor
    return found.full_tensor() if is_sharded(found) else found


def as_shard(local: Tensor, like: Tensor) -> Tensor:
    """``local`` as this process' part of a tensor that is split as ``like`` is; itself, where that is not split."""
    if not is_sharded(like):
        return local
    from torch.distributed.tensor import DTensor

    split: Any = like
    return DTensor.from_local(
        local, split.device_mesh, split.placements, run_check=False, shape=split.shape, stride=split.stride()
    )


def local_part(stored: Tensor, like: Tensor) -> Tensor:
    """This process' part, split as ``like`` is, of a tensor that is whole or split so already."""
    found: Any = stored
    if is_sharded(found):
        return found.to_local()
    if not is_sharded(like):
        return stored
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    split: Any = like
    shape, offset = compute_local_shape_and_global_offset(split.shape, split.device_mesh, split.placements)
    for axis, (size, start) in enumerate(zip(shape, offset, strict=True)):
        found = found.narrow(axis, min(start, found.shape[axis]), size)
    return found


def split_alike(stored: Tensor, like: Tensor) -> Tensor:
    """A whole tensor of the shape of ``like`` split as that is; any other, such as a count, as it is."""
    if not is_sharded(like) or stored.shape != like.shape:
        return stored
    return as_shard(local_part(stored, like).to(like.device), like)


def offset_of(tensor: Tensor) -> tuple[int, ...]:
    """Where in the whole tensor this process' part begins, axis by axis."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    split: Any = tensor
    return tuple(compute_local_shape_and_global_offset(split.shape, split.device_mesh, split.placements)[1])


@torch.no_grad()
def check_exchange(weights: WeightSets, predict: Callable[[], Tensor], name: str) -> None:
    """Raise `UserError` unless the network computes with the weight set that is in use. A set of disturbed weights has
    to change what ``predict`` returns, and the live ones have to give it again afterwards: where an exchange of weights
    did nothing, every KL would be 0 and every ratio 1, in silence."""
    before = predict()
    with weights.disturbed():
        other = predict()
    moved, back = deviation(other, before), deviation(predict(), before)
    if not moved > max(1e-5, 10 * back):
        raise UserError(
            f"{name} computes the same with other weights (predictions move by {moved:.2g}, and by {back:.2g} with the "
            "same ones), so its weight sets cannot be exchanged; set model.shard=none and report this"
        )

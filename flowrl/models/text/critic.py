"""What a completion is worth at each token: a value network of its own, or a linear head on the policy's states."""

from __future__ import annotations

import copy
import inspect
from typing import Literal

import torch
from torch import Tensor, nn

from flowrl.errors import UserError
from flowrl.models.lora import Adaptation
from flowrl.models.text.layout import Forward
from flowrl.models.text.network import Head, Network, Reading

Kind = Literal["network", "head"]


class Critic:
    """Values [k] of the states in front of k tokens. The linear layer is 0 at first, so that advantages start from the
    returns.

    ``network``: a copy of the policy's transformer at its start, without the vocabulary layer and trained like it: all
    weights, or adapters of its own on the same frozen weights, which are shared. ``head``: the linear layer alone, on
    the policy's last hidden states, through which no gradient reaches the policy.
    """

    def __init__(self, policy: Network, kind: Kind) -> None:
        if policy.model.get_output_embeddings() is None:
            raise UserError(
                f"{policy.name} does not show its last hidden states, which a critic needs; use a method without one"
            )
        self.network = _copy(policy) if kind == "network" else None
        self.head = nn.Linear(policy.width, 1, device=policy.device, dtype=torch.float32)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def calls(self) -> int:
        """Network rows evaluated so far."""
        return 0 if self.network is None else self.network.calls

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, the head last."""
        own = {} if self.network is None else self.network.adaptation.parameters
        return {**{f"network.{name}": p for name, p in own.items()}, **dict(self.head.named_parameters())}

    def read_like(self, head: Head) -> None:
        """Read states as the policy does."""
        if self.network is not None:
            self.network.head = head
            self.network.calls = 0

    def __call__(self, reading: Reading, call: Forward) -> Tensor:
        """[k] float32, for the positions that the policy was read at."""
        if self.network is None:
            assert reading.states is not None
            return self.head(reading.states.detach().float())[:, 0]
        own = self.network.read(call.inputs, call.rows, call.columns)
        assert own.states is not None
        return self.head(own.states.float())[:, 0]


def _copy(policy: Network) -> Network:
    """The same network with trained weights of its own; what is frozen is shared, and the vocabulary layer, which is
    never asked for anything, too (unless it is also the embedding of tokens)."""
    layer, embedding = policy.model.get_output_embeddings(), policy.model.get_input_embeddings()
    assert layer is not None  # or there were no states to learn from
    unused = {id(p) for p in layer.parameters()} - {id(p) for p in embedding.parameters()}
    everything = (*policy.model.parameters(), *policy.model.buffers())
    shared = [tensor for tensor in everything if not tensor.requires_grad or id(tensor) in unused]
    model = copy.deepcopy(policy.model, {id(tensor): tensor for tensor in shared})
    for module in model.modules():  # a compiled forward is the policy's: the copy of a function is the function
        if inspect.isfunction(vars(module).get("forward")):
            del module.forward
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in unused}
    dropouts = tuple(m for name, m in model.named_modules() if "lora_dropout" in name and isinstance(m, nn.Dropout))
    return Network(model, Adaptation(trained, policy.adaptation.lora, dropouts), policy.placement)

"""Toy continuous policies whose base is known in closed form, for tests and examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowrl.models.weights import HasWeightSets, PointerWeights
from flowrl.types import CfgGrad, Prompt


@dataclass(frozen=True)
class TinyCondition:
    """Index of each row's prompt; ``-1`` is the empty prompt."""

    index: Tensor  # [N]

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: Tensor) -> TinyCondition:
        """The condition of the rows with these indices [n] (repeats allowed)."""
        return TinyCondition(self.index[rows])


class TinyFlow(HasWeightSets):
    """The exact flow of a Gaussian mixture plus a trainable residual network that starts at zero.

    The velocity of data ``sum_k w_k N(m_k, c^2 I)`` is ``E[noise - clean | x_t]``, a softmax over components, so the
    base is at its optimum by construction and whatever rises afterwards is reinforcement, not more pre-training.
    Implements `FlowPolicy` with latents of shape ``(dim,)``; "decoding" returns the latent as a ``[N, 3, 1, dim]``
    picture. Every prompt has its own residual input; guidance compares with the empty prompt.
    """

    def __init__(
        self, means: Tensor, std: float = 0.3, prompts: Sequence[str] = ("",), hidden: int = 32, seed: int = 0
    ) -> None:
        self.means, self.std = means.float(), std  # [K, dim]
        self.latent_shape = (means.shape[1],)
        self.device = torch.device("cpu")
        self.prompts = tuple(prompts)
        generator = torch.Generator().manual_seed(seed)
        width = means.shape[1] + 2 + len(self.prompts)
        self.last = nn.Linear(hidden, means.shape[1])
        self.network = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), self.last)
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
            self.last.weight.zero_()
            self.last.bias.zero_()
        self.weights = PointerWeights(dict(self.network.named_parameters()))
        self.network_calls = 0

    def parameters(self) -> list[nn.Parameter]:
        """Those of the residual network."""
        return list(self.network.parameters())

    def condition(self, prompts: Sequence[Prompt]) -> TinyCondition:
        """The number of each prompt."""
        return TinyCondition(torch.tensor([self.prompts.index(p.text) for p in prompts]))

    def times(self, steps: int) -> Tensor:
        """[steps + 1] float64, evenly spaced from 1 to 0."""
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    def snap(self, t: Tensor) -> Tensor:
        """Every time is one it knows."""
        return t

    def initial(self, noise: Tensor, times: Tensor) -> Tensor:
        """The noise itself."""
        return noise

    def decode(self, final: Tensor, graph: bool = False) -> Tensor:
        """[N, 3, 1, dim]: the latent [N, dim] as a picture of three equal channels, in either case with a gradient."""
        return final[:, None, None, :].expand(-1, 3, 1, -1)

    def encode(self, images: Sequence[Tensor], seeds: Tensor) -> Tensor:
        """[N, dim]: what `decode` shows."""
        return torch.stack([image[0, 0] for image in images])

    def base_velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """``E[noise - clean | x_t = x]`` of the mixture, [N, dim]."""
        t = t.to(x)[:, None, None]
        variance = (1 - t) ** 2 * self.std**2 + t**2
        offset = x[:, None] - (1 - t) * self.means  # [N, K, dim]
        weight = (-(offset**2).sum(dim=-1, keepdim=True) / (2 * variance)).softmax(dim=1)
        clean = self.means + (1 - t) * self.std**2 / variance * offset
        noise = t / variance * offset
        return (weight * (noise - clean)).sum(dim=1)

    def velocity(
        self,
        x: Tensor,
        t: Tensor,
        condition: TinyCondition,
        *,
        guidance: float | None = None,
        cfg_grad: CfgGrad = "cond",
    ) -> Tensor:
        """[N, dim] at ``x`` [N, dim], ``t`` [N]; guidance as in `flowrl.types.FlowPolicy.velocity`."""
        conditional = self._predict(x, t, condition.index)
        if guidance is None or guidance == 1:
            return conditional
        empty = torch.full_like(condition.index, -1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and cfg_grad == "both"):
            unconditional = self._predict(x, t, empty)
        return unconditional + guidance * (conditional - unconditional)

    def _predict(self, x: Tensor, t: Tensor, index: Tensor) -> Tensor:
        self.network_calls += len(x)
        prompt = torch.zeros(len(x), len(self.prompts)).index_put((torch.arange(len(x)), index), torch.tensor(1.0))
        prompt = torch.where((index >= 0)[:, None], prompt, torch.zeros_like(prompt))
        time = t.float()[:, None]
        return self.base_velocity(x, t) + self.network(torch.cat([x, time, time**2, prompt], dim=1))

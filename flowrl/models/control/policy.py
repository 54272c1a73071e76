"""A policy that acts: chunks of actions for observations, as a flow, a DDPM or a Gaussian."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.math.flow import ODE, mean_of
from flowrl.math.masking import draw_choices
from flowrl.math.random import normal
from flowrl.models.control.acting import ActsWithNetworks
from flowrl.models.control.condition import ControlCondition
from flowrl.models.control.coordinates import (
    cosine_levels,
    mip_input,
    mip_times,
    time_grid,
    times_of,
    to_network,
    velocity_of,
)
from flowrl.models.control.form import ControlConfig
from flowrl.models.control.network import ControlNetwork, CriticNetwork, NoiseNetwork, ResidualNetwork
from flowrl.models.control.outcome import describe_episode
from flowrl.models.lora import Adaptation
from flowrl.models.sharding import weight_sets
from flowrl.models.source import ModelSource
from flowrl.models.weights import HasWeightSets
from flowrl.types import CfgGrad, IncompatibleError, Prompt

CRITIC = "critic."
"""Prefix of the critic among a policy's weights."""
NOISE = "noise."
"""Prefix of the network that says how much noise steps have."""
SAME_TIME = 1e-6


class ControlPolicy(ActsWithNetworks, HasWeightSets):
    """Implements :class:`flowrl.types.FlowPolicy` over chunks [h, d] of standardised actions; a choice among d is 1 at
    its place and 0 elsewhere. Made by :func:`flowrl.models.control.load.load_control`."""

    family: ClassVar[str] = "control"

    def __init__(
        self,
        config: ControlConfig,
        network: ControlNetwork,
        critic: CriticNetwork | None,
        source: ModelSource | None,
        device: torch.device,
        noise: NoiseNetwork | None = None,
        base: ControlNetwork | None = None,
    ) -> None:
        self.config, self.source, self.device = config, source, device
        self.network, self.critic = network.to(device), None if critic is None else critic.to(device)
        self.noise = None if noise is None else noise.to(device)
        self.base = None if base is None else base.to(device).requires_grad_(False)
        """What acts at times above ``config.tuned_from``, whatever weight set is in use."""
        self.latent_shape = (config.chunk, config.action)
        self.dtype = torch.float32
        self.network_calls = 0
        """Network rows evaluated so far, the critic's left out."""
        trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        self.adaptation = Adaptation(trained, None)
        apart = {CRITIC: critic, NOISE: noise}
        extra = {f"{k}{name}": p for k, net in apart.items() if net is not None for name, p in net.named_parameters()}
        self.weights = weight_sets(network, self.adaptation.parameters, extra)
        self.origin: dict[str, Any] | None = None
        """Of a run's policy, the settings that its exports remember."""
        self._seen: dict[int, list[Tensor]] = {}

    # -------------------------------------------------------------------------------------------------- as a policy
    def condition(self, prompts: Sequence[Prompt]) -> ControlCondition:
        """Of N rows that have seen nothing yet."""
        return ControlCondition(len(prompts))

    def decode(self, final: Tensor, graph: bool = False) -> list[str]:
        """What came of every episode, as a line; ``final`` [N, 5] are the numbers of `OUTCOME`. Raises
        `IncompatibleError` with ``graph``: nothing here has a gradient."""
        if graph:
            raise IncompatibleError("rewards have no gradient through an environment; use an algorithm without one")
        return [describe_episode(row) for row in final.tolist()]

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters: the network's in its order, those of the noise of its steps, then the critics'."""
        noise, critics = [] if self.noise is None else self.noise.parameters(), self.critic_parameters()
        judging = {id(parameter) for parameter in critics}
        own = [parameter for parameter in self.adaptation.parameters.values() if id(parameter) not in judging]
        return [*own, *noise, *critics]

    def critic_parameters(self) -> list[nn.Parameter]:
        """Those of them that are critics', beside the network and of values."""
        judges = [net for name, net in self.network.beside.items() if self.config.beside[name].judges]
        valuing = [] if self.critic is None else [self.critic]
        return [parameter for net in (*judges, *valuing) for parameter in net.parameters()]

    def value(self, observed: Tensor) -> Tensor:
        """[n] float32: what the critic expects of observations [n, history, o]; it learns in standardised ones. Beside
        a residual it reads what that does, of [n, 1, o + d]."""
        assert self.critic is not None, "ask a policy without a critic for no values"
        seen = observed.to(self.device)
        return self.critic(self._beside(seen) if self.trains_residual else self.network.features(seen))

    # ----------------------------------------------------------------------------------------------------- as a flow
    def times(self, steps: int) -> Tensor:
        """[steps + 1] float64 descending to 0: even for a flow; those of a DDPM's own levels, evenly spaced among
        them; a MIP's two."""
        return time_grid(self.config.kind, self.config.steps, steps)

    @property
    def _levels(self) -> Tensor:
        return times_of(cosine_levels(self.config.steps))

    def snap(self, t: Tensor) -> Tensor:
        """The nearest times of a DDPM or a MIP; a flow takes any."""
        if self.config.kind == "mip":
            return mip_times()[(t.cpu()[..., None] - mip_times()[:2]).abs().argmin(dim=-1)].to(t)
        return t if self.config.kind != "ddpm" else self._levels[self._number(t)].to(t)

    def _number(self, t: Tensor) -> Tensor:
        """Of the nearest time of a DDPM, the cleanest being 0."""
        return (t.cpu()[..., None] - self._levels).abs().argmin(dim=-1)

    def initial(self, noise: Tensor, times: Tensor) -> Tensor:
        """The starting point at ``times[0]`` of standard normal ``noise``; a MIP begins with 0."""
        if self.config.kind == "mip":
            return torch.zeros_like(noise)
        t = times[0]
        return noise * float(((1 - t) ** 2 + t**2).sqrt()) if self.config.kind == "ddpm" else noise

    def velocity(
        self,
        x: Tensor,
        t: Tensor,
        condition: ControlCondition,
        *,
        guidance: float | None = None,
        cfg_grad: CfgGrad = "cond",
    ) -> Tensor:
        """Velocity [n, h, d] float32 at ``x`` [n, h, d] and ``t`` [n], where the condition has n observations: of its
        labels, if it has some, else of label 1 and none, ``v_0 + guidance (v_1 - v_0)``; 0 and 1 are one of them.

        A network that hears no label has no guidance: 1 and ``None`` are the same. Raises `IncompatibleError` for
        another one, and of no flow.
        """
        scale = self.config.scale(guidance)
        if self.config.kind in ("gaussian", "categorical"):
            raise IncompatibleError(
                f"this policy is {self.config.kind}, without a velocity; use ppo_{self.config.kind}"
            )
        if condition.label is not None or scale == 0:
            return self._asked(x, t, condition, condition.label)
        better = self._asked(x, t, condition, torch.ones(len(x), dtype=torch.int64))
        if scale == 1:
            return better
        with torch.set_grad_enabled(torch.is_grad_enabled() and cfg_grad == "both"):
            plain = self._asked(x, t, condition, None)
        return plain + scale * (better - plain)

    def _asked(self, x: Tensor, t: Tensor, condition: ControlCondition, label: Tensor | None) -> Tensor:
        """Of the network that acts at each time, with labels [n]."""
        observed, x = condition.need().to(self.device), x.float()
        label = None if label is None else label.to(self.device)
        self.network_calls += len(x)
        if self.base is None or self.config.tuned_from is None:
            return self._velocity(self.network, x, t, observed, label)
        early = t > self.config.tuned_from + SAME_TIME
        if bool(early.all()):
            return self._velocity(self.base, x, t, observed, label)
        live = self._velocity(self.network, x, t, observed, label)
        if not bool(early.any()):
            return live
        return torch.where(early.to(self.device)[:, None, None], self._velocity(self.base, x, t, observed, label), live)

    def _velocity(
        self, network: ControlNetwork, x: Tensor, t: Tensor, observed: Tensor, label: Tensor | None
    ) -> Tensor:
        if self.config.kind == "flow":
            return network(observed, x, t.to(x), label)
        if self.config.kind == "mip":
            return (x - network(observed, mip_input(x, t.to(x)), t.to(x), label)) / t.to(x)[:, None, None]
        asked = self._number(t) if self.config.embedding else t
        found = velocity_of(network(observed, to_network(x, t.to(x)), asked.to(x), label), x, t.to(x))
        if self.config.bound is None:
            return found
        wide = t.to(x)[:, None, None]
        return (x - (x - wide * found).clamp(-self.config.bound, self.config.bound)) / wide

    def noise_level(self, t: Tensor, condition: ControlCondition) -> Tensor:
        """[n, h, d]: how much noise a step from time ``t`` [n] has, from 0 (the least) to 1 (the most). Raises
        `IncompatibleError` where nothing learns it."""
        if self.noise is None:
            raise IncompatibleError("this policy has no network for the noise of its steps; use algorithm reinflow")
        features = self.network.features(condition.need().to(self.device))
        return self.noise(features, self.network.time_features(t.to(features)))

    def integrate(self, x: Tensor, condition: ControlCondition, steps: int | None = None) -> Tensor:
        """Where Euler's method comes to from noise ``x`` [n, h, d], in ``steps`` even steps or the model's own."""
        times = self.times(steps or self.config.steps)
        x = self.initial(x, times)
        for now, then in pairwise(times):
            t, t_next = now.expand(len(x)), then.expand(len(x))
            x = mean_of(ODE(), x, self.velocity(x, t, condition), t, t_next)
        return x

    # ------------------------------------------------------------------------------------------------- as a Gaussian
    def gaussian(self, condition: ControlCondition) -> tuple[Tensor, Tensor]:
        """Mean [n, h, d] of the chunk and logarithm of its deviation [h, d]. The mean of a flow is one step from z = 0,
        ``-v(0, 1)``: what matching makes it there is the mean of the data."""
        observed = condition.need().to(self.device)
        if self.config.kind == "gaussian":
            self.network_calls += len(observed)
            return self.network(observed), self.network.log_std
        if self.config.kind == "ddpm":
            raise IncompatibleError("this policy is a DDPM, whose times do not reach 1; use a flow or a Gaussian")
        if self.config.kind == "categorical":
            raise IncompatibleError("this policy chooses among actions and has no mean; use ppo_categorical")
        if self.base is not None:
            raise IncompatibleError("of this policy a frozen network acts at time 1 (tuned_from): no mean learns")
        zero = torch.zeros(len(observed), *self.latent_shape, device=self.device)
        one = torch.ones(len(observed), device=self.device)
        return -self.velocity(zero, one, condition), self.network.log_std

    def choices(self, condition: ControlCondition) -> Tensor:
        """Log-probabilities [n, h, d] of the d choices for every action of a chunk, which are independent given the
        observation. Raises `IncompatibleError` of a policy of another kind."""
        if self.config.kind != "categorical":
            raise IncompatibleError(f"this policy is {self.config.kind} and has no choices; use a categorical one")
        observed = condition.need().to(self.device)
        self.network_calls += len(observed)
        return self.network(observed).log_softmax(dim=-1)

    def in_own_units(self, chunk: Tensor) -> Tensor:
        """Actions [n, h, d] as the environment takes them, of standardised ones; choices have no unit."""
        chunk = chunk.to(self.device)
        return chunk if self.config.kind == "categorical" else self.network.actions.undo(chunk)

    # ------------------------------------------------------------------------------------------------ with a residual
    @property
    def trains_residual(self) -> bool:
        """Whether the residual alone is trained; otherwise it is a part of the policy that stays as it is."""
        return any(name.startswith("residual.") for name in self.adaptation.parameters)

    def residual_gaussian(self, condition: ControlCondition) -> tuple[Tensor, Tensor]:
        """Mean [n, 1, d] of what is added to single actions, before its scale, and logarithm of its deviation [d]. The
        condition has observed what they are decided on: the observation, and the policy's standardised action beside
        it, [n, 1, o + d]. Raises `IncompatibleError` where there is none."""
        residual, seen = self._residual(), condition.need().to(self.device)
        if seen.shape[-1] != self.config.observation + self.config.action:
            raise IncompatibleError("a residual reads the policy's action beside an observation: use ResidualEpisodes")
        self.network_calls += len(seen)
        return residual(self._beside(seen))[:, None], residual.log_std

    def corrected(self, action: Tensor, added: Tensor) -> Tensor:
        """Standardised actions [n, d], and what a residual answers [n, d] at its scale."""
        return action.to(self.device) + self._residual().scale * added.to(self.device)

    def executed(self, observed: Tensor, action: Tensor) -> Tensor:
        """Single actions [n, d] as the environment takes them, of standardised ones that were decided on; a score of
        the data and a residual look at the newest observation [n, history, o] and move them."""
        action = self.ascended(observed[:, -1], action)
        if self.network.residual is None:
            return self.in_own_units(action)
        features = self.network.residual_features(observed[:, -1].to(self.device).float(), action.to(self.device))
        self.network_calls += len(action)
        return self.in_own_units(self.corrected(action, self.network.residual(features)))

    def ascended(self, observed: Tensor, action: Tensor) -> Tensor:
        """Standardised actions [n, d] at observations [n, o] after ``a <- a + rate s(o, a)``, ``steps`` times, where
        the model has a score s of its data (CDSA, arXiv:2406.07541); as they are otherwise."""
        ascent = self.config.score
        if ascent is None or self.network.score is None:
            return action
        seen, action = self.network.observations(observed.to(self.device).float()), action.to(self.device)
        for _ in range(ascent.steps):
            action = action + ascent.rate * self.network.score(seen, action)
        self.network_calls += ascent.steps * len(action)
        return action

    def _residual(self) -> ResidualNetwork:
        if self.network.residual is None:
            raise IncompatibleError("this policy has no residual; use algorithm resip, or a model that it trained")
        return self.network.residual

    def _beside(self, seen: Tensor) -> Tensor:
        """[n, o + d] of what an event of `ResidualEpisodes` observes, [n, 1, o + d]."""
        observed, action = seen[:, -1].float().split([self.config.observation, self.config.action], dim=1)
        return self.network.residual_features(observed, action)

    # ------------------------------------------------------------------------------------------------------- deployed
    @torch.no_grad()
    def chunk(self, observed: Tensor, seed: int | None = None, steps: int | None = None) -> Tensor:
        """Chunks [n, h, d] in the environment's units for observations [n, history, o]: the Euler solver from z = 0, or
        from noise that follows from ``seed``; a Gaussian's mean, or with that noise; the likeliest choices, or drawn;
        what `act` makes of that noise. A residual is no part of it: it acts step by step."""
        return self.in_own_units(self._decided(observed, seed, steps))

    def _decided(self, observed: Tensor, seed: int | None, steps: int | None) -> Tensor:
        """The same, standardised."""
        condition, acting = ControlCondition(len(observed)).seeing(observed.float()), self.config.acting
        seeds = None if seed is None else torch.arange(len(observed)) + seed
        if self.config.kind == "categorical":
            return draw_choices(self.choices(condition), seeds, 0)
        shape = self.latent_shape if acting is None else (acting.noises, *self.latent_shape)
        x = torch.zeros(len(observed), *shape, device=self.device)
        if seeds is not None:
            x = normal(seeds, shape, stream=0, device=self.device)
        if self.config.kind == "gaussian" and acting is None:
            mean, log_std = self.gaussian(condition)
            return mean + log_std.exp() * x
        return self.integrate(x, condition, steps) if acting is None else self.act(condition, x)

    def reset(self) -> None:
        """Forget what was seen and decided, as at the beginning of an episode (LeRobot's name)."""
        self._seen.clear()

    @torch.no_grad()
    def select_action(self, observation: Tensor) -> Tensor:
        """The next action [n, d], of choices their numbers [n], for observations [n, o] of n environments that go on,
        from a queue that a new chunk fills when it is empty (LeRobot's name and behaviour). A residual corrects each
        when its turn comes. `reset` begins anew."""
        past = self._seen.setdefault(0, [])
        past.append(torch.as_tensor(observation, dtype=torch.float32))
        del past[: -self.config.history]
        queue = self._seen.setdefault(1, [])
        if not queue:
            padded = [past[0]] * (self.config.history - len(past)) + past
            queue.extend(self._decided(torch.stack(padded, dim=1), None, None)[:, self.config.present].unbind(dim=1))
        return self._named(self.executed(past[-1][:, None], queue.pop(0)))

    def _named(self, action: Tensor) -> Tensor:
        """Actions [n, d] as they are given to others: choices [n] by their numbers."""
        return action.argmax(dim=-1) if self.config.kind == "categorical" else action

    @torch.no_grad()
    def predict(self, observation: Any, state: Any = None, *_: Any, deterministic: bool = True) -> tuple[Any, Any]:
        """``(action, state)`` as Stable-Baselines3 asks for it, of one observation [o] or of several [n, o]: the first
        action of a new chunk, of choices its number. ``deterministic=False`` acts with noise."""
        seen = torch.as_tensor(np.asarray(observation), dtype=torch.float32)
        rows = seen.reshape(-1, self.config.observation)
        history = rows[:, None].expand(-1, self.config.history, -1)
        seed = None if deterministic else int(torch.randint(2**31, ()))
        decided = self._decided(history, seed, None)[:, self.config.past]
        action = self._named(self.executed(history, decided)).cpu().numpy()
        return (action[0] if seen.dim() == 1 else action), state

    def facts(self) -> dict[str, Any]:
        """What ``config.json`` holds."""
        return asdict(self.config)

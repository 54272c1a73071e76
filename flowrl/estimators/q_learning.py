"""What critics of actions say of the decisions of episodes, whoever made them: the part of off-policy methods that asks
networks. What a method makes of these numbers is an objective's (`flowrl.parts.q_learning`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.estimators.episodes import episodes_of
from flowrl.math.flow import interpolate
from flowrl.math.random import normal, uniform
from flowrl.types import Acting, Aggregate, Beside, IncompatibleError, Likelihood, Rollout, Rows, aggregated

NOISE, TIMES = 1021, 1022  # streams of a sample's seed
Q = "q/"
"""And the number of a critic: what it says of the decision, with a gradient to its weights."""


@dataclass(frozen=True)
class TransitionRows(Rows):
    """Decisions of episodes with what followed; D = S. What is drawn at random of each is drawn here, once."""

    large: ClassVar[frozenset[str]] = frozenset({"observed", "action", "chunks", "following", "steps", "noise", "at"})

    alive: Tensor  # [N, S] bool: the decisions that were made
    event: Tensor  # [N, S] int64, -1 where there is no decision
    continues: Tensor
    """[N, S] bool: whether what comes after ``following`` counts: it does after a time limit, not after an end."""
    observed: Tensor  # [N, S, history, o]
    action: Tensor  # [N, S, h, d]
    chunks: Tensor
    """[N, S, n, h, d]: the action and those of the decisions after it, up to ``following``; beyond an episode's end the
    last one is repeated."""
    following: Tensor  # [N, S, history, o] n decisions later, or at the episode's end
    steps: Tensor  # [N, S] int64: how many decisions later it is
    noise: Tensor  # [N, S, k, h, d]
    at: Tensor  # [N, S] float32 in [0, 1)

    @property
    def counted(self) -> Tensor:
        return self.alive

    @property
    def events(self) -> Tensor:
        return self.event

    def block(self, rows: Tensor, decisions: slice) -> TransitionRows:
        """Some decisions of some samples; what another process holds has a shape alone."""
        cut = {name: value[rows.to(value.device)][:, decisions] for name, value in vars(self).items()}
        return TransitionRows(**cut)


class Decisions(NamedTuple):
    """L decisions that were made, on the device of the policy."""

    seen: Any
    """The condition with their observations."""
    after: Any
    """The condition with the observations that followed."""
    action: Tensor  # [L, h, d] standardised
    chunks: Tensor  # [L, n, h, d]
    steps: Tensor  # [L] int64
    continues: Tensor  # [L] bool
    noise: Tensor  # [L, k, h, d]
    at: Tensor  # [L]


class OfTransitions:
    """What estimators of off-policy methods have in common (see `flowrl.types.Estimator`): subclasses answer `measure`
    of single decisions, name the networks ``beside`` the policy's own, and say how many noises ``draws`` each needs and
    how many decisions ``backup`` later the value is taken."""

    family: ClassVar[str] = "control"

    @property
    def draws(self) -> int:
        """Noises of a decision."""
        return 1

    backup: int = 1

    @property
    def noises(self) -> int:
        """How many noises each decision needs."""
        return self.draws

    @property
    def references(self) -> tuple[str, ...]:
        return ()

    @property
    def has_recorded_logp(self) -> bool:
        return False

    def decisions(self, recorded: int) -> tuple[int, int]:
        return recorded, recorded

    def recorded_logp(self, rollout: Rollout, rows: TransitionRows) -> None:
        return None

    def measure(self, policy: Any, found: Decisions) -> dict[str, Tensor]:
        """Numbers [L] by name, ``logp`` among them, with gradients to the weights that each shall train."""
        raise NotImplementedError

    def probe(self, rollout: Rollout, policy: Any, seeds: Tensor) -> TransitionRows:
        """Every decision, with noise and times that follow from the sample's seed and its number."""
        trace = episodes_of(rollout)
        n, s = trace.alive.shape
        count = trace.alive.sum(dim=1)[:, None]
        place, rows = torch.arange(s), torch.arange(n)[:, None]
        then = torch.minimum(place + self.backup, count)
        executed = torch.minimum(place[:, None] + torch.arange(self.backup), (count[..., None] - 1).clamp(min=0))
        shape = (s, self.noises, *trace.actions.shape[2:])
        return TransitionRows(
            alive=trace.alive,
            event=torch.where(trace.alive, torch.arange(s), -1),
            continues=trace.alive & ((then < count) | trace.truncated[:, None]),
            observed=trace.observed[:, :-1],
            action=trace.actions,
            chunks=trace.actions[rows[..., None], executed],
            following=trace.observed[rows, then],
            steps=(then - place).clamp(min=0),
            noise=normal(seeds, shape, stream=NOISE),
            at=uniform(seeds, (s,), stream=TIMES).float(),
        )

    def __call__(self, policy: Any, rows: TransitionRows, condition: Any, references: Sequence[str] = ()) -> Likelihood:
        if policy.config.kind != "flow":
            raise IncompatibleError(f"off-policy methods train a flow, and this model is of kind {policy.config.kind}")
        made = rows.alive.nonzero()
        some = made if len(made) else torch.zeros(1, 2, dtype=torch.int64)  # of a block without a decision
        index, device = (some[:, 0], some[:, 1]), policy.device
        found = self.measure(
            policy,
            Decisions(
                condition.seeing(rows.observed[index]),
                condition.seeing(rows.following[index]),
                *(put(getattr(rows, name)[index], device) for name in ("action", "chunks", "steps", "continues")),
                *(put(value[index], device) for value in (rows.noise, rows.at)),
            ),
        )
        n, s = rows.alive.shape
        place = (index[0] * s + index[1]).to(device)
        wide = {
            name: value.new_zeros(n * s).index_copy(0, place, value if len(made) else value * 0).view(n, s)
            for name, value in found.items()
        }
        return Likelihood(wide.pop("logp"), wide)


def critics_of(said: Tensor) -> dict[str, Tensor]:
    """What each of K critics says [K, L], by its name."""
    return {f"{Q}{number}": value for number, value in enumerate(said)}


def matching_error(policy: Any, found: Decisions, noise: Tensor) -> Tensor:
    """[L] mean squared error of the velocity at the decision's chunk, noised by ``noise`` [L, h, d]: what imitates."""
    x = interpolate(found.action, noise, found.at)
    error = policy.velocity(x, found.at, found.seen) - (noise - found.action)
    return error.square().flatten(1).mean(dim=1)


@dataclass(frozen=True, kw_only=True)
class OneStepQ(OfTransitions):
    """Flow Q-learning (arXiv:2502.02538; seohongpark/fql, 11 Mar 2025, agents/fql.py) of every decision (s, a, s'):

    ``logp``: minus the matching error of the flow v at a, which imitates;
    ``distillation``: mean squared distance of the one-step actor's chunk mu(s, z) from where the flow comes to from the
    same z in ``steps`` Euler steps, kept within ``bound``; gradient to mu alone;
    ``q_own``: mean over critics of Q(s, mu(s, z)), mu kept within ``bound``; gradient through the action to mu alone;
    ``q/0``, ``q/1``, ...: each critic of (s, a); gradient to its weights;
    ``next_value``: critics of the weight set ``target`` of (s', mu(s', z')), together by ``aggregate``; 0 where the
    episode ended by itself. No gradient.

    The policy acts by mu, also where it is deployed: one evaluation from noise.
    """

    steps: int = 10
    aggregate: Aggregate = "mean"
    bound: float = 3.0
    """Standardised actions are kept within ``-bound`` to ``bound``."""
    critics: int = 2
    width: int = 512
    depth: int = 4
    target: str = "target"

    @property
    def draws(self) -> int:
        """Of the matching error, of the actor, and of what it does next."""
        return 3

    @property
    def beside(self) -> Mapping[str, Beside]:
        """The actor and the critics."""
        form = {"width": self.width, "depth": self.depth}
        return {"actor": Beside("actor", **form), "q": Beside("q", copies=self.critics, **form)}

    @property
    def acting(self) -> Acting:
        return Acting(actor="actor", bound=self.bound)

    def measure(self, policy: Any, found: Decisions) -> dict[str, Tensor]:
        noise, own, next_noise = found.noise.unbind(dim=1)
        with torch.no_grad():
            following = policy.act(found.after, next_noise[:, None])
            with policy.using(self.target) as asked:
                later = aggregated(asked.ask("q", found.after, following), self.aggregate)
            taught = self._kept(policy.integrate(own, found.seen, self.steps))
        error = matching_error(policy, found, noise)
        chunk = policy.ask("actor", found.seen, own)
        return {
            "logp": -error,
            "distillation": (chunk - taught).square().flatten(1).mean(dim=1),
            "q_own": policy.ask("q", found.seen, self._kept(chunk), fixed=True).mean(dim=0),
            "next_value": torch.where(found.continues, later, torch.zeros_like(later)),
            **critics_of(policy.ask("q", found.seen, found.action)),
        }

    def _kept(self, chunk: Tensor) -> Tensor:
        return chunk.clamp(-self.bound, self.bound)

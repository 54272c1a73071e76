"""What critics say of decisions where the policy chooses among several chunks: of its own samples the best, after steps
up the critic (PA-RL) or beside edited ones (EXPO)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flowrl.estimators.q_learning import Decisions, OfTransitions, critics_of, matching_error
from flowrl.types import Acting, Aggregate, Beside, aggregated

Distill = Literal["sample", "argmax"]
"""Which of the improved chunks the policy imitates: one drawn by the softmax of their Q, or the best."""


@dataclass(frozen=True, kw_only=True)
class OptimizedActions(OfTransitions):
    """Policy-agnostic RL (arXiv:2412.06685; MaxSobolMark/PolicyAgnosticRL, 3 Aug 2025, action_optimization.py and
    train.py) of every decision (s, a, s'). A chunk is improved so: of ``candidates`` samples of the flow the ``keep``
    with the highest Q go on, each takes ``climb`` steps ``a <- a + rate dQ/da`` within ``bound``, and that on its way
    with the highest Q counts.

    ``logp``: minus the matching error of the flow at an improved chunk of s, where a stands among those that go on in
    the place of the worst one: by ``distill`` one drawn with probability ``softmax(Q)``, or the best;
    ``improvement``: mean over those chunks of how much Q rose by the steps;
    ``q/0``, ``q/1``, ...: each critic of (s, a); gradient to its weights;
    ``next_value``: critics of the weight set ``target`` of the best improved chunk of s', together by ``aggregate``; 0
    where the episode ended by itself. No gradient.

    The policy acts by the best improved chunk, also where it is deployed.
    """

    candidates: int = 32
    keep: int = 10
    climb: int = 10
    rate: float = 3e-4
    distill: Distill = "sample"
    aggregate: Aggregate = "min"
    bound: float = 3.0
    critics: int = 2
    width: int = 256
    depth: int = 2
    target: str = "target"

    @property
    def draws(self) -> int:
        """Of the matching error, of what is imitated, and of the candidates of s and s'."""
        return 2 + 2 * self.candidates

    @property
    def beside(self) -> Mapping[str, Beside]:
        """The critics."""
        return {"q": Beside("q", self.width, self.depth, copies=self.critics)}

    @property
    def acting(self) -> Acting:
        return Acting(
            bound=self.bound,
            candidates=self.candidates,
            critic="q",
            keep=min(self.keep, self.candidates),
            climb=self.climb,
            rate=self.rate,
        )

    def measure(self, policy: Any, found: Decisions) -> dict[str, Tensor]:
        noise, choice = found.noise[:, 0], found.noise[:, 1]
        own, next_noise = found.noise[:, 2:].split(self.candidates, dim=1)
        with torch.no_grad():
            following = policy.act(found.after, next_noise)
            with policy.using(self.target) as asked:
                later = aggregated(asked.ask("q", found.after, following), self.aggregate)
            before = torch.cat(
                [policy.kept(found.seen, policy.proposed(found.seen, own))[:, 1:], found.action[:, None]], dim=1
            )
            after = policy.climbed(found.seen, before)
            liked = policy.liked(found.seen, after)
            taught = after[torch.arange(len(after), device=after.device), self._chosen(liked, choice)]
            improvement = (liked - policy.liked(found.seen, before)).mean(dim=1)
        return {
            "logp": -matching_error(policy, found._replace(action=taught), noise),
            "improvement": improvement,
            "next_value": torch.where(found.continues, later, torch.zeros_like(later)),
            **critics_of(policy.ask("q", found.seen, found.action)),
        }

    def _chosen(self, liked: Tensor, choice: Tensor) -> Tensor:
        """[L] numbers of chunks, of what the critic says of them [L, m] and standard normal numbers [L, h, d], the
        first of which decides through its distribution function."""
        if self.distill == "argmax":
            return liked.argmax(dim=1)
        below = torch.special.ndtr(choice.flatten(1)[:, :1].double())
        edges = liked.double().softmax(dim=1).cumsum(dim=1)
        return (edges < below).sum(dim=1).clamp(max=liked.shape[1] - 1)


@dataclass(frozen=True, kw_only=True)
class EditedActions(OfTransitions):
    """EXPO (arXiv:2507.07986; the learner of pd-perry/EXPO as stored copies of it have it, 2025) of every decision
    (s, a, s'). Beside ``candidates`` samples of the flow stand the first ``edits`` of them with what an editor adds,
    ``e = scale tanh(m + s z)`` of its mean and deviation at (s, a), and the critic chooses among all.

    ``logp``: minus the matching error of the flow at a, which imitates and sees no critic;
    ``q_own``: mean over critics of Q(s, a + e(s, a)); gradient through e to the editor alone;
    ``edit_log_density``: the logarithm of the density of e; gradient to the editor;
    ``temperature``: what the entropy of edits is worth, learned; gradient to that number alone;
    ``entropy_excess``: minus that logarithm, over the wanted entropy of -1/2 for each number of a chunk. No gradient;
    ``q/0``, ``q/1``, ...: each critic of (s, a); gradient to its weights;
    ``next_value``: the highest that critics of the weight set ``target``, together by ``aggregate``, say of such
    chunks of s', which are the live policy's; 0 where the episode ended by itself. No gradient.
    """

    candidates: int = 8
    edits: int = 8
    scale: float = 0.05
    aggregate: Aggregate = "min"
    bound: float = 3.0
    critics: int = 2
    width: int = 256
    depth: int = 3
    target: str = "target"

    @property
    def draws(self) -> int:
        """Of the matching error, of the edit of a, and of the candidates of s' and their edits."""
        return 2 + self.candidates + self.edits

    @property
    def beside(self) -> Mapping[str, Beside]:
        """The critics, the editor and its temperature."""
        form = {"width": self.width, "depth": self.depth}
        return {
            "q": Beside("q", copies=self.critics, **form),
            "editor": Beside("editor", **form),
            "temperature": Beside("number"),
        }

    @property
    def acting(self) -> Acting:
        return Acting(
            bound=self.bound,
            candidates=self.candidates,
            critic="q",
            aggregate=self.aggregate,
            editor="editor" if self.edits else "",
            edits=self.edits,
            edit_scale=self.scale,
        )

    def measure(self, policy: Any, found: Decisions) -> dict[str, Tensor]:
        noise, edit_noise = found.noise[:, 0], found.noise[:, 1]
        with torch.no_grad():
            proposed = policy.proposed(found.after, found.noise[:, 2:])
            with policy.using(self.target) as asked:
                later = asked.liked(found.after, proposed).max(dim=1).values
        said = {
            "logp": -matching_error(policy, found, noise),
            "next_value": torch.where(found.continues, later, torch.zeros_like(later)),
            **critics_of(policy.ask("q", found.seen, found.action)),
        }
        if not self.edits:
            return said
        added, log = policy.edit(found.seen, found.action, edit_noise)
        return {
            **said,
            "q_own": policy.ask("q", found.seen, found.action + added, fixed=True).mean(dim=0),
            "edit_log_density": log,
            "temperature": policy.ask("temperature", found.seen),
            "entropy_excess": added[0].numel() / 2 - log.detach(),
        }

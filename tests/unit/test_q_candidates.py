"""Off-policy methods that choose among several chunks: what they come to, in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, Normal, TanhTransform, TransformedDistribution

from flowrl.composition import build
from flowrl.estimators.q_candidates import EditedActions, OptimizedActions
from flowrl.estimators.q_learning import Decisions, matching_error
from flowrl.models.control.policy import ControlPolicy
from flowrl.parts.q_candidates import Edited
from flowrl.types import Acting, Beside, Likelihood, Prompt
from tests.contract.toy_environment import toy_policy
from tests.contract.toys import disturb

SEEN = torch.randn(6, 1, 2, generator=torch.Generator().manual_seed(1))


class Hill(nn.Module):
    """A critic ``-|a - top|^2``, of two copies that differ by a constant."""

    def __init__(self, top: float = 0.5, flat: float = 1.0) -> None:
        super().__init__()
        self.top, self.flat = top, flat

    def forward(self, features: Tensor, chunk: Tensor | None = None, fixed: bool = False) -> Tensor:
        assert chunk is not None
        said = -self.flat * (chunk.flatten(1) - self.top).square().sum(dim=1)
        return torch.stack([said, said - 1])


def acting_policy(estimator: Any, critic: nn.Module | None = None) -> ControlPolicy:
    policy = toy_policy(beside=estimator.beside, acting=estimator.acting)
    disturb(policy, 0.3)
    if critic is not None:
        policy.network.beside["q"] = critic
    policy.update_ema("target", 0.0)
    return policy


def decisions(policy: ControlPolicy, estimator: Any) -> Decisions:
    condition = policy.condition([Prompt("", 0)] * len(SEEN)).seeing(SEEN)
    noise = torch.randn(len(SEEN), estimator.draws, *policy.latent_shape, generator=torch.Generator().manual_seed(2))
    action = torch.randn(len(SEEN), *policy.latent_shape, generator=torch.Generator().manual_seed(3))
    going = torch.arange(len(SEEN)) % 2 == 0
    one, at = torch.ones(len(SEEN), dtype=torch.int64), torch.linspace(0.1, 0.9, len(SEEN))
    return Decisions(condition, condition, action, action[:, None], one, going, noise, at)


def test_steps_up_a_hill_are_those_of_gradient_ascent_and_a_worse_end_is_left() -> None:
    """Of ``-|a - c|^2``, n steps of rate r make ``c + (1 - 2 r)^n (a - c)``; one that overshoots counts not."""
    for rate, share in ((0.1, 0.8**4), (1.5, 1.0)):
        policy = acting_policy(OptimizedActions(candidates=3, keep=3, climb=4, rate=rate, bound=50.0), Hill())
        condition = policy.condition([Prompt("", 0)] * 6).seeing(SEEN)
        chunks = torch.randn(6, 3, 1, 2)
        found = policy.climbed(condition, chunks)
        assert torch.allclose(found, 0.5 + share * (chunks - 0.5), atol=1e-6)
    kept = acting_policy(OptimizedActions(candidates=3, keep=3, climb=9, rate=0.4, bound=0.3), Hill())
    assert torch.allclose(kept.climbed(condition, 0.1 * chunks), torch.full_like(chunks, 0.3))


def test_the_best_of_the_kept_ones_acts() -> None:
    policy = acting_policy(OptimizedActions(candidates=5, keep=2, climb=0), Hill())
    found = decisions(policy, OptimizedActions(candidates=5))
    proposed = policy.proposed(found.seen, found.noise[:, :5])
    worth = -(proposed - 0.5).square().flatten(2).sum(dim=2)
    order = worth.argsort(dim=1)
    rows = torch.arange(6)
    kept = policy.kept(found.seen, proposed)
    assert torch.equal(kept[:, 1], proposed[rows, order[:, -1]]) and torch.equal(
        kept[:, 0], proposed[rows, order[:, -2]]
    )
    assert torch.equal(policy.act(found.seen, found.noise[:, :5]), kept[:, 1])


def test_one_candidate_without_steps_is_imitation_of_what_was_recorded() -> None:
    estimator = OptimizedActions(candidates=1, keep=1, climb=0, width=16)
    policy = acting_policy(estimator)
    found = decisions(policy, estimator)
    said = estimator.measure(policy, found)
    assert torch.equal(said["logp"], -matching_error(policy, found, found.noise[:, 0]))
    assert float(said["improvement"].abs().max()) == 0
    plain = toy_policy()
    plain.network.load_state_dict({k: v for k, v in policy.network.state_dict().items() if "beside" not in k})
    wanted = plain.integrate(found.noise[:, 1], found.seen).clamp(-3, 3)
    assert torch.equal(policy.act(found.seen, found.noise[:, 1:2]), wanted)


def test_what_is_imitated_is_drawn_by_the_softmax_of_q_or_the_best() -> None:
    liked = torch.tensor([[0.0, 1.0, 2.0]]).expand(20000, 3)
    choice = torch.randn(20000, 1, 2, generator=torch.Generator().manual_seed(0))
    chosen = OptimizedActions()._chosen(liked, choice)
    share = torch.bincount(chosen, minlength=3) / 20000
    wanted = torch.tensor([0.0, 1.0, 2.0]).softmax(dim=0)
    assert bool(((share - wanted).abs() < 4 * (wanted * (1 - wanted) / 20000).sqrt()).all())
    assert OptimizedActions(distill="argmax")._chosen(liked, choice).unique().tolist() == [2]


def test_the_recorded_action_stands_in_the_place_of_the_worst() -> None:
    estimator = OptimizedActions(candidates=4, keep=2, climb=3, rate=0.05, distill="argmax")
    policy = acting_policy(estimator, Hill(flat=2.0))
    found = decisions(policy, estimator)
    said = estimator.measure(policy, found)
    proposed = policy.proposed(found.seen, found.noise[:, 2:6])
    worth = -(proposed - 0.5).square().flatten(2).sum(dim=2)
    best = proposed[torch.arange(6), worth.argmax(dim=1)]
    own = -(found.action - 0.5).square().flatten(1).sum(dim=1)
    better = torch.where((own > worth.max(dim=1).values)[:, None, None], found.action, best)
    taught = 0.5 + 0.8**3 * (better - 0.5)  # 1 - 2 * .05 * 2
    assert torch.allclose(said["logp"], -matching_error(policy, found._replace(action=taught), found.noise[:, 0]))
    assert bool((own > worth.max(dim=1).values).any()) and not bool((own > worth.max(dim=1).values).all())
    following = policy.proposed(found.after, found.noise[:, 6:])
    least = -2 * (0.8**3 * (following - 0.5)).square().flatten(2).sum(dim=2).amin(dim=1) - 1  # the lower copy
    assert torch.allclose(said["next_value"], torch.where(found.continues, least, 0.0), atol=1e-5)


def test_the_density_of_an_edit_is_that_of_a_scaled_tanh_of_a_normal() -> None:
    policy = acting_policy(EditedActions(scale=0.7, width=16, depth=1))
    condition = policy.condition([Prompt("", 0)] * 6).seeing(SEEN)
    chunk, noise = torch.randn(6, 1, 2), torch.randn(6, 1, 2)
    added, log = policy.edit(condition, chunk, noise)
    mean, log_std = policy.ask("editor", condition, chunk).double().unbind(dim=1)
    law = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform(), AffineTransform(0.0, 0.7)])
    assert torch.allclose(log.double(), law.log_prob(added.double()).flatten(1).sum(dim=1), atol=1e-4)
    assert float(added.detach().abs().max()) < 0.7
    far, _ = policy.edit(condition, chunk, 50 * noise)  # saturated, and still finite
    assert (
        bool(policy.edit(condition, chunk, 50 * noise)[1].isfinite().all()) and float(far.detach().abs().max()) <= 0.7
    )


def test_without_edits_or_with_a_critic_that_knows_nothing_the_base_acts() -> None:
    for estimator in (EditedActions(candidates=1, edits=0), EditedActions(candidates=3, edits=2)):
        policy = acting_policy(estimator, Hill(flat=0.0))
        found = decisions(policy, estimator)
        noise = found.noise[:, : estimator.acting.noises]
        base = policy.integrate(noise[:, 0], found.seen).clamp(-3, 3)
        assert torch.allclose(policy.act(found.seen, noise), base, atol=1e-6)
        assert ("q_own" in estimator.measure(policy, found)) == bool(estimator.edits)


def test_the_critic_chooses_among_candidates_and_edits() -> None:
    estimator = EditedActions(candidates=3, edits=3, scale=0.5, width=16, depth=1)
    policy = acting_policy(estimator, Hill())
    found = decisions(policy, estimator)
    said = estimator.measure(policy, found)
    base = torch.stack([policy.integrate(found.noise[:, 2 + k], found.after).clamp(-3, 3) for k in range(3)], dim=1)
    edits = [base[:, k] + policy.edit(found.after, base[:, k], found.noise[:, 5 + k])[0] for k in range(3)]
    every = torch.cat([base, torch.stack(edits, dim=1).clamp(-3, 3)], dim=1)
    worth = -(every - 0.5).square().flatten(2).sum(dim=2)
    assert torch.allclose(said["next_value"], torch.where(found.continues, worth.amax(dim=1) - 1, 0.0), atol=1e-5)
    assert len(set(worth.argmax(dim=1).tolist())) > 1
    acted = policy.act(found.seen, found.noise[:, 2:])
    assert torch.allclose(acted, every[torch.arange(6), worth.argmax(dim=1)], atol=1e-6)


def test_the_temperature_moves_to_the_wanted_entropy_and_the_editor_uphill() -> None:
    """``dL/d log T = T (H - H*)``; the editor's gradient is that of ``T log p(e) - Q(s, a + e)``, and nobody else has
    one of these terms."""
    estimator = EditedActions(candidates=2, edits=2, scale=0.5, width=16, depth=1)
    policy = acting_policy(estimator, Hill())
    with torch.no_grad():
        policy.network.beside["temperature"].log.fill_(math.log(0.3))
    found = decisions(policy, estimator)
    said = estimator.measure(policy, found)
    n = len(SEEN)
    extra = {name: value[:, None] for name, value in said.items() if name != "logp"}
    batch: Any = type("Batch", (), {"advantage": torch.zeros(n, 1), "weight": torch.ones(n, 1)})
    loss = Edited()(Likelihood(said["logp"][:, None], extra), batch).mean()
    own = {name: p for name, p in policy.network.named_parameters() if p.requires_grad}
    slopes = dict(zip(own, torch.autograd.grad(loss, list(own.values()), allow_unused=True), strict=True))
    added, log = policy.edit(found.seen, found.action, found.noise[:, 1])
    assert torch.allclose(slopes["beside.temperature.log"], 0.3 * (-log.mean() + 1).detach(), atol=1e-5)
    uphill = (0.3 * log + (found.action + added - 0.5).square().flatten(1).sum(dim=1) + 0.5).mean()
    error = matching_error(policy, found, found.noise[:, 0]).mean()
    for term, part in ((uphill, "beside.editor."), (error, "body.")):
        names = [name for name in own if name.startswith(part)]
        wanted = torch.autograd.grad(term, [own[name] for name in names])
        assert names and all(torch.allclose(slopes[name], w, atol=1e-5) for name, w in zip(names, wanted, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Acting(candidates=2, critic="q", edits=1), "edits=1"),
        (lambda: Acting(candidates=2, critic="q", editor="e", edits=3), "edits=3"),
        (lambda: Acting(candidates=2, critic="q", keep=3), "keep=3"),
        (lambda: Acting(climb=3), "candidates=1"),
        (lambda: Acting(critic="q", climb=-1), "climb=-1"),
        (lambda: Edited(gamma=2), "gamma=2"),
        (lambda: Beside("number", width=0), "width=0"),
    ],
)
def test_options_without_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_more_kept_than_there_are_candidates_are_all() -> None:
    a = build({"use": "pa_rl", "candidates": 4, "keep": 10})
    assert a.acting is not None and a.acting.keep == 4

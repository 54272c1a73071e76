"""Policy gradients against enumeration: which presets are exact, and what the others are at the sampling policy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.estimators.masked import MaskedViews
from flowrl.math.masking import through_end
from flowrl.math.random import seeds
from flowrl.models.tiny_text import TinyText
from flowrl.parts.bounds import lower_bound, upper_bound
from flowrl.parts.selections import mixed
from flowrl.samplers.chunks import sample
from flowrl.samplers.masked import MaskedSampler
from flowrl.step import UpdateSettings, improve
from flowrl.types import Draw, Likelihood, Scores, TokenTrace, ViewRows, prompts_of
from tests.contract.toys import GROUP, Iteration, Recorder, gradients, roll, rollout_of, small, start

END = 0


def causal_policy() -> TinyText:
    return TinyText(3, 2, causal=True, end=END, dtype=torch.float64)


def completions() -> Tensor:
    """Every completion of up to two tokens, padded after the end."""
    found = {(a, b if a != END else END) for a, b in itertools.product(range(3), repeat=2)}
    return torch.tensor(sorted(found))


def prize(tokens: Tensor) -> Tensor:
    return (tokens[:, 0] * 2.0 + (tokens[:, 1] == 1) * 1.5 - (tokens[:, 0] == tokens[:, 1]) * 0.7).double()


def log_likelihood(policy: TinyText, tokens: Tensor) -> Tensor:
    mask = through_end(tokens, END)
    scores = policy.score(policy.condition(prompts_of([""] * len(tokens))), tokens, mask, tokens)
    return scores.logp.sum(dim=1)


def exact_gradient(policy: TinyText) -> Tensor:
    """Of the expected reward, with respect to the table."""
    every = completions()
    value = (log_likelihood(policy, every).exp() * prize(every)).sum()
    return torch.autograd.grad(value, policy.table)[0].flatten()


def measured_gradient(policy: TinyText, name: str, tokens: Tensor, **spec: Any) -> Tensor:
    """What one update of an algorithm would do for one group with these completions."""
    algorithm = composition.build({"use": name, "length": 2, **spec})
    count = len(tokens)
    group = torch.zeros(count, dtype=torch.long)
    trace = TokenTrace(tokens, through_end(tokens, END), 1.0)
    rollout = rollout_of(policy.condition(prompts_of([""] * count)), tokens, trace, seeds=seeds(0, "s", count=count))
    scores = Scores(prize(tokens)[:, None], torch.ones(1).double(), ("prize",), group, group, torch.ones(count).bool())
    recorder = Recorder(policy.parameters())
    advantage = algorithm.advantage(scores, {})
    improve(
        policy,
        recorder,
        algorithm,
        rollout,
        scores,
        advantage,
        UpdateSettings(max_grad_norm=1e9),
    )
    return -recorder.gradients[0][: policy.table.numel()]


@pytest.mark.parametrize(("name", "factor"), [("reinforce", 1.0), ("rloo", 1.0), ("remax", 1.0), ("dr_grpo", 0.25)])
def test_the_mean_gradient_is_exact(name: str, factor: float) -> None:
    """Over all pairs of completions, weighted by their probability. Dr. GRPO divides by the length (2) and its baseline
    contains the sample itself, (G - 1) / G = 1/2: proportional to the exact one."""
    policy = causal_policy()
    every = completions()
    chance = log_likelihood(policy, every).exp().detach()
    assert float(chance.sum()) == pytest.approx(1)
    greedy = int(policy.table[0, -1, 0].argmax())
    second = int(policy.table[0, policy.state(torch.tensor([greedy, 3])), 1].argmax())
    best = torch.tensor([greedy, second if greedy != END else END])
    total = torch.zeros(policy.table.numel(), dtype=torch.float64)
    for i in range(len(every)):
        if name == "remax":
            total += chance[i] * measured_gradient(policy, name, torch.stack([best, every[i]]))
            continue
        for j in range(len(every)):
            total += chance[i] * chance[j] * measured_gradient(policy, name, every[torch.tensor([i, j])])
    assert torch.allclose(total, factor * exact_gradient(policy), atol=1e-12)


def test_a_mean_over_tokens_is_not_exact() -> None:
    """GRPO divides by the length of each completion, so its gradient points elsewhere: why rloo and reinforce sum."""
    policy, every = causal_policy(), completions()
    chance = log_likelihood(policy, every).exp().detach()
    total = torch.zeros(policy.table.numel(), dtype=torch.float64)
    for i, j in itertools.product(range(len(every)), repeat=2):
        total += chance[i] * chance[j] * measured_gradient(policy, "grpo", every[torch.tensor([i, j])], kl=0.0)
    exact = exact_gradient(policy)
    cosine = float(total @ exact / total.norm() / exact.norm())
    assert 0.5 < cosine < 0.999


# ------------------------------------------------------------------------------------------------ masked trajectories
def law(policy: TinyText, order: str) -> Tensor:
    """[3, 3] probability of each completion of two tokens under a sampler that fixes one position per step."""
    logp = policy.table[0].log_softmax(dim=-1)

    def at(tokens: tuple[int, int], hidden: tuple[bool, bool], i: int) -> Tensor:
        canvas = torch.tensor([3 if h else t for t, h in zip(tokens, hidden, strict=True)])
        return logp[policy.state(canvas), i, tokens[i]].exp()

    empty = logp[policy.state(torch.tensor([3, 3]))]
    out = []
    for tokens in itertools.product(range(3), repeat=2):
        paths = [at(tokens, (True, True), i) * at(tokens, (i == 1, i == 0), 1 - i) for i in (0, 1)]
        if order == "random":
            share = torch.tensor([0.5, 0.5]).double()
        else:
            first = {"leftmost": 0, "max_prob": int(empty.exp().amax(dim=1).argmax())}[order]
            share = torch.tensor([float(first == 0), float(first == 1)]).double()
        out.append(share[0] * paths[0] + share[1] * paths[1])
    return torch.stack(out).reshape(3, 3)


def trajectory_gradient(policy: TinyText, order: str, count: int) -> Tensor:
    """The mean gradient of `trajectory_pg` over many samples."""
    algorithm = composition.build(
        {"use": "trajectory_pg", "length": 2, "steps": 2, "block": 2, "sampler": {"order": order}}
    )
    group = torch.zeros(count, dtype=torch.long)
    draw = Draw.of(seeds(3, "path", count=count), group, 0, 0)
    rollout = sample(algorithm.sampler, policy, policy.condition(prompts_of([""] * count)), draw, count)
    prizes = prize(rollout.final)[:, None]
    scores = Scores(prizes, torch.ones(1).double(), ("prize",), group, group, torch.ones(count).bool())
    recorder = Recorder(policy.parameters())
    settings = UpdateSettings(max_grad_norm=1e9, micro_batch=10**6)
    improve(policy, recorder, algorithm, rollout, scores, algorithm.advantage(scores, {}), settings)
    return -recorder.gradients[0][: policy.table.numel()]


@pytest.mark.parametrize(("order", "end"), [("leftmost", -1), ("random", -1), ("max_prob", -1), ("random", END)])
def test_trajectory_gradients_are_exact_for_orders_that_do_not_look_at_the_drawn_token(order: str, end: int) -> None:
    """With an end token as well: what a block holds behind it was drawn and shown to later steps, but not rewarded."""
    policy = TinyText(3, 2, end=end, dtype=torch.float64)
    measured = trajectory_gradient(policy, order, 20_000)
    tokens = torch.tensor(list(itertools.product(range(3), repeat=2)))
    tokens = torch.where(through_end(tokens, end), tokens, policy.pad_token)
    value = (law(policy, order).flatten() * prize(tokens)).sum()
    exact = torch.autograd.grad(value, policy.table)[0].flatten()
    assert float((measured - exact).norm() / exact.norm()) < 0.04


def test_choosing_positions_by_the_drawn_token_biases_the_trajectory_gradient() -> None:
    """The mean score of a sampler's own path is 0 where it is exact; with LLaDA's order it is not."""
    policy, count = TinyText(3, 2, scale=1.5, dtype=torch.float64), 20_000
    means = {}
    for order in ("max_prob", "low_confidence"):
        sampler = MaskedSampler(length=2, steps=2, block=2, order=order)
        assert sampler.exact == (order == "max_prob")
        group = torch.zeros(count, dtype=torch.long)
        draw = Draw.of(seeds(3, "path", count=count), group, 0, 0)
        rollout = sampler(policy, policy.condition(prompts_of([""] * count)), draw)
        algorithm = composition.build({"use": "trajectory_pg", "length": 2, "steps": 2, "block": 2})
        probe = algorithm.estimator.probe(rollout, policy, draw.seeds)
        logp = algorithm.estimator(policy, probe, rollout.condition).logp.sum() / count
        means[order] = float(torch.autograd.grad(logp, policy.table)[0].norm())
    assert means["max_prob"] < 0.02 < 0.1 < means["low_confidence"]


# --------------------------------------------------------------------------- what every masked preset is on policy
def view_sums(it: Iteration, rows: ViewRows, corrupt: float) -> Tensor:
    """[N, m, L] live log-probabilities with gradient."""
    n, m, length = rows.inputs.shape
    cells = replace(rows, per="cell")
    estimator = MaskedViews(per="cell", corrupt=corrupt)
    return estimator(it.policy, cells, it.rollout.condition).logp.double().reshape(n, m, length)


def token_mean(lp: Tensor, rows: ViewRows, a: Tensor) -> Tensor:
    return (a[:, None, None] * lp * rows.targets).sum() / rows.targets.sum()


def sample_token_mean(lp: Tensor, rows: ViewRows, a: Tensor) -> Tensor:
    return (a * (lp * rows.targets).sum(dim=(1, 2)) / rows.targets.sum(dim=(1, 2))).mean()


def bound_mean(lp: Tensor, rows: ViewRows, a: Tensor) -> Tensor:
    return (a * (lp * rows.weights).sum(dim=2).mean(dim=1)).mean()


def coupled_mean(lp: Tensor, rows: ViewRows, a: Tensor) -> Tensor:
    token = (lp * rows.weights).mean(dim=1)
    return (a[:, None] * token * rows.content).sum() / rows.content.sum()


def spg_mean(lp: Tensor, rows: ViewRows, a: Tensor) -> Tensor:
    length = rows.content.sum(dim=1).double()
    flat = replace(rows, per="cell")
    low, high = lower_bound(lp.flatten(1), flat), upper_bound(lp.flatten(1), flat, 1.5)
    score = torch.where(a >= 0, low, 0.5 * low + 0.5 * high)
    return (a * score / length * length / length.mean()).mean()


def gdpo_mean(lp: Tensor, rows: ViewRows, a: Tensor) -> Tensor:
    """Of the ratio ``exp((B - B_old) / length)``, with every node's mask holding floor(t length) positions."""
    length = rows.content.sum(dim=1).double()
    return (a / length * (lp * rows.weights).sum(dim=2).mean(dim=1)).mean()


def wd1_sum(lp: Tensor, rows: ViewRows, a: Tensor) -> Tensor:
    return (a * (lp * rows.targets).sum(dim=(1, 2))).mean()


def row_mean(lp: Tensor, rows: ViewRows, a: Tensor) -> Tensor:
    """Over the views that ask for something, of all completions together."""
    asked = rows.targets.sum(dim=2)
    each = (lp * rows.targets).sum(dim=2) / asked.clamp(min=1)
    return (a[:, None] * each).sum() / (asked > 0).sum()


def pair_logistic(lp: Tensor, rows: ViewRows, a: Tensor) -> Tensor:
    """At the reference: slope beta / 2 for the winner and against the loser, and the SFT term."""
    bound = (lp * rows.weights).sum(dim=2).mean(dim=1)
    length, beta, sft = rows.content.sum(dim=1), 0.2, 0.05
    pairs = int((a > 0).sum())
    return sum((0.5 * beta * a * bound + sft * (a > 0) * bound / length)[a != 0]) / pairs


def path_mean(lp: Tensor, rows: ViewRows, a: Tensor) -> Tensor:
    """Over all positions of the canvas, of the samples whose advantage is not 0."""
    return (a * (lp * rows.targets).sum(dim=(1, 2))).sum() / (a != 0).sum() / lp.shape[2]


def step_mean(lp: Tensor, rows: ViewRows, a: Tensor) -> Tensor:
    asked = rows.targets.sum(dim=(0, 2))
    each = (a[:, None, None] * lp * rows.targets).sum(dim=(0, 2)) / asked.clamp(min=1)
    return each.sum() / (asked > 0).sum()


def flatless_mean(lp: Tensor, rows: ViewRows, a: Tensor) -> Tensor:
    """Of the groups that have a spread."""
    kept = (a.view(len(a) // GROUP, GROUP) != 0).any(dim=1).repeat_interleave(GROUP)
    return token_mean(lp[kept], replace(rows, targets=rows.targets[kept]), a[kept])


def normalised_mean(lp: Tensor, rows: ViewRows, a: Tensor) -> Tensor:
    """Every sample weighs 1/n before the first update."""
    flat, length = replace(rows, per="cell"), rows.content.sum(dim=1).double()
    low, high = lower_bound(lp.flatten(1), flat), upper_bound(lp.flatten(1), flat, 1.5)
    return (a * torch.where(a >= 0, low, 0.5 * low + 0.5 * high) / length).mean()


def two_states(lp: Tensor, rows: ViewRows, a: Tensor) -> Tensor:
    """A token by the ratio of what it is here to what it was when it was drawn, at most 2."""
    weight = (lp.detach() - rows.drawn_logp[:, None]).exp().clamp(max=2.0)
    return (a[:, None, None] * weight * lp * rows.targets).sum() / rows.targets.sum()


def predicted(lp: Tensor, rows: ViewRows, a: Tensor) -> Tensor:
    """Every prediction by the advantage of its step, the length over the number masked, and its own probability."""
    share = rows.weights / rows.weights.shape[1]
    return (a[:, :, None] * share * lp.detach().exp() * lp * rows.targets).sum() / rows.targets.sum()


def edge_mean(lp: Tensor, rows: ViewRows, a: Tensor) -> Tensor:
    """The mean over a branch's tokens, then over all branches, each once; the advantage is a branch's own."""
    group = torch.arange(len(a)) // GROUP
    terms = {}
    for row in range(len(a)):
        for level in range(rows.targets.shape[1]):
            asked = rows.targets[row, level]
            if bool(asked.any()):
                assert rows.shared is not None
                edge = (int(group[row]), level, int(rows.shared[row, level]))
                terms[edge] = a[row, level] * lp[row, level][asked].mean()
    return torch.stack(list(terms.values())).mean()


def hinted_mean(lp: Tensor, rows: ViewRows, a: Tensor, it: Iteration) -> Tensor:
    """Of the samples that take part, and of given tokens the least certain one of a view: a fifth of three at most."""
    assert rows.given is not None
    tokens = [value[:, 0] for value in (rows.inputs, rows.targets, rows.labels)]
    entropy = it.policy.score(it.rollout.condition, *tokens, entropy=True).entropy[:, None]
    given = rows.targets & rows.given[:, None]
    least = torch.where(given, entropy, -1.0)
    counted = rows.targets & (~given | (least == least.amax(dim=2, keepdim=True)))
    counted &= mixed(it.scores, 0.6, 4)[:, None, None]
    return (a[:, None, None] * lp * counted).sum() / counted.sum()


FORMS: dict[str, Callable[..., Tensor]] = {
    "diffu_grpo": token_mean,
    "sepo": token_mean,
    "coupled_grpo": coupled_mean,
    "unigrpo": bound_mean,
    "spg": spg_mean,
    "gdpo_dllm": gdpo_mean,
    "elbo_pg": bound_mean,
    "bgpo": bound_mean,
    "vrpo": pair_logistic,
    "wd1": wd1_sum,
    "tracerl": row_mean,
    "trajectory_pg": wd1_sum,
    "just_grpo": path_mean,
    "agrpo": bound_mean,
    "d2": token_mean,
    "cj_grpo": step_mean,
    "espo": gdpo_mean,
    "ebpo": bound_mean,
    "stable_drl": normalised_mean,
    "dipo": flatless_mean,
    "d_treerpo": edge_mean,
    "diffpo": two_states,
    "reflect_rollout": wd1_sum,
    "mdpo_dllm": predicted,
    "igpo": hinted_mean,
}
MASKED = [name for name in composition.preset_names() if composition.build(name).family == "masked"]


def test_every_masked_preset_has_its_form() -> None:
    assert sorted(FORMS) == MASKED


@pytest.mark.parametrize("name", MASKED)
def test_at_the_sampling_policy_the_gradient_is_a_linear_combination_of_view_scores(name: str) -> None:
    algorithm = replace(small(name), regularizers=())
    policy = start(small(name))
    it = roll(algorithm, policy)
    rows = algorithm.estimator.probe(it.rollout, policy, it.draw.seeds)
    measured = gradients(algorithm, it)[0]
    known = (it,) if name == "igpo" else ()
    value = FORMS[name](view_sums(it, rows, algorithm.estimator.corrupt), rows, it.advantage, *known)
    parts = torch.autograd.grad(value, policy.parameters(), allow_unused=True)
    exact = torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(policy.parameters(), parts, strict=True)]
    )
    assert float(exact.norm()) > 0
    assert torch.allclose(-measured, exact, atol=2e-6 * float(exact.norm()), rtol=1e-4)


def test_bgpo_is_a_lower_bound_off_policy_and_equal_on_policy() -> None:
    from flowrl.parts.objectives import LinearBound
    from flowrl.types import Batch, Rows

    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        d = torch.randn(4, 3, generator=generator).double()
        advantage = torch.randn(4, 1, generator=generator).double()
        old = Likelihood(torch.zeros(4, 3).double())
        batch = Batch(advantage.expand(4, 3), old, torch.ones(4, 3), torch.zeros(4), Rows())
        bound = -LinearBound(most=1e9)(Likelihood(d), batch).mean(dim=1)
        assert bool((bound <= advantage[:, 0] * d.mean(dim=1).exp() + 1e-12).all())
        even = -LinearBound()(Likelihood(torch.zeros(4, 3).double()), batch).mean(dim=1)
        assert torch.allclose(even, advantage[:, 0])


def test_families_share_their_parts() -> None:
    """Image and text presets of the same idea use the same advantage and objective objects, and one trainer."""
    build = composition.build
    assert type(build("flow_grpo").objective) is type(build("grpo").objective) is type(build("diffu_grpo").objective)
    assert type(build("flow_grpo").advantage) is type(build("grpo").advantage) is type(build("diffu_grpo").advantage)
    assert type(build("loop").advantage) is type(build("rloo").advantage) is type(build("trajectory_pg").advantage)
    assert type(build("fpo").objective) is type(build("gspo").objective) is type(build("gdpo_dllm").objective)
    assert type(build("ddpo_sf").objective) is type(build("reinforce").objective) is type(build("wd1").objective)
    assert type(build("flow_grpo").regularizers[0]) is type(build("grpo").regularizers[0])

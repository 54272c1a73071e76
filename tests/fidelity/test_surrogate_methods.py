"""Presets on masks, bounds and other surrogates, against the losses of their releases and ports written out here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowrl import composition
from tests.fidelity import cell, release
from tests.fidelity.bench import alike, trial
from tests.fidelity.text import TextTrial, centred, clipped, k3, mean_over, standardised, text_trial

release("flow_dppo", "UniRL (flowdppo.py); verl-omni")
release("forking_tokens", "TRL 1.16.0 (top_entropy_quantile)")
release("clip_cov, kl_cov", "verl 0.9.1 (clip_cov, kl_cov), from PRIME-RL/Entropy-Mechanism-of-RL")
release("steer", "zz-haooo/STEER")
release("clip_b", "agentscope-ai/Trinity-RFT (entropy discriminator)")
release("bapo", "WooooDyy/BAPO")
release("hapo", "starriver030515/HAPO")
release("gppo", "suu990901/KlearReasoner")
release("kl3_clip", "the paper alone; notes of others")
release("spo_simple", "MyRepositories-hub/Simple-Policy-Optimization")
release("cfpo", "the paper alone; two independent ports")
release("sapo, luspo, vespo", "TRL 1.16.0 (loss_type of that name)")
release("gmpo", "verl 0.9.1 (geo_mean)")
release("topr, m2po, asymre", "agentscope-ai/Trinity-RFT (a port)")
release("rec, opmd", "agentscope-ai/Trinity-RFT")
release("dppo_tv", "verl 0.9.1 (divergence masks); prime-rl for the threshold")
release("minirl", "the paper alone, notes of others")
release("r2vpo", "the paper alone; two independent ports")
release("mdpo", "manantomar/Mirror-Descent-Policy-Optimization")
release("rpg_kl", "complex-reasoning/RPG")
release("chi2_reg", "cassidylaidlaw/llm_optimization")
release("llds", "vengdeng/LLDS")
release("etr", "the abstract alone")

Each = Callable[[TextTrial, Tensor, Tensor], Tensor]


def wide(a: Tensor, t: TextTrial) -> Tensor:
    """[N, L] the advantage of a sample at each of its tokens."""
    return a[:, None].expand(t.content.shape)


def tokens(loss: Tensor, t: TextTrial) -> Tensor:
    return mean_over(loss, t.content)


def samples(loss: Tensor, t: TextTrial) -> Tensor:
    return mean_over(loss, t.content, 1).mean()


def sums(loss: Tensor, t: TextTrial) -> Tensor:
    return torch.where(t.content, loss, 0.0).sum(dim=1).mean()


def same(
    name: str,
    each: Each,
    mean: Callable[[Tensor, TextTrial], Tensor] = tokens,
    advantage: Callable[[TextTrial], Tensor] = lambda t: standardised(t.rewards, 1),
    off: float = 1.0,
    **spec: Any,
) -> TextTrial:
    """A preset's gradient is that of a loss of log-ratios and advantages [N, L]."""
    t = text_trial(name, off=off, **spec)
    loss = each(t, t.live - t.old, wide(advantage(t), t))
    assert alike(t.gradient, t.gradient_of(mean(loss, t)))
    return t


def entropy(t: TextTrial, held: str = "") -> Tensor:
    """[N, L] of the moved weights, or of a weight set."""
    with torch.no_grad():
        if held:
            with t.policy.using(held):
                logits = t.policy._rows(t.it.rollout.condition, t.it.rollout.trace.tokens)[0].double()
        else:
            logits = t.policy._rows(t.it.rollout.condition, t.it.rollout.trace.tokens)[0].double()
        return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


def defaults(name: str) -> Any:
    return composition.build(name)


# ---------------------------------------------------------------------------------------------------------------- masks
@cell(
    "flow_dppo", "loss, gradient", "equal", "-A times the ratio, without steps beyond the divergence that would go on"
)
def test_flow_dppo_gradient() -> None:
    t = trial("flow_dppo", off=0.02, threshold=2e-4, steps=8)
    rows = t.probe()
    n, d = rows.t.shape
    a, b, s = rows.dynamics.coefficients(rows.t, rows.t_next)
    index = t.rollout.condition.index.repeat_interleave(d)
    v = t.policy.guided(rows.x.flatten(0, 1), rows.t.flatten().float(), index, 1.0).view(n, d, -1)
    mean = a[..., None] * rows.x + b[..., None] * v
    old = -((rows.x_next - rows.mean) ** 2).mean(dim=-1) / (2 * s**2)
    log_ratio = -((rows.x_next - mean) ** 2).mean(dim=-1) / (2 * s**2) - old
    moved = ((mean - rows.mean) ** 2).mean(dim=-1) / (2 * s**2)
    advantage = t.advantage[:, None]
    out = (moved >= 2e-4) & (advantage * log_ratio > 0)
    assert 0.02 < float(out[t.advantage != 0].double().mean()) < 0.9
    loss = torch.where(out, 0.0, -advantage * log_ratio.exp())
    kept = t.algorithm.selection(t.scores, t.advantage)
    assert alike(t.gradient(), t.gradient_of(loss[kept].mean()), 1e-3)


@cell(
    "flow_dppo",
    "defaults",
    "equal",
    "threshold 1e-5, ten steps of which three in the first half, noise .7, no guidance",
)
def test_flow_dppo_settings() -> None:
    made = defaults("flow_dppo")
    assert (made.loss_masks[0].threshold, made.sampler.steps, made.sampler.window.size) == (1e-5, 10, 3)
    assert (made.sampler.guidance, made.sampler.dynamics.noise_level, made.regularizers) == (1.0, 0.7, ())
    assert (made.advantage.scale, made.sampler.record_mean) == ("global", True)


@cell(
    "forking_tokens", "loss, gradient", "equal", "DAPO's loss of tokens at or above the quantile, mean over all tokens"
)
def test_forking_gradient() -> None:
    def each(t: TextTrial, d: Tensor, a: Tensor) -> Tensor:
        h = entropy(t)
        kept = h >= torch.quantile(h[t.content & ended(t)[:, None]], 0.7)
        return torch.where(kept, clipped(d, a, 0.2, 0.28), 0.0)

    def ended(t: TextTrial) -> Tensor:
        return (t.it.rollout.trace.tokens == t.policy.end_tokens[0]).any(dim=1)

    def kept_mean(loss: Tensor, t: TextTrial) -> Tensor:
        return mean_over(loss, t.content & ended(t)[:, None])

    same("forking_tokens", each, kept_mean, share=0.3)


@cell("clip_cov", "loss, gradient", "equal", "PPO's loss without so many tokens of covariance between the bounds")
def test_clip_cov_gradient() -> None:
    t = text_trial("clip_cov", off=1.0, share=0.3, least=-9.0, most=9.0)
    a, d = wide(standardised(t.rewards, 1), t), t.live - t.old
    inside, logp = t.content, t.live.detach()
    covariance = (a - a[inside].mean()) * (logp - logp[inside].mean())
    ratio = d.detach().exp()
    free = torch.where(a > 0, ratio <= 1.2, ratio >= 0.8) & inside & (covariance.abs() < 9)
    wanted = int(0.3 * int(inside.sum()))
    # which of them is drawn is the release's generator's: the same number, of the same tokens
    each = clipped(d, a, 0.2, 0.2)
    mask = t.algorithm.loss_masks[0](*seen(t, logp, a))
    assert int((mask == 0).sum()) == min(wanted, int(free.sum())) and bool(free[mask == 0].all())
    assert alike(t.gradient, t.gradient_of(tokens(each * mask, t)))


def seen(t: TextTrial, logp: Tensor, a: Tensor) -> tuple[Any, Any]:
    """What a mask of the whole batch is given."""
    from flowrl.types import Batch, Likelihood

    weight = t.content.double() / t.content.sum()
    live = Likelihood(logp, {"entropy": entropy(t)})
    return live, Batch(a, Likelihood(t.old.detach()), weight, t.it.rollout.group, t.rows)


@cell("kl_cov", "loss, gradient", "equal", "-A times the ratio, plus |d| of the tokens of the largest covariance")
def test_kl_cov_gradient() -> None:
    def each(t: TextTrial, d: Tensor, a: Tensor) -> Tensor:
        inside, logp = t.content, t.live.detach()
        covariance = torch.where(inside, (a - a[inside].mean()) * (logp - logp[inside].mean()), -math.inf)
        top = covariance >= covariance.flatten().topk(int(0.2 * int(inside.sum()))).values[-1]
        return -a * d.exp() + 0.7 * torch.where(top, d.abs(), 0.0)

    same("kl_cov", each, share=0.2, weight=0.7)


@cell("steer", "loss, gradient", "equal", "dual clip times exp(-k |A / p_old p (1 - p) (log p + H)|), largest .8")
def test_steer_gradient() -> None:
    def each(t: TextTrial, d: Tensor, a: Tensor) -> Tensor:
        p = t.live.detach().exp()
        change = (a / t.old.detach().exp() * p * (1 - p) * (t.live.detach() + entropy(t))).abs()
        k = -math.log(0.8) / max(float(change[t.content].max()), 0.02)
        loss = clipped(d, a, 0.2, 0.28)
        loss = torch.where(a < 0, torch.minimum(loss, -10 * a), loss)
        return loss * (-k * change).exp().clamp(0.8, 1.0)

    same("steer", each)


@cell(
    "clip_b",
    "loss, gradient",
    "equal",
    "PPO's loss without bad tokens far below the mean of p (H + log p), mean over the others",
)
def test_clip_b_gradient() -> None:
    t = text_trial("clip_b", off=1.0, width=0.8)
    a, d = wide(standardised(t.rewards, 1), t), t.live - t.old
    score = t.live.detach().exp() * (entropy(t) + t.live.detach())
    inside = score[t.content]
    kept = t.content & ~((a < 0) & (score < inside.mean() - 0.8 * inside.std()))
    assert 0 < int(kept.sum()) < int(t.content.sum())
    assert alike(t.gradient, t.gradient_of(mean_over(clipped(d, a, 0.2, 0.2), kept)))


@cell(
    "clip_b",
    "loss",
    "deviation",
    "p and the entropy are both the trainer's",
    reason="the release takes p from the inference engine, so p (H + log p) is of no single policy",
)
def test_clip_b_reads_one_policy() -> None:
    assert not hasattr(defaults("clip_b").loss_masks[0], "engine")
    assert defaults("clip_b").loss_masks[0].width == 2.5


@cell(
    "dppo_tv",
    "loss, gradient",
    "equal",
    "-A sg(min(ratio, 20)) log p, without tokens whose probability moved by more, towards A",
)
def test_dppo_gradient() -> None:
    def each(t: TextTrial, d: Tensor, a: Tensor) -> Tensor:
        p, q = t.live.detach().exp(), t.old.detach().exp()
        out = ((p - q).abs() > 0.05) & (a * (p - q) > 0)
        assert 0 < int((out & t.content).sum()) < int(t.content.sum())
        return torch.where(out, 0.0, -a * d.detach().exp().clamp(max=20) * t.live)

    same("dppo_tv", each, threshold=0.05)


@cell(
    "m2po",
    "loss, gradient",
    "equal",
    "-A times the ratio, the largest squared log-ratios left out until their mean is small",
)
def test_m2po_gradient() -> None:
    level = 0.5

    def each(t: TextTrial, d: Tensor, a: Tensor) -> Tensor:
        square = torch.where(t.content, d.detach() ** 2, 0.0)
        eligible = (a * d.detach() > 0) & t.content
        left, out = float(square.sum()), torch.zeros_like(eligible)
        order = torch.where(eligible, square, -1.0).flatten().argsort(descending=True)
        for place in order[: int(eligible.sum())].tolist():
            if left <= level * int(t.content.sum()):
                break
            out.view(-1)[place] = True
            left -= float(square.flatten()[place])
        assert 0 < int(out.sum()) < int(eligible.sum())
        return torch.where(out, 0.0, -a * d.exp())

    same("m2po", each, threshold=level)


@cell("rec", "loss, gradient", "equal", "-A log p of tokens that PPO would not clip")
def test_rec_gradient() -> None:
    def each(t: TextTrial, d: Tensor, a: Tensor) -> Tensor:
        ratio = d.detach().exp()
        out = torch.where(a > 0, ratio > 1.2, (a < 0) & (ratio < 0.8))
        return torch.where(out, 0.0, -a * t.live)

    same("rec", each)


@cell("rec", "loss", "option", "its two-sided and ring forms: `sides: two`, `sides: ring`")
def test_rec_forms() -> None:
    def two(t: TextTrial, d: Tensor, a: Tensor) -> Tensor:
        ratio = d.detach().exp()
        return torch.where((ratio < 0.8) | (ratio > 1.2), 0.0, -a * t.live)

    def ring(t: TextTrial, d: Tensor, a: Tensor) -> Tensor:
        ratio = d.detach().exp()
        kept = ((ratio >= 0.8) & (ratio <= 1.2)) | (ratio < 0.6) | (ratio > 2.0)
        return torch.where(kept, -a * t.live, 0.0)

    same("rec", two, sides="two")
    same("rec", ring, sides="ring")


@cell(
    "minirl",
    "loss, gradient",
    "equal",
    "-A sg(ratio) log p of tokens that PPO would not clip, corrected for the sampler up to 5",
)
def test_minirl_gradient() -> None:
    def each(t: TextTrial, d: Tensor, a: Tensor) -> Tensor:
        ratio = d.detach().exp()
        out = torch.where(a > 0, ratio > 1.27, (a < 0) & (ratio < 0.8))
        return torch.where(out, 0.0, -a * ratio * t.live)  # the toy's sampler is the trainer: weight 1

    t = same("minirl", each)
    assert t.algorithm.token_advantage[0].cap == 5.0


# ----------------------------------------------------------------------------------------------------------- surrogates
@cell("gppo", "loss, gradient", "equal", "PPO's loss with limit ratio / sg(ratio) beyond the clip")
def test_gppo_gradient() -> None:
    def each(t: TextTrial, d: Tensor, a: Tensor) -> Tensor:
        r = d.exp()
        soft = r / r.detach()
        kept = torch.where(r > 1.2, 1.2 * soft, torch.where(r < 0.8, 0.8 * soft, r))
        return -torch.minimum(r * a, kept * a)

    same("gppo", each)


@cell("kl3_clip", "loss, gradient", "equal", "PPO's clip at the ratios .716 and 1.350, where r - 1 - log r is .05")
def test_kl3_gradient() -> None:
    same("kl3_clip", lambda t, d, a: clipped(d, a, 1 - 0.71602, 0.34990), samples)


@cell("spo_simple", "loss, gradient", "equal", "-(r A - |A| (r - 1)^2 / (2 .2)), mean over all tokens")
@cell("cfpo", "loss, gradient", "equal", "the same, mean over a completion's tokens first")
def test_quadratic_gradients() -> None:
    def each(t: TextTrial, d: Tensor, a: Tensor) -> Tensor:
        return -(d.exp() * a - a.abs() * (d.exp() - 1) ** 2 / 0.4)

    same("spo_simple", each)
    same("cfpo", each, samples)


@cell("sapo", "loss, gradient", "equal", "-A 4 / tau sigmoid(tau (r - 1)), tau 1 for A > 0 and 1.05 else")
def test_sapo_gradient() -> None:
    def each(t: TextTrial, d: Tensor, a: Tensor) -> Tensor:
        good, bad = (4 / tau * (tau * (d.exp() - 1)).sigmoid() for tau in (1.0, 1.05))
        return -a * torch.where(a > 0, good, bad)

    same("sapo", each, samples)


@cell("gmpo", "loss, gradient", "equal", "-A exp(mean of log-ratios, each clipped at .4 in the direction of A)")
def test_gmpo_gradient() -> None:
    def each(t: TextTrial, d: Tensor, a: Tensor) -> Tensor:
        kept = a.sign() * torch.minimum(a.sign() * d, torch.tensor(0.4).double())
        return -a * mean_over(torch.where(a == 0, d, kept), t.content, 1).exp()[:, None]

    same("gmpo", each, samples, off=2.0)


@cell("luspo", "loss, gradient", "equal", "GSPO's loss times the number of tokens, mean over completions")
def test_luspo_gradient() -> None:
    t = text_trial("luspo", off=0.3, low=0.03, high=0.04)
    a, length = standardised(t.rewards, 1), t.content.sum(dim=1)
    d = mean_over(t.live - t.old, t.content, 1)
    assert alike(t.gradient, t.gradient_of((clipped(d, a, 0.03, 0.04) * length).mean()))


@cell(
    "vespo",
    "loss, gradient",
    "equal",
    "-sg(e^l w^k e^(-l w)) A log p with the completion's ratio w, mean over all tokens",
)
def test_vespo_gradient() -> None:
    def each(t: TextTrial, d: Tensor, a: Tensor) -> Tensor:
        w = torch.where(t.content, d.detach(), 0.0).sum(dim=1, keepdim=True).exp()
        good, bad = math.e**3 * w**2 * (-3 * w).exp(), math.e**2 * w**3 * (-2 * w).exp()
        return -torch.where(a > 0, good, bad) * a * t.live

    same("vespo", each)


@cell(
    "topr", "loss, gradient", "equal", "-A log p, times min(ratio of the completion, 1) for bad ones, sums over tokens"
)
def test_topr_gradient() -> None:
    def each(t: TextTrial, d: Tensor, a: Tensor) -> Tensor:
        w = torch.where(t.content, d.detach(), 0.0).sum(dim=1, keepdim=True).exp()
        return -torch.where(a > 0, 1.0, w.clamp(max=1)) * a * t.live

    same("topr", each, sums, lambda t: centred(t.rewards))


@cell(
    "topr",
    "defaults",
    "deviation",
    "good is above the group's mean",
    reason="the paper's rewards are 1 and -1; rewards here are of any kind",
)
def test_topr_centres() -> None:
    assert (defaults("topr").advantage.scale, defaults("topr").min_group) == ("none", 2)


@cell("opmd", "loss, gradient", "equal", "-A log p / (1 + tau), A centred")
@cell("asymre", "loss, gradient", "equal", "-(r - mean + .1) log p")
def test_reinforce_relatives() -> None:
    same("opmd", lambda t, d, a: -a * t.live / 2, advantage=lambda t: centred(t.rewards))
    same("asymre", lambda t, d, a: -(a + 0.1) * t.live, advantage=lambda t: centred(t.rewards))


@cell("bapo", "loss, gradient", "option", "its bounds as released: `objective: {contribution: value}`")
def test_bapo_gradient() -> None:
    def each(t: TextTrial, d: Tensor, a: Tensor) -> Tensor:
        r, inside = d.detach().exp(), t.content
        low, high = 0.6, 1.2
        while True:
            good = (r.clamp(max=high) * a)[inside & (a > 0)].sum()
            bad = (r.clamp(min=low) * -a)[inside & (a < 0)].sum()
            if good >= 1.1 * bad or (low >= 0.9 - 1e-9 and high >= 3 - 1e-9):
                break
            low, high = (min(low + 0.05, 0.9), high) if low < 0.9 - 1e-9 else (low, min(high + 0.05, 3.0))
        loss = clipped(d, a, 1 - low, high - 1)
        return torch.where(a < 0, torch.minimum(loss, -10 * a), loss)

    same("bapo", each, objective={"contribution": "value"}, balance=1.1)


@cell(
    "bapo",
    "loss",
    "deviation",
    "a bad token contributes its gradient, only while it is inside the lower bound",
    reason="by the release's count raising the lower bound never helps, so its first stage runs to its end for nothing",
)
def test_bapo_counts_gradients() -> None:
    assert defaults("bapo").objective.contribution == "gradient"
    found = [
        text_trial("bapo", off=2.0, balance=2.0, objective={"contribution": kind}) for kind in ("gradient", "value")
    ]
    assert not alike(found[0].gradient, found[1].gradient, 1e-4)


@cell(
    "hapo",
    "loss, gradient",
    "deviation",
    "certain tokens have their own rules",
    reason="the release divides negative entropies by a negative number, so that all of its tokens count as uncertain; "
    "`objective: {signed: false}` does that",
)
def test_hapo_gradient() -> None:
    for signed in (True, False):
        t = text_trial("hapo", off=1.0, objective={"signed": signed})
        length = t.content.sum(dim=1).double()
        r = t.rewards.flatten().view(t.rewards.shape)
        L = length.view(t.rewards.shape)
        mean = (L * r).sum(dim=1, keepdim=True) / L.sum(dim=1, keepdim=True)
        std = ((L * (r - mean) ** 2).sum(dim=1, keepdim=True) / L.sum(dim=1, keepdim=True)).sqrt()
        a = wide(((r - mean) / (std + 1e-6)).flatten(), t)
        x = entropy(t).clamp(min=1e-8).log()
        x = x - torch.quantile(x[t.content], 0.8)
        most, least = x[t.content].max(), x[t.content].min()
        h = torch.where(x > 0, x / most, x / (-least if signed else least))
        d = t.live - t.old
        low, high = 0.2 * (1 - h.clamp(max=0)), 0.2 * (1 + h.clamp(min=0))
        ratio = d.detach().exp()
        zone = (ratio >= 0.9) & (ratio <= 1.1)
        moved = torch.where(h > 0, ~zone, zone)
        a = torch.where(moved, a * (1 + h), a)
        kept = torch.maximum(torch.minimum(d.exp(), 1 + high), 1 - low)
        loss = torch.maximum(-a * d.exp(), -a * kept)
        loss = torch.where(a < 0, torch.minimum(loss, -10 * a), loss)
        assert alike(t.gradient, t.gradient_of(tokens(loss, t))), signed


@cell(
    "etr",
    "loss, gradient",
    "deviation",
    "bounds grow with tanh |A| and 4 p (1 - p)",
    reason="the paper's form is not in its abstract, and no code is public",
)
def test_etr_gradient() -> None:
    def each(t: TextTrial, d: Tensor, a: Tensor) -> Tensor:
        p = (
            (standardised(t.rewards, 1).view(t.rewards.shape) > 0)
            .double()
            .mean(dim=1, keepdim=True)
            .expand(t.rewards.shape)
        )
        factor = (1 + 0.5 * a.abs().tanh()) * (1 + 0.5 * 4 * p * (1 - p)).flatten()[:, None]
        kept = torch.maximum(torch.minimum(d.exp(), 1 + 0.2 * factor), 1 - 0.2 * factor)
        return torch.maximum(-a * d.exp(), -a * kept)

    same("etr", each, samples)
    flat = text_trial("etr", off=1.0, by_advantage=0.0, by_variance=0.0)
    assert alike(flat.gradient, text_trial("grpo", off=1.0, kl=0.0).gradient)


# ----------------------------------------------------------------------------------------------------------- penalties
@cell("r2vpo", "loss, gradient", "equal", "-A r + .04 (r - 1)^2")
def test_r2vpo_gradient() -> None:
    same("r2vpo", lambda t, d, a: -a * d.exp() + 0.04 * (d.exp() - 1) ** 2)


@cell("r2vpo", "defaults", "option", "the paper's dual weight: `target`, `rate`; neither is public")
def test_r2vpo_dual() -> None:
    made = composition.build({"use": "r2vpo", "target": 0.01})
    assert made.coefficients[0].target == 0.01 and defaults("r2vpo").regularizers[0].weight == 0.04


@cell(
    "mdpo",
    "loss, gradient",
    "deviation",
    "the divergence is estimated from the samples",
    reason="its code has it in closed form, over all actions; the means agree",
)
def test_mdpo_gradient() -> None:
    same("mdpo", lambda t, d, a: -a * d.exp() + 1 / 0.5 * (d.exp() * d - d.exp() + 1), eta=0.5)


@cell("rpg_kl", "loss, gradient", "equal", "all eight losses of its table")
def test_rpg_gradients() -> None:
    b = 0.3

    def score(c: Tensor, t: TextTrial) -> Tensor:
        return -c.detach() * t.live

    forms: dict[tuple[str, bool, str], Each] = {
        ("forward", True, "differentiable"): lambda t, d, a: -d.exp() * a - b * t.live,
        ("forward", False, "differentiable"): lambda t, d, a: -d.exp() * a + b * (d.exp() - d - 1),
        ("reverse", True, "differentiable"): lambda t, d, a: d.exp() * (-a + b * d),
        ("reverse", False, "differentiable"): lambda t, d, a: -d.exp() * a + b * (d.exp() * d - d.exp()),
        ("forward", True, "reinforce"): lambda t, d, a: score(d.exp() * a + b, t),
        ("forward", False, "reinforce"): lambda t, d, a: score(d.exp() * a - b * (d.exp() - 1), t),
        ("reverse", True, "reinforce"): lambda t, d, a: score(d.exp() * (a - b * (d + 1)), t),
        ("reverse", False, "reinforce"): lambda t, d, a: score(d.exp() * (a - b * d), t),
    }
    for (divergence, normalised, estimator), each in forms.items():
        same("rpg_kl", each, divergence=divergence, normalised=normalised, estimator=estimator, beta=b)


@cell(
    "rpg_kl",
    "defaults",
    "deviation",
    "no clip of the ratio",
    reason="the training adds a dual clip from .8 to 1.28 to these losses",
)
def test_rpg_settings() -> None:
    made = defaults("rpg_kl").objective
    assert (made.beta, made.clip_range) == (1e-4, None)


@cell(
    "chi2_reg",
    "loss, gradient",
    "equal",
    "clip .2, plus the root of the mean of r + 1 / r - 2 of completions to the reference",
)
def test_chi2_gradient() -> None:
    t = text_trial("chi2_reg", off=0.5, weight=0.3)
    a, d = wide(standardised(t.rewards, 1), t), t.live - t.old
    whole = torch.where(t.content, t.live - t.reference.detach(), 0.0).sum(dim=1)
    root = (whole.exp() + (-whole).exp() - 2).mean().clamp(min=1e-4).sqrt()
    assert alike(t.gradient, t.gradient_of(samples(clipped(d, a, 0.2, 0.2), t) + 0.3 * root))


@cell(
    "chi2_reg",
    "defaults",
    "deviation",
    "weight .01, advantage of GRPO",
    reason="the paper tunes the weight for every task, and has a critic",
)
def test_chi2_settings() -> None:
    assert (defaults("chi2_reg").objective.weight, defaults("chi2_reg").objective.floor) == (0.01, 1e-4)


@cell(
    "llds",
    "loss, gradient",
    "equal",
    "GRPO with KL .001, and .2 of the drops of log p in good completions that became less likely",
)
def test_llds_gradient() -> None:
    def each(t: TextTrial, d: Tensor, a: Tensor) -> Tensor:
        fell = torch.where(t.content, -d.detach(), 0.0).sum(dim=1, keepdim=True) > 0
        drop = torch.where(fell & (a >= 0), (-d).clamp(min=0), 0.0)
        return clipped(d, a, 0.2, 0.2) + 1e-3 * k3(t.live, t.reference) + 0.2 * drop

    same("llds", each, samples)


# ------------------------------------------------------------------------------------------------------------- settings
@cell("forking_tokens", "defaults", "equal", "a fifth of the tokens, DAPO's clip, overlong completions left out")
@cell("clip_cov", "defaults", "equal", "2e-4 of the tokens, covariance 1 to 5, clip .2")
@cell("kl_cov", "defaults", "option", "weight 1 is its function's; its configuration has .1 (`weight`)")
@cell("steer", "defaults", "equal", "weights from .8, dual clip .2, .28, 10")
@cell("clip_b", "defaults", "equal", "2.5 standard deviations")
def test_settings_of_masks() -> None:
    made = defaults("forking_tokens")
    assert (made.loss_masks[0].share, made.mask_truncated_completions) == (0.2, True)
    assert made.objective.clip_range == (0.2, 0.28)
    cov = defaults("clip_cov").loss_masks[0]
    assert (cov.share, cov.least, cov.most, cov.low, cov.high) == (2e-4, 1, 5, 0.2, 0.2)
    assert (defaults("kl_cov").objective.share, defaults("kl_cov").objective.weight) == (2e-4, 1.0)
    steer = defaults("steer")
    assert (steer.loss_masks[0].least, steer.objective.clip_range, steer.objective.dual) == (0.8, (0.2, 0.28), 10)
    assert defaults("clip_b").loss_masks[0].width == 2.5


@cell("bapo", "defaults", "equal", "from .6 and 1.2 to .9 and 3 by .05, balance 1, c = 10")
@cell(
    "hapo",
    "defaults",
    "deviation",
    "the sampler's temperature does not follow the entropy",
    reason="what is sampled is scored; theirs moves by 5 %",
)
@cell("gppo, spo_simple, cfpo", "defaults", "equal", "clip .2")
@cell(
    "kl3_clip", "defaults", "deviation", "delta .05", reason="the paper's is not known; notes of others say .05 to .2"
)
@cell("sapo", "defaults", "equal", "temperatures 1 and 1.05")
@cell("gmpo", "defaults", "equal", "the paper's .4 in logarithms, where verl leaves it to its clip range")
@cell("luspo", "defaults", "equal", "GSPO's clip of 3e-4 and 4e-4")
@cell("vespo", "defaults", "equal", "(k, l) = (2, 3) and (3, 2)")
@cell("dppo_tv", "defaults", "option", ".2, prime-rl's; the other divergence by `loss_masks`")
@cell("m2po", "defaults", "equal", "second moment .04")
@cell("rec, opmd, asymre", "defaults", "equal", "bounds .2; tau 1; shift -.1")
@cell(
    "minirl",
    "defaults",
    "deviation",
    "bounds .2 and .27, cap 5",
    reason="from notes on the paper, not confirmed; experts are not replayed",
)
@cell(
    "mdpo",
    "defaults",
    "deviation",
    "eta 1, fixed",
    reason="its code lets it fall over the run (a coefficient on regularizers.0.weight does)",
)
@cell("llds", "defaults", "equal", "penalty .2, KL .001")
@cell("etr", "defaults", "deviation", "both scales .5", reason="ours; the paper's are not public")
def test_settings_of_surrogates() -> None:
    bapo = defaults("bapo").objective
    assert (bapo.low, bapo.high, bapo.low_most, bapo.high_most) == (0.6, 1.2, 0.9, 3.0)
    assert (bapo.step, bapo.balance, bapo.dual) == (0.05, 1.0, 10.0)
    assert (defaults("hapo").objective.dual, defaults("hapo").sampler.temperature) == (10.0, 1.0)
    for name in ("gppo",):
        assert defaults(name).objective.clip_range == (0.2, 0.2)
    assert defaults("spo_simple").objective.clip == defaults("cfpo").objective.clip == 0.2
    assert defaults("kl3_clip").objective.delta == 0.05
    assert (defaults("sapo").objective.positive, defaults("sapo").objective.negative) == (1.0, 1.05)
    assert (defaults("gmpo").objective.low, defaults("gmpo").objective.high) == (0.4, 0.4)
    assert defaults("luspo").objective.clip_range == (3e-4, 4e-4)
    assert (defaults("vespo").objective.positive, defaults("vespo").objective.negative) == ((2, 3), (3, 2))
    assert defaults("dppo_tv").loss_masks[0].threshold == 0.2 and defaults("m2po").loss_masks[0].threshold == 0.04
    assert (defaults("rec").loss_masks[0].low, defaults("opmd").advantage.scale) == (0.2, 0.5)
    assert defaults("asymre").advantage.shift == -0.1
    assert (defaults("minirl").loss_masks[0].high, defaults("mdpo").regularizers[0].weight) == (0.27, 1.0)
    assert [term.weight for term in defaults("llds").regularizers] == [1e-3, 0.2]
    assert defaults("etr").token_advantage[0].by_variance == 0.5

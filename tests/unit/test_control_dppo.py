"""DPPO as released: the last steps of a chain tuned with the first ones frozen, a DDPM's steps and densities in its own
coordinates, and its authors' checkpoints."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowrl.composition import build
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.estimators.transitions import TransitionRows, Transitions
from flowrl.math.flow import DDIM, Floored
from flowrl.math.random import normal
from flowrl.models import load_policy
from flowrl.models.control.convert import convert_dppo, main
from flowrl.models.control.export import export
from flowrl.models.control.load import load_control, new_network, save_control
from flowrl.models.control.policy import ControlConfig, ControlPolicy
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.gaussian import GaussianSampler
from flowrl.samplers.windows import LastSteps
from flowrl.startup.policies import policy_of_run
from flowrl.train import train
from flowrl.types import Draw, Steps
from tests.contract.toy_environment import toy_policy
from tests.contract.toys import gradients, roll, small, start


def moved(policy: ControlPolicy, by: float = 0.3) -> ControlPolicy:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.network.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return policy


def drawn(count: int) -> Draw:
    return Draw.of(torch.arange(count), torch.zeros(count, dtype=torch.long), 0, 0)


def seen(policy: ControlPolicy, count: int) -> Any:
    shape = (count, policy.config.history, policy.config.observation)
    return policy.condition([]).seeing(torch.randn(shape, generator=torch.Generator().manual_seed(1)))


def chain_of(steps: int, last: int | None, **options: Any) -> FlowSampler:
    window = LastSteps(last, noise=True, densities=True)
    return FlowSampler(steps=steps, dynamics=Floored(DDIM(1.0), 0.1), window=window, guidance=1.0, **options)


# --------------------------------------------------------------------------------------------------- the frozen base
def test_the_first_steps_are_the_bases_whatever_was_learned() -> None:
    """Of 5 steps the last 2 are recorded. What enters them, and the velocity at larger times, is what the policy made
    before it learned, bit for bit; the rest moves."""
    policy = toy_policy(tuned_from=0.4)
    condition = seen(policy, 7)
    before = chain_of(5, 2)(policy, condition, drawn(7))
    v = policy.velocity(before.final, torch.full((7,), 0.6).double(), condition)
    moved(policy)
    after = chain_of(5, 2)(policy, condition, drawn(7))
    one, other = before.trace, after.trace
    assert isinstance(one, Steps) and isinstance(other, Steps) and one.states.shape[1] == 3
    assert one.t[0].tolist() == pytest.approx([0.4, 0.2])
    assert torch.equal(one.states[:, 0], other.states[:, 0])
    assert not torch.allclose(one.states[:, 1], other.states[:, 1], atol=0.05)
    assert torch.equal(policy.velocity(before.final, torch.full((7,), 0.6).double(), condition), v)
    t = torch.tensor([1.0, 0.6, 0.4, 0.2] * 2)[:7].double()  # rows of both
    mixed = policy.velocity(before.final, t, condition)
    rows = [policy.velocity(before.final[i : i + 1], t[i : i + 1], condition.take(torch.tensor([i]))) for i in range(7)]
    torch.testing.assert_close(mixed, torch.cat(rows), atol=1e-5, rtol=1e-5)
    mixed.sum().backward()
    assert all(p.grad is None for p in policy.base.parameters()) if policy.base else False
    assert all(p.grad is not None for p in policy.network.body.parameters())
    with pytest.raises(Exception, match=r"a frozen network acts at time 1"):
        policy.gaussian(condition)


def test_steps_of_the_base_have_no_gradient_and_no_decision() -> None:
    """The gradient of a preset with 2 of 4 steps is that of the same recorded steps, whatever is before them."""
    algorithm = small("dppo", 4, tuned=2)
    assert algorithm.tuned == (4, 2) and small("dppo", 4).tuned is None and small("dppo", 4, tuned=None).tuned is None
    policy = start(algorithm)
    policy.base, policy.config = toy_policy(tuned_from=0.5).base, replace(policy.config, tuned_from=0.5)
    it = roll(algorithm, policy)
    rows = algorithm.estimator.probe(it.rollout, policy, it.rollout.seeds)
    assert rows.per == 2 and rows.inner.t[0].tolist() == [0.5, 0.25]
    found = gradients(algorithm, it)[0]
    policy.base = None  # nothing of the loss asks for it
    torch.testing.assert_close(gradients(algorithm, it)[0], found)


def test_both_networks_are_evaluated_exported_and_loaded(tmp_path: Path) -> None:
    """A run of one iteration: its policy, its export and the policy that starts the next run act by both networks."""
    config = {
        "name": "both",
        "model": {"path": "avoid"},
        "algorithm": {"use": "dppo", "steps": 4, "tuned": 2, "clip": 0.2, "decisions": 3},
        "data": {"train": "avoid:train", "test": None, "prompts": 2, "group": 2},
        "rewards": [{"use": "episode_return"}],
        "optimizer": {"lr": 0.01, "critic_lr": 0.001},
        "train": {"iterations": 1, "updates": 1},
        "eval": {"every": 0, "weights": "live"},
        "monitor": {"samples": 0},
        "out": str(tmp_path / "run"),
    }
    run = train(Config.of(config))
    policy: Any = policy_of_run(run, "latest")
    base = load_control("avoid")
    assert policy.config.tuned_from == 0.5 and policy.base is not None
    states = (policy.base.state_dict(), base.network.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    assert not torch.equal(policy.network.body[0].weight, base.network.body[0].weight)
    export(policy, tmp_path / "export", "merged")
    again: Any = load_policy(tmp_path / "export")
    look = seen(policy, 5).observed
    assert torch.equal(again.chunk(look, seed=3), policy.chunk(look, seed=3))
    x = torch.randn(5, 4, 2)
    early, condition = torch.full((5,), 0.75).double(), base.condition([]).seeing(look)
    assert torch.equal(again.velocity(x, early, condition), base.velocity(x, early, condition))
    on = load_control(tmp_path / "export", tuned=(20, 10))  # the same times: its base stays
    assert on.base is not None and torch.equal(on.base.body[0].weight, base.network.body[0].weight)
    with pytest.raises(UserError, match=r"was tuned from time 0\.5 on, and the last 5 of 20 steps begin at 0\.25"):
        load_control(tmp_path / "export", tuned=(20, 5))


def test_a_frozen_base_needs_a_chain() -> None:
    with pytest.raises(ValueError, match=r"frozen_base is of steps from noise to a chunk"):
        EpisodeSampler(sampler=GaussianSampler(), frozen_base=True)
    with pytest.raises(ValueError, match=r"set noise=true as well"):
        LastSteps(2, densities=True)
    part: Any = build("dppo").sampler
    assert (part.tuned, part.heldout(None, None, None).sampler.window) == ((20, 10), None)


# ------------------------------------------------------------------------------------------------ a DDPM's own numbers
def ddpm(steps: int, bound: float | None) -> ControlPolicy:
    config = ControlConfig(kind="ddpm", observation=3, action=2, chunk=2, width=16, depth=3, steps=steps, bound=bound)
    torch.manual_seed(2)
    return moved(ControlPolicy(config, new_network(config), None, None, torch.device("cpu")), 0.1)


def test_steps_of_a_ddpm_are_its_posterior_with_clean_chunks_bounded_and_a_floor_of_the_deviation() -> None:
    """Written out in the DDPM's own coordinates (arXiv:2006.11239, eq. 6-7) with the cosine schedule, x0 in -1 to 1,
    deviation at least .1, noise in -3 to 3."""
    steps, n = 6, 9
    policy = ddpm(steps, 1.0)
    condition, draw = seen(policy, n), drawn(n)
    sampler = chain_of(steps, None, noise_bound=0.8)
    trace = sampler(policy, condition, draw).trace
    assert isinstance(trace, Steps)
    edges = torch.arange(steps + 1).double() / steps
    bar = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    a = (1 - beta).cumprod(dim=0)
    before = torch.cat([torch.ones(1).double(), a[:-1]])
    x = normal(draw.seeds, policy.latent_shape, stream=0).double()
    outside = beyond = 0
    estimator = Transitions(reduction="mean", bounds=(-0.9, 0.9))
    rows = estimator.probe(sampler(policy, condition, draw), policy, draw.seeds)
    logp = estimator(policy, rows, condition).logp
    for number, k in enumerate(reversed(range(steps))):
        with torch.no_grad():
            t = (1 - a[k]).sqrt() / (a[k].sqrt() + (1 - a[k]).sqrt())
            noise = policy.network(condition.observed, x.float(), t.float().expand(n)).double()
        clean = (x - (1 - a[k]).sqrt() * noise) / a[k].sqrt()
        outside += int((clean.abs() > 1).sum())
        clean = clean.clamp(-1, 1)
        first = beta[k] * before[k].sqrt() / (1 - a[k])
        second = (1 - before[k]) * (1 - beta[k]).sqrt() / (1 - a[k])
        std = (beta[k] * (1 - before[k]) / (1 - a[k])).sqrt().clamp(min=0.1)
        z = normal(draw.seeds, policy.latent_shape, stream=number + 1).double().clamp(-0.8, 0.8)
        mean, x = first * clean + second * x, first * clean + second * x + std * z
        scale = Floored().scale(trace.t_next[:1, number])
        torch.testing.assert_close(trace.states[:, number + 1].double() / scale, x, atol=2e-5, rtol=1e-4)
        each = torch.distributions.Normal(mean, std).log_prob(x)
        beyond += int((each < -0.9).sum()) + int((each > 0.9).sum())
        wanted = each.clamp(-0.9, 0.9).mean(dim=(1, 2))
        torch.testing.assert_close(logp[:, number].double(), wanted, atol=3e-4, rtol=1e-3)
    assert outside > 20 and beyond > 20
    free = ddpm(steps, None)
    assert not torch.allclose(chain_of(steps, None)(free, condition, draw).final, trace.states[:, -1], atol=1e-2)


def test_bounded_log_densities_are_moved_and_have_no_gradient() -> None:
    """One step of four numbers, at 0, 2, 3.6 and 5 deviations: -1.38, .. of std .1, the last two below -5."""
    z = torch.tensor([0.0, 2.0, 3.6, 5.0])

    class At:
        device = torch.device("cpu")
        shift = torch.zeros(4, requires_grad=True)

        def velocity(self, x: Tensor, t: Tensor, condition: Any, **_: Any) -> Tensor:
            return x / t[:, None].to(x) + self.shift  # the clean chunk is 0

    policy: Any = At()
    kernel, t, t_next = Floored(DDIM(1.0), 0.1), torch.tensor([[0.3]]).double(), torch.zeros(1, 1).double()
    states = torch.stack([torch.randn(4), 0.1 * z])[None]
    steps = Steps(states, t, t_next, torch.zeros(1, 1), kernel, 1.0)
    place = torch.zeros(1, 1, dtype=torch.long)
    rows = TransitionRows(t, t_next, steps, place, place, torch.zeros(1, 1))
    condition: Any = type("Nothing", (), {"take": lambda self, rows: self})()
    found = Transitions(reduction="sum", bounds=(-5.0, 1.0))(policy, rows, condition).logp
    top = -math.log(0.1) - 0.5 * math.log(2 * math.pi)  # 1.38, above 1
    assert float(found.detach()) == pytest.approx(1.0 + (top - 2) - 5 - 5, abs=1e-4)
    found.sum().backward()
    assert policy.shift.grad is not None
    slope = policy.shift.grad.tolist()  # d logp / d shift = -t z / s of the one that counts
    assert slope == pytest.approx([0, -0.3 * 2 / 0.1, 0, 0], abs=1e-3)
    part = Transitions(bounds=(-5.0, 2.0))
    assert not part.has_recorded_logp and Transitions().has_recorded_logp
    for wrong, message in (
        ({"bounds": (2.0, -5.0)}, "two numbers, the smaller one first"),
        ({"bounds": (-5.0, 2.0), "measure": "unit"}, "measure=unit"),
    ):
        with pytest.raises(ValueError, match=message):
            Transitions(**wrong)
    with pytest.raises(ValueError, match=r"noise_bound=0\.0 is the largest noise"):
        FlowSampler(noise_bound=0.0)


# ---------------------------------------------------------------------------------------------- published checkpoints
FORMS = {
    "gym": ({"blocks": 1, "encoder": (), "norm": False}, "relu"),
    "robomimic": ({"blocks": 1, "encoder": (12, 5), "norm": False}, "mish"),
    "furniture": ({"blocks": 3, "encoder": (12, 5), "norm": True}, "mish"),
    "plain": ({"blocks": 0, "encoder": (), "norm": True}, "mish"),
    "plain, no norm": ({"blocks": 0, "encoder": (7,), "norm": False}, "relu"),
}
SEEN, ACTS, CHUNK, HISTORY, WIDE, EMBED = 5, 3, 4, 2, 24, 8


def published(blocks: int, encoder: tuple[int, ...], norm: bool) -> dict[str, Tensor]:
    """Random weights of the form, by the names and shapes of the release (``DiffusionMLP`` at cc7234a)."""
    generator = torch.Generator().manual_seed(3)

    def layer(name: str, wide: int, next_wide: int) -> dict[str, Tensor]:
        weight = torch.randn(next_wide, wide, generator=generator) / wide**0.5
        return {f"{name}.weight": weight, f"{name}.bias": torch.randn(next_wide, generator=generator) * 0.1}

    def scales(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + 0.2 * torch.randn(WIDE, generator=generator), f"{name}.bias": torch.ones(WIDE)}

    found = layer("time_embedding.1", EMBED, 2 * EMBED) | layer("time_embedding.3", 2 * EMBED, EMBED)
    for i, (wide, next_wide) in enumerate(pairwise((SEEN * HISTORY, *encoder))):
        found |= layer(f"cond_mlp.moduleList.{i}.linear_1", wide, next_wide)
    enters = CHUNK * ACTS + EMBED + (encoder[-1] if encoder else SEEN * HISTORY)
    if not blocks:
        for i, (wide, next_wide) in enumerate(pairwise((enters, WIDE, WIDE, CHUNK * ACTS))):
            found |= layer(f"mlp_mean.moduleList.{i}.linear_1", wide, next_wide)
            found |= scales(f"mlp_mean.moduleList.{i}.norm_1") if norm and i < 2 else {}
        return found
    found |= layer("mlp_mean.layers.0", enters, WIDE)
    for b in range(1, blocks + 1):
        for part in ("l1", "l2"):
            found |= layer(f"mlp_mean.layers.{b}.{part}", WIDE, WIDE)
        for part in ("norm1", "norm2") if norm else ():
            found |= scales(f"mlp_mean.layers.{b}.{part}")
    return found | layer(f"mlp_mean.layers.{blocks + 1}", WIDE, CHUNK * ACTS)


def answer(w: dict[str, Tensor], x: Tensor, step: int, state: Tensor, activation: str) -> Tensor:
    """The release's forward pass: chunk, time and observation side by side, residual blocks with their activation
    first."""
    act = {"relu": F.relu, "mish": F.mish}[activation]

    def layer(name: str, value: Tensor) -> Tensor:
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def normed(name: str, value: Tensor, eps: float) -> Tensor:
        if f"{name}.weight" not in w:
            return value
        return F.layer_norm(value, (WIDE,), w[f"{name}.weight"], w[f"{name}.bias"], eps)

    half = EMBED // 2
    angle = step * torch.exp(torch.arange(half).double() * -(math.log(10000) / (half - 1)))
    time = layer("time_embedding.3", F.mish(layer("time_embedding.1", torch.cat([angle.sin(), angle.cos()]))))
    state, i = state.flatten(1), 0
    while f"cond_mlp.moduleList.{i}.linear_1.weight" in w:
        state = layer(f"cond_mlp.moduleList.{i}.linear_1", state)
        i += 1
        state = act(state) if f"cond_mlp.moduleList.{i}.linear_1.weight" in w else state
    y = torch.cat([x.flatten(1), time.expand(len(x), -1), state], dim=1)
    if "mlp_mean.moduleList.0.linear_1.weight" in w:
        for i in range(3):
            y = normed(f"mlp_mean.moduleList.{i}.norm_1", layer(f"mlp_mean.moduleList.{i}.linear_1", y), 1e-5)
            y = act(y) if i < 2 else y
        return y.view(x.shape)
    y, b = layer("mlp_mean.layers.0", y), 1
    while f"mlp_mean.layers.{b}.l1.weight" in w:
        name = f"mlp_mean.layers.{b}"
        inner = layer(f"{name}.l1", act(normed(f"{name}.norm1", y, 1e-6)))
        y = y + layer(f"{name}.l2", act(normed(f"{name}.norm2", inner, 1e-6)))
        b += 1
    return layer(f"mlp_mean.layers.{b}", y).view(x.shape)


def ranges(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    numbers = np.random.default_rng(0)
    known = {
        "obs_min": -numbers.random(SEEN),
        "obs_max": 1 + numbers.random(SEEN),
        "action_min": -2 * np.ones(ACTS),
        "action_max": np.arange(1.0, 1 + ACTS),
    }
    np.savez(folder / "normalization.npz", **known)
    return folder / "normalization.npz", known


@pytest.mark.parametrize("form", FORMS)
def test_published_checkpoints_are_the_same_network(form: str, tmp_path: Path) -> None:
    """Weights as released, of `ema` and not of `model`; what the network answers and an action in the environment's
    units. The released classes themselves, of these five forms at their own sizes, were executed once beside this, in
    float32: networks equal to 1.5e-6, whole chains to 5e-6 (of 100 steps 3e-5), log-probabilities to 1e-6."""
    options, activation = FORMS[form]
    weights = published(**options)
    state = {f"network.{key}": value for key, value in weights.items()}
    torch.save({"epoch": 3000, "model": {k: v + 1 for k, v in state.items()}, "ema": state}, tmp_path / "state_3000.pt")
    npz, known = ranges(tmp_path)
    given: Any = {"activation": activation, "steps": 7}
    config = convert_dppo(tmp_path / "state_3000.pt", npz, tmp_path / "model", **given)
    assert (config.observation, config.action, config.chunk, config.history) == (SEEN, ACTS, CHUNK, HISTORY)
    assert config.depth == (1 + 2 * options["blocks"] if options["blocks"] else 2) and config.bound == 1.0
    policy = load_control(tmp_path / "model", device="cpu")
    observed, x = torch.randn(6, HISTORY, SEEN).double(), torch.randn(6, CHUNK, ACTS).double()
    low, high = (torch.from_numpy(known[f"obs_{end}"]) for end in ("min", "max"))
    state_seen = 2 * ((observed - low) / (high - low + 1e-6) - 0.5)
    doubled = {key: value.double() for key, value in weights.items()}
    network = policy.network.double()
    for step in (0, 3, 6):
        wanted = answer(doubled, x, step, state_seen, activation)
        found = network(observed, x, torch.full((6,), float(step)).double())
        torch.testing.assert_close(found, wanted, atol=2e-6, rtol=2e-6)
    low, high = (torch.from_numpy(known[f"action_{end}"]) for end in ("min", "max"))
    torch.testing.assert_close(policy.in_own_units(x), (x + 1) / 2 * (high - low) + low, atol=1e-6, rtol=1e-6)


def test_fine_tuned_checkpoints_hold_two_networks(tmp_path: Path) -> None:
    options = FORMS["gym"][0]
    weights = published(**options)
    state = {f"{name}.{key}": value for name in ("network", "actor") for key, value in weights.items()}
    state |= {f"actor_ft.{key}": value + 0.01 for key, value in weights.items()}
    state["critic.Q1.layers.0.weight"] = torch.ones(3, 3)
    torch.save({"itr": 999, "model": state}, tmp_path / "state_999.pt")
    npz, _ = ranges(tmp_path)
    with pytest.raises(UserError, match=r"holds a tuned network beside its base; give --tuned"):
        convert_dppo(tmp_path / "state_999.pt", npz, tmp_path / "model")
    with pytest.raises(UserError, match=r"--tuned 20 of 20 steps; give 1 or more, and fewer than all"):
        convert_dppo(tmp_path / "state_999.pt", npz, tmp_path / "model", tuned=20)
    config = convert_dppo(tmp_path / "state_999.pt", npz, tmp_path / "model", tuned=10)
    policy = load_control(tmp_path / "model", device="cpu", tuned=(20, 10))
    assert config.tuned_from == pytest.approx(float(policy.times(20)[10])) and policy.base is not None
    assert torch.equal(policy.base.body[2].bias + 0.01, policy.network.body[2].bias)


def test_what_is_no_published_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = published(**FORMS["gym"][0])
    npz, known = ranges(tmp_path)
    file = tmp_path / "x.pt"

    def refused(state: dict[str, Any], match: str, normalization: Path = npz) -> None:
        torch.save(state, file)
        with pytest.raises(UserError, match=match) as raised:
            convert_dppo(file, normalization, tmp_path / "model")
        assert "\n" not in str(raised.value) and not (tmp_path / "model").exists()

    named = {f"network.{key}": value for key, value in weights.items()}
    refused({"weights": named}, "no weights under 'ema' or 'model'")
    refused({"ema": {"critic.a": torch.ones(1)}}, r"no weights called network\.\* or actor\.\*")
    refused({"ema": named | {"network.transformer.a": torch.ones(1)}}, "called transformer.a, which no DiffusionMLP")
    refused({"ema": {k: v for k, v in named.items() if "time" not in k}}, "has no time_embedding or no mlp_mean")
    refused({"ema": {k: v for k, v in named.items() if "l2" not in k}}, "is no DiffusionMLP that is read here")
    refused({"ema": {**named, "network.mlp_mean.layers.0.bias": torch.full((WIDE,), torch.nan)}}, "NaN|not finite|nan")
    np.savez(tmp_path / "other.npz", **(known | {"obs_min": np.zeros(3)}))
    refused({"ema": named}, "give the one that the policy was trained with", tmp_path / "other.npz")
    np.savez(tmp_path / "poor.npz", obs_min=np.zeros(3))
    refused({"ema": named}, "is no normalization.npz with obs_min", tmp_path / "poor.npz")
    (tmp_path / "junk.npz").write_bytes(b"junk")
    refused({"ema": named}, "is no normalization.npz", tmp_path / "junk.npz")
    np.savez(tmp_path / "pickled.npz", **{key: np.array([{}], dtype=object) for key in known})
    refused({"ema": named}, "is no normalization.npz", tmp_path / "pickled.npz")
    refused({"ema": nn.Linear(1, 1)}, "is not a checkpoint of tensors alone")
    assert main([str(file), str(npz), str(tmp_path / "model")]) == 2 and "error: " in capsys.readouterr().err
    torch.save({"ema": named}, file)
    assert main([str(file), str(npz), str(tmp_path / "model")]) == 0 and "kind='ddpm'" in capsys.readouterr().out
    with pytest.raises(UserError, match="already exists"):
        convert_dppo(file, npz, tmp_path / "model")


def test_config_json_names_what_is_wrong_with_a_networks_form(tmp_path: Path) -> None:
    config = ControlConfig(observation=2, action=1, chunk=1, width=8, depth=3, blocks=True, embedding=4, norm=True)
    full = replace(config, activation="gelu", encoder=(6, 3))
    save_control(full, new_network(full), tmp_path / "ok")
    assert load_control(tmp_path / "ok").config == full
    for changed, message in (
        ('"activation": "swish"', r"activation is 'swish'; choose silu, relu"),
        ('"blocks": 1', r"blocks is 1; give true or false"),
        ('"blocks": true, "depth": 4', r"depth is 4; give an odd one"),
        ('"embedding": 5', r"embedding is 5; give an even number"),
        ('"encoder": [3, 0]', r"encoder is \[3, 0\]; give a list"),
        ('"bound": -1, "kind": "ddpm"', r"bound is -1; give a number above 0"),
        ('"bound": 1.0', r"bound is of what a DDPM predicts, and kind is flow"),
        ('"tuned_from": 2.0', r"tuned_from is 2\.0; give a number above 0, 1 at most, or null"),
    ):
        (tmp_path / "ok" / "config.json").write_text('{"observation": 2, "action": 1, ' + changed + "}")
        with pytest.raises(UserError, match=message):
            load_control(tmp_path / "ok")

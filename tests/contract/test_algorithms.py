"""What every preset must obey. A new file in flowrl/algorithms is under test without a change here."""

from __future__ import annotations

import math

import pytest
import torch

from flowrl import composition
from flowrl.companions import train_companions
from flowrl.step import UpdateSettings, improve
from tests.contract.toys import (
    Recorder,
    disturb,
    family,
    gradients,
    is_recorded,
    level,
    roll,
    small,
    start,
    thorough,
    variants,
)

ALL = variants()
ONE_OF_EACH_QUICKLY = thorough(ALL)


@pytest.mark.parametrize("name", ONE_OF_EACH_QUICKLY)
def test_ratio_is_one_before_the_first_update(name: str) -> None:
    algorithm = small(name)
    policy = start(algorithm)
    it = roll(algorithm, policy, rows=5)
    recorder = Recorder(policy.parameters())
    metrics = improve(
        policy,
        recorder,
        algorithm,
        it.rollout,
        it.scores,
        it.advantage,
        UpdateSettings(updates=2, micro_batch=7),
    )
    assert metrics["ratio/first_max_deviation"] < 2e-6
    taught = tuple(f"/{name}" for name in algorithm.teachers) or ("/",)
    for key, value in metrics.items():
        if key.startswith(("kl/", "prediction/")) and not key.endswith(taught):
            assert value == pytest.approx(0, abs=1e-9), key
    if algorithm.family in ("masked", "causal"):
        assert 0.1 < metrics["entropy"] <= math.log(policy.vocabulary) + 1e-6


@pytest.mark.parametrize("name", ONE_OF_EACH_QUICKLY)
def test_gradient_does_not_depend_on_the_micro_batch(name: str) -> None:
    algorithm = small(name)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    disturb(policy, 0.002)  # off policy, so that clipping and penalties take part
    whole = gradients(algorithm, it, micro_batch=100_000)[0]
    assert float(whole.norm()) > 0
    for micro_batch in (1, 3, 50):
        pieces = gradients(algorithm, it, micro_batch=micro_batch)[0]
        assert torch.allclose(pieces, whole, rtol=2e-4, atol=2e-6 * float(whole.norm()))
    if algorithm.family in ("masked", "causal"):
        for micro_tokens in (1, 7, 40):
            pieces = gradients(algorithm, it, micro_tokens=micro_tokens)[0]
            assert torch.allclose(pieces, whole, rtol=2e-4, atol=2e-6 * float(whole.norm()))


@pytest.mark.parametrize("name", ONE_OF_EACH_QUICKLY)
def test_samples_do_not_depend_on_the_sampling_batch(name: str) -> None:
    algorithm = small(name)
    policy = start(algorithm)
    first, second = roll(algorithm, policy, rows=1000), roll(algorithm, policy, rows=3)
    assert torch.allclose(first.rollout.final, second.rollout.final, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", ONE_OF_EACH_QUICKLY)
def test_finite_at_extreme_advantage(name: str) -> None:
    algorithm = small(name)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    it.advantage = it.advantage.sign() * 1e6
    assert bool(torch.isfinite(gradients(algorithm, it)[0]).all())


@pytest.mark.parametrize("name", ALL)
def test_prints_and_cites_its_source(name: str) -> None:
    preset = name.partition("/")[0]
    assert composition.paper(preset)
    assert len(composition.summary(preset)) > 20
    assert family(name) in composition.families(preset) and small(name).families[0] == family(name)
    described = composition.describe(small(name))
    assert described["use"] == "Algorithm" and described["estimator"]["use"]


# Learning rates and ranges for a two-dimensional toy: the presets' own are for 65536-dimensional latents.
TOY = {
    "cpo": {"sft": 0.1},  # of pairs that the base made, the better one is not worth imitating
    "orpo": {"beta": 1.0},
    "rpo": {"sft": 0.1},
    "adjoint_matching": {"scale": 30.0},
    "ddpo": {"clip": 0.2},
    "tdm_r1": {"guidance": 1.0, "guided": 0.0, "clip": 0.2, "rewarded": 5.0},
    "dmd2": {"real": "teacher", "guidance": 1.0},  # who knows what is rewarded
    "fdfo": {"churn": 0.2},  # two samples of a pair differ in two numbers here, not in thousands
    "seppo": {"refresh": 4, "draws": 4},  # what is judged here are samples of the reference
    "loop": {"clip": 0.2},
    "flow_grpo": {"clip": 0.2, "kl": 0.001},
    "flow_grpo_fast": {"clip": 0.2},
    "gardo": {"clip": 0.2, "kl": 0.001},
    "diverse_grpo": {"clip": 0.2, "kl": 0.01},
    "ddrl": {"clip": 0.2, "noise": 0.8},
    "flow_cps": {"clip": 0.2},
    "dance_grpo": {"clip": 0.2, "noise": 0.7},
    "mix_grpo": {"clip": 0.2, "size": 3, "every": 2},
    "dense_grpo": {"clip": 0.2, "kl": 0.001},
    "turning_point": {"clip": 0.2},
    "branch_grpo": {"clip": 0.2, "noise": 0.7},
    "tree_grpo": {"clip": 0.2},
    "tempflow_grpo": {"clip": 0.2},
    "flash_grpo": {"clip": 0.2},
    "g2rpo": {"clip": 0.2},
    "e_grpo": {"clip": 0.2},
    "grpo_guard": {"clip": 0.2},
    "awm": {"ema": 0.1, "reference": 0.0},
    "diffusion_nft": {"draws": 5},
    "fpo": {"clip": 0.2},
    "cfgrl": {"token_advantage": [{"use": "episode_gae"}, {"use": "improved"}]},  # centred: its critic is slow
    "dppo": {"clip": 0.2},
    "fql": {"alpha": 0.1, "tau": 0.1},
    "pa_rl": {"tau": 0.1, "rate": 0.1},
    "expo": {"tau": 0.1, "scale": 0.5},
    "qam": {"inverse_temperature": 30.0, "tau": 0.1},
    "dqc": {"tau": 0.1, "kappa_b": 0.5, "gamma": 0.5},  # values have to stay below 1
    "orw_cfm/control": {"tau": 8.0},  # at .5 and this family's rate, weights from 1 to e^.5 teach next to nothing
    "resip": {"scale": 2.0},  # the modes are far apart
    "flow_dppo": {"threshold": 0.02, "size": 3},
    "marble": {"draws": 5, "refresh": 3},
    "luspo": {"low": 0.2, "high": 0.2},
    "refl": {"cap": None, "scale": 1.0},
    "srpo": {"cap": None},
    "gspo": {"low": 0.2, "high": 0.2},
    "tracerl": {"merge": 1},  # eight of its 512 steps make a view; the toy takes three steps
    "mdpo_dllm": {"temperature": 1.0},  # at .1 the toy explores nothing
    "diffu_grpo": {"corrupt": 0.0},  # the toy's prompt is one token, which .15 would hide whole
}
RATES = {"masked": 0.05, "causal": 0.05, "reward": 0.05, "diffusion": 0.02, "control": 0.001}


@pytest.mark.parametrize("name", thorough(ALL, quick=("draft", "dpo", "flow_grpo", "grpo", "spg")))
def test_learns_its_toy(name: str) -> None:
    """The reward is the indicator of one of three modes: every method must raise it well above the base's third."""
    algorithm = small(name, 8, **TOY.get(name, TOY.get(name.removesuffix("/control"), {})))
    policy = start(algorithm, disturbed=False)
    optimizer = torch.optim.Adam(policy.parameters(), lr=RATES[family(name)])
    rate = RATES[family(name)]
    beside = {each.name: torch.optim.Adam(policy.parameters(), lr=rate) for each in algorithm.companions}
    memory: dict = {}
    base = sum(level(algorithm, policy, 100 + k) for k in range(8)) / 8
    end, steps = 0.0, 0
    for iteration in range(40):
        it = roll(algorithm, policy, iteration)
        it.advantage = algorithm.advantage(it.scores, memory)
        if iteration >= 35:
            own = not is_recorded(algorithm)
            end += (float(it.scores.total.mean()) if own else level(algorithm, policy, iteration)) / 5
        made = (it.rollout, it.scores, {}, UpdateSettings())
        train_companions(policy, beside, algorithm, *made, done=iteration)
        improve(policy, optimizer, algorithm, it.rollout, it.scores, it.advantage, UpdateSettings(updates=2))
        steps += 2
        for average in algorithm.ema_weights:
            policy.update_ema(average.name, average.decay(steps, steps - 2))
    assert end > base + 0.15, (base, end)

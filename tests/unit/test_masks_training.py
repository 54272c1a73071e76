"""Two real iterations of every method on masks, bounds, surrogates and several rewards, on the embedded worlds."""

from __future__ import annotations

import math

import pytest

from tests.training import Work, config_of, train

LANGUAGE = [
    "entropy_advantage",
    "grpo_passk",
    "icepop",
    "grpo_v32",
    "kimi_opmd",
    "lite_ppo",
    "reinforce_pp_baseline",
    "scale_rl",
    "w_reinforce",
    "adora",
    "apo_asym",
    "asymre",
    "bapo",
    "bnpo",
    "cfpo",
    "chi2_reg",
    "clip_b",
    "clip_cov",
    "d3s",
    "dcpo_clip",
    "delta_l",
    "dppo_tv",
    "drw_grad",
    "drw_hv",
    "etr",
    "forking_tokens",
    "gdpo_multi",
    "gmpo",
    "gppo",
    "gtpo",
    "hapo",
    "kl3_clip",
    "kl_cov",
    "lens",
    "llds",
    "luspo",
    "m2po",
    "ma_rlhf",
    "maxk",
    "mdpo",
    "minirl",
    "opmd",
    "opo",
    "pass_at_k",
    "pcr",
    "r2vpo",
    "rec",
    "riskpo",
    "rl_zvp",
    "rpg_kl",
    "sapo",
    "spo_simple",
    "spo_stream",
    "steer",
    "topr",
    "vcrl",
    "vespo",
]
IMAGE = ["flow_dppo", "marble"]
FEW = {"draws": 5}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LANGUAGE, *IMAGE])
def test_two_iterations(name: str) -> None:
    several = {"algorithm__rewards": 1} if name in ("marble", "drw_grad") else {}
    values = config_of(name, "shapes" if name in IMAGE else "countdown", **several)
    if name == "marble":
        values["algorithm"] |= FEW
    if name == "flow_dppo":
        values["algorithm"] |= {"size": 1}  # of three steps
    if name == "vcrl":
        values["algorithm"]["rounds"] = 2
    found = train(values, Work(2))
    assert len(found.metrics) == 2
    for metrics in found.metrics:
        assert all(math.isfinite(value) for value in metrics.values()), metrics
    assert found.metrics[0]["ratio/first_max_deviation"] < 1e-3


@pytest.mark.slow
def test_shares_of_rewards_survive_an_end_of_the_run() -> None:
    """MARBLE with three rewards: shares, and which iteration combines anew, go on where the run ended."""
    values = config_of("marble", "shapes", algorithm__rewards=3)
    values["algorithm"] |= {**FEW, "refresh": 3}
    values["rewards"] = [
        {"use": "shapes", "options": {"mode": "mixed"}},
        {"use": "jpeg_compressibility"},
        {"use": "shapes_soft"},
    ]
    whole = train(values, Work(4))
    first = train(values, Work(2))
    assert first.state is not None
    rest = train(values, Work(4, start=first.state))
    assert [m["loss"] for m in whole.metrics[2:]] == pytest.approx([m["loss"] for m in rest.metrics])
    assert ["combination/share_0" in m for m in whole.metrics] == [True, False, False, True]
    assert whole.metrics[1]["coefficient/advantage.shares.0"] != pytest.approx(1 / 3)

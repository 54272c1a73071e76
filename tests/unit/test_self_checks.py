"""What a run says at its start about the steps and times it trains on, and about the layers it adapts."""

from __future__ import annotations

import pytest
import torch
from accelerate import init_empty_weights

from flowrl import composition
from flowrl.errors import UserError
from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import CPS, DDIM, FlowSDE, negligible
from flowrl.models.diffusion.lora_targets import LORA_TARGETS
from flowrl.models.lora import ATTENTION_TARGETS, LoRAOptions, adapt, describe_layers, target_layers, trained_parameters
from flowrl.models.lora_preview import preview_adapter
from flowrl.startup.time_grid import check_time_grid
from tests.fidelity.bench import sd3_times
from tests.unit.test_estimators import ShiftPolicy

IMAGE = [name for name in composition.preset_names() if composition.build(name).family == "diffusion"]


class Grid(ShiftPolicy):
    """A policy of which only the grid is asked."""

    def __init__(self, times: torch.Tensor, trained: float = 0.0) -> None:
        super().__init__()
        self.grid, self.trained = times, trained

    def times(self, steps: int) -> torch.Tensor:
        return self.grid

    def snap(self, t: torch.Tensor) -> torch.Tensor:
        return t.clamp(min=self.trained)


def linear(steps: int, last: float) -> torch.Tensor:
    """A grid whose last time before 0 is ``last``, as the shapes world's."""
    return torch.cat([torch.linspace(1, last, steps, dtype=torch.float64), torch.zeros(1).double()])


def ddpm_times(steps: int) -> torch.Tensor:
    """Stable Diffusion's leading grid, in flow coordinates, to 0."""
    alphas = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(dim=0)
    a = alphas[(torch.arange(steps) * (1000 // steps)).flip(0) + 1]
    t = (1 - a).sqrt() / (a.sqrt() + (1 - a).sqrt())
    return torch.cat([t, torch.zeros(1).double()])


GRIDS = {
    "sd3": sd3_times,
    "linear": lambda n: linear(n, 0.001),
    "coarse": lambda n: linear(n, 1 / n),
    "ddpm": ddpm_times,
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", IMAGE)
def test_no_preset_trains_noise_on_any_grid(name: str, grid: str) -> None:
    for steps in (8, 10, 25, 50):
        made = composition.build({"use": name, "steps": steps})
        trained = 0.0283 if grid == "ddpm" else 0.0  # the cleanest time of a network for DDPM
        policy = Grid(GRIDS[grid](steps), trained)
        assert check_time_grid(made, policy) == [], (name, grid, steps)
        if not isinstance(made.estimator, Transitions) or made.estimator.weight_vanishes:
            continue
        reach = made.sampler.recordable(made.sampler.grid(policy))
        if reach:
            std = made.sampler.dynamics.coefficients(policy.times(steps)[:-1], made.sampler.grid(policy)[1:])[2]
            assert float(std[reach.start : reach.stop].min()) >= 0.01


def test_ddpo_trains_all_steps_of_stable_diffusion_and_chooses_on_other_grids() -> None:
    sampler = composition.build("ddpo").sampler
    assert sampler.recordable(sampler.grid(Grid(ddpm_times(50), 0.0283))) == range(50)
    for grid in (sd3_times(50), linear(50, 0.001)):
        assert sampler.recordable(sampler.grid(Grid(grid))) == range(48)
    pixart = linear(50, 0.0099)  # a grid that visits the first training time itself: the last step goes on to 0
    assert torch.equal(sampler.grid(Grid(pixart, 0.0099)), pixart)


@pytest.mark.parametrize(
    ("spec", "grid", "words"),
    [
        ({"use": "ddpo", "steps": 8, "sampler": {"window": {"drop": 1}}}, linear(8, 0.001),
         r"step 7 of 8 \(t 0\.1437 -> 0\.0010\).*standard deviation 0\.0010.*window\.drop to 2"),
        ({"use": "flow_grpo", "sampler": {"window": {"drop": 0}}}, sd3_times(10),
         r"step 10 of 10 \(t 0\.0089 -> 0\.0000\).*standard deviation 0\.0063.*window\.drop to 1"),
        ({"use": "mix_grpo", "steps": 10, "size": 9, "sampler": {"dynamics": {"use": "cps"}}}, sd3_times(10),
         r"step 9 of 10.*move algorithm\.sampler\.window to earlier steps"),
        ({"use": "fpo", "estimator": {"times": {"least": 0.0}}}, sd3_times(10),
         r"10% of the times.*0\.0089.*least=0\.02"),
        ({"use": "rwr", "estimator": {"times": "uniform_times"}}, sd3_times(10), r"2% of the times.*times\.low=0\.02"),
    ],
)  # fmt: skip
def test_noise_that_a_config_asks_for_is_named_with_its_fix(spec: dict, grid: torch.Tensor, words: str) -> None:
    import re

    said = check_time_grid(composition.build(spec), Grid(grid))
    assert any(re.search(words, sentence) for sentence in said), said


def test_a_step_without_noise_is_refused_at_the_start() -> None:
    with pytest.raises(UserError, match=r"step 10 of 10 .* is deterministic.*window\.drop to 2"):
        check_time_grid(
            composition.build({"use": "ddpo", "steps": 10, "sampler": {"window": {"drop": 0}}}), Grid(sd3_times(10))
        )
    with pytest.raises(UserError, match="leaves no step to train, because none has noise enough"):
        check_time_grid(composition.build({"use": "ddpo", "steps": 8, "eta": 0.0}), Grid(sd3_times(8)))


def test_negligible_is_by_std_and_by_what_a_velocity_moves() -> None:
    assert negligible(DDIM(1.0), sd3_times(10)).nonzero()[:, 0].tolist() == [8, 9]
    assert negligible(FlowSDE(0.7), sd3_times(10)).nonzero()[:, 0].tolist() == [9]
    assert not negligible(CPS(0.8), sd3_times(10))[:5].any()
    jump = torch.tensor([0.5, 0.02, 0.0], dtype=torch.float64)  # std 0.02, but the mean moves by 25 of them
    assert negligible(DDIM(1.0), jump).tolist() == [True, True]


SD35_MEDIUM = dict(
    sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24, attention_head_dim=64,
    num_attention_heads=24, joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048,
    pos_embed_max_size=384, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
)  # fmt: skip


@pytest.mark.slow
def test_sd35_medium_gets_the_adapters_of_the_releases() -> None:
    """Their list is the eight projections of `attn`; the last block has no to_add_out: 24 x 8 - 1."""
    from diffusers import SD3Transformer2DModel

    with init_empty_weights():
        network = SD3Transformer2DModel(**SD35_MEDIUM)
    layers = target_layers(network, LoRAOptions(), LORA_TARGETS["SD3Transformer2DModel"])
    assert len(layers) == 191 and not any("attn2" in name for name in layers)
    assert (
        len(target_layers(network, LoRAOptions(targets=ATTENTION_TARGETS))) == 243
    )  # a bare to_q also hits attn2.to_q
    said = describe_layers(target_layers(network, LoRAOptions(targets=("to_q",))), LoRAOptions())
    assert said == "LoRA of rank 32 on 37 layers: attn.to_q x 24, attn2.to_q x 13"


def test_the_count_is_of_what_peft_adapted_and_none_is_refused() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    options = LoRAOptions(rank=2, targets=("1",))
    adapt(network, options)
    assert trained_parameters(network, options).describe() == "LoRA of rank 2 on 1 layer: 1 x 1"
    assert len([n for n, _ in network.named_modules() if n.endswith("lora_A.default")]) == 1
    with pytest.raises(UserError, match=r"name the layers to adapt in model\.lora\.targets"):
        adapt(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoRAOptions(), ("0",), excluded=("0",))
    with pytest.raises(UserError, match="to_z matches no layer"):
        adapt(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoRAOptions(targets=("to_z",)))


def test_a_dry_run_counts_layers_without_weights() -> None:
    said = preview_adapter("shapes", "diffusion", LoRAOptions(rank=4))
    assert said == "LoRA of rank 4 on 23 layers: attn x 23"  # 3 x 8 - 1
    assert "self_attn x 16, mlp x 12" in str(preview_adapter("sudoku", "causal", LoRAOptions()))
    assert preview_adapter("nobody/such-a-model", "diffusion", LoRAOptions()) is None
    with pytest.raises(UserError, match="to_z matches no layer of SD3Transformer2DModel"):
        preview_adapter("shapes", "diffusion", LoRAOptions(targets=("to_z",)))

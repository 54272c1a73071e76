"""The replayed denoiser is the pipeline's: predictions, schedules, start, images; and a row does not see its batch."""

from __future__ import annotations

import itertools

import pytest
import torch

import flowrl
from flowrl.errors import UserError
from flowrl.models import check_parity
from flowrl.models.deviation import deviation
from flowrl.models.diffusion import load_policy
from flowrl.types import FlowPolicy, prompts_of
from tests import pipelines
from tests.parity.conftest import PROMPTS, points

QUICK = ("sd3", "sd15")


@pytest.mark.parametrize("name", QUICK)
def test_parity_with_a_trained_adapter(name, policies):
    assert check_parity(policies(name)) < 2e-5


def test_a_loaded_policy_checks_itself_again(folder):
    policy = flowrl.load_policy(folder("sd3"), call=pipelines.CALLS["sd3"])
    assert policy.check_parity() == check_parity(policy) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(pipelines.PIPELINES) - set(QUICK)))
def test_parity_of_every_pipeline(name, folder):
    policy = load_policy(folder(name), call=pipelines.CALLS[name])
    x, t = points(policy)
    condition = policy.condition(prompts_of(PROMPTS))
    velocity = policy.velocity(x, t, condition)
    velocity.square().mean().backward()
    # B starts at zero, so the first gradient of an adapter lives there
    moved = [p for key, p in policy.adaptation.parameters.items() if "lora_B" in key]
    assert sum(float(p.grad.abs().sum()) for p in moved if p.grad is not None) > 0
    images = policy.decode(x)
    assert images.shape[0] == 3 and float(images.min()) >= 0 and float(images.max()) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(pipelines.REFUSED))
def test_what_cannot_be_replayed_is_refused(name, folder):
    _, call, message = pipelines.REFUSED[name]
    with pytest.raises(UserError, match=message):
        load_policy(folder(name), call=call)


@pytest.mark.parametrize("name", QUICK)
def test_policy_is_a_flow_policy(name, policies):
    policy: FlowPolicy = policies(name)
    x, t = points(policies(name))
    assert policy.velocity(x, t, policy.condition(prompts_of(PROMPTS))).dtype == torch.float32


@pytest.mark.parametrize("name", QUICK)
def test_a_rollout_is_the_pipelines_own_image(name, policies):
    """From the pipeline's own noise, our initial point, Euler in canonical time, our decode: its image."""
    policy = policies(name)
    shape = (len(PROMPTS), *policy.latent_shape)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    call = {**pipelines.CALLS[name], "latents": noise.clone(), "num_inference_steps": 5, "output_type": "pt"}
    theirs = policy.pipeline(list(PROMPTS), **call).images
    times, condition = policy.times(5), policy.condition(prompts_of(PROMPTS))
    x = policy.initial(noise, times)
    with torch.no_grad():
        for t, t_next in itertools.pairwise(times):
            x = x + float(t_next - t) * policy.velocity(x, t.expand(len(x)), condition)
    torch.testing.assert_close(policy.decode(x), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", QUICK)
def test_a_row_does_not_depend_on_its_batch(name, policies):
    policy = policies(name)
    x, t = points(policy)
    condition = policy.condition(prompts_of(PROMPTS))
    together = policy.velocity(x, t, condition)
    for row in range(3):
        one = torch.tensor([row])
        alone = policy.velocity(x[one], t[one], condition.take(one))
        assert deviation(alone, together[one]) < 1e-5


def test_velocity_of_noise_prediction_is_consistent(policies):
    """SD1.5: the velocity's clean and noise estimates are those of the epsilon the scheduler would get."""
    policy = policies("sd15")
    x, t = points(policy)
    condition = policy.condition(prompts_of(PROMPTS))
    with torch.no_grad():
        velocity = policy.velocity(x, t, condition).double()
        epsilon = policy.native(x, t, condition, None, "cond").double()
    time = t.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(x + (1 - time) * velocity, epsilon, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", QUICK)
def test_times_are_the_schedulers(name, policies):
    policy = policies(name)
    times = policy.times(10)
    assert len(times) == 11 and times[-1] == 0 and bool((times[:-1] > times[1:]).all())
    torch.testing.assert_close(policy.snap(times[:-1]), times[:-1], atol=1e-12, rtol=0)
    if name == "sd3":  # static shift 3, applied twice at the low end as diffusers does (0.0089 is known for T=10)
        torch.testing.assert_close(times[[0, 1, 9]], torch.tensor([1.0, 0.9601, 0.0089]).double(), atol=1e-4, rtol=0)
    else:  # DDIM leading spacing with offset 1
        alphas = policy.pipeline.scheduler.alphas_cumprod.double()[[901, 801, 1]]
        noise, signal = (1 - alphas).sqrt(), alphas.sqrt()
        torch.testing.assert_close(times[[0, 1, 9]], noise / (noise + signal))


def test_every_text_is_encoded_once(folder):
    policy = load_policy(folder("sd3"), call=pipelines.CALLS["sd3"], parity="skip")
    start = policy.encoder.texts_encoded
    condition = policy.condition(prompts_of(["a dog", "a cat", "a dog", "a dog"]))
    policy.condition(prompts_of(["a cat", "a dog"]))
    assert policy.encoder.texts_encoded - start == 2
    assert len(condition) == 4 and condition.index.tolist() == [0, 1, 0, 0]
    conditional, unconditional = condition.branches[1], condition.branches[0]
    assert {len(v) for v in conditional.rows.values()} == {2}
    assert {len(v) for v in unconditional.rows.values()} == {1}  # the negative prompt is the same for all


PER_PROMPT = ("flux2", "kandinsky5", "kandinsky5_video")  # they keep something per prompt until they decode
FURTHER = ("sd15", "flux", "kandinsky3", "kandinsky5", "latte", "ltx", "wan")
DECODED = ["sd3", "flux2", *(pytest.param(name, marks=pytest.mark.slow) for name in FURTHER)]


@pytest.mark.parametrize("name", DECODED)
def test_the_pipeline_is_run_once_for_all_images_and_they_are_those_of_small_runs_bit_for_bit(
    name, policies, monkeypatch
):
    policy = policies(name)
    x = torch.randn(5, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    runs, finish = [], policy.recorder.finish

    def watched(final, blank, prompts, *graph):
        runs.append((len(final), prompts))
        return finish(final, blank, prompts, *graph)

    monkeypatch.setattr(policy.recorder, "finish", watched)
    monkeypatch.setattr(policy.decoder, "rows", 2)
    together = policy.decode(x)
    policy.decode(x)
    small = [(2, 2), (2, 2), (1, 1)]
    assert runs == ([(5, 1), *small, *small] if name in PER_PROMPT else [(5, 1), (5, 1)])
    monkeypatch.setattr(policy.decoder, "_one_prompt", False)
    assert len(together) == 5 and torch.equal(together, policy.decode(x))


def test_images_decoded_in_other_portions_differ_by_rounding_alone(policies, monkeypatch):
    policy = policies("sd3")
    x, _ = points(policy)
    whole = policy.decode(x)
    monkeypatch.setattr(policy.decoder, "rows", 2)
    torch.testing.assert_close(policy.decode(x), whole, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", ["sd3", "sd15", "flux", "qwen_image", "lumina2"])
def test_bfloat16_keeps_trained_weights_in_float32(name, full, folder):
    policy = load_policy(folder(name), call=pipelines.CALLS[name], dtype="bfloat16", full=full)
    assert all(p.dtype == torch.float32 for p in policy.parameters())
    assert next(policy.pipeline.vae.parameters()).dtype == torch.bfloat16
    x, t = points(policy)
    velocity = policy.velocity(x, t, policy.condition(prompts_of(PROMPTS)))
    velocity.square().mean().backward()
    assert velocity.dtype == torch.float32
    gradients = [p.grad for p in policy.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)


def test_the_global_random_state_is_left_alone(policies):
    policy = policies("sd3")
    state = torch.get_rng_state()
    policy.condition(prompts_of(["a blue dog"]))
    policy.times(7)
    check_parity(policy)
    assert torch.equal(state, torch.get_rng_state())


def test_a_wrong_replay_is_refused(folder):
    """The check must catch a replay that is off, or it would prove nothing."""
    policy = load_policy(folder("sd3"), call=pipelines.CALLS["sd3"])
    slot = policy.spec.calls[0].times[0]
    object.__setattr__(slot, "scale", slot.scale * 1.01)
    with pytest.raises(UserError, match="deviates"):
        check_parity(policy)

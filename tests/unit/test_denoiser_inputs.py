"""How the rows of a denoiser's inputs belong to prompts, and which of the user's arguments are repeated for them."""

from __future__ import annotations

import diffusers
import pytest
import torch

from flowrl.models.diffusion.call_arguments import batch_call
from flowrl.models.diffusion.inputs import BatchAxis, join, split
from flowrl.models.diffusion.load import single_step


@pytest.mark.parametrize("axis", [0, 1])
def test_a_prompt_held_once_per_frame_is_taken_apart_and_put_together(axis):
    """AnimateDiff: [uncond p0 f0, uncond p0 f1, uncond p1 f0, ..., cond p1 f1]: two branches, prompts and frames."""
    kind, value = BatchAxis(axis, branches=4), torch.arange(24).reshape(8, 3).movedim(0, axis)
    parts = split(value, kind, branches=2)
    assert [part.shape for part in parts] == [(2, 2, 3)] * 2
    assert parts[1][1, :, 0].tolist() == [18, 21]  # the last prompt of the second branch: the last two rows
    assert torch.equal(join(torch.cat(parts), kind, 2), value)
    one = join(parts[0][:1], kind, 2)
    assert one.movedim(axis, 0)[:, 0].tolist() == [0, 3]


def test_a_leaf_that_all_branches_share_is_not_taken_for_repeated_prompts():
    value = torch.arange(6).reshape(2, 3)
    parts = split(value, BatchAxis(0, branches=1), branches=2)
    assert all(torch.equal(part, value) for part in parts)
    assert torch.equal(join(value, BatchAxis(0, branches=1), 2), value)


def test_a_list_of_one_picture_is_repeated_and_anything_else_handed_over():
    call = {"image": ["picture"], "mask_image": "picture", "video": ["frame 0", "frame 1"], "sizes": [3]}
    assert batch_call(call, 3) == {**call, "image": ["picture"] * 3}


def test_a_consistency_model_keeps_the_few_times_it_is_distilled_for():
    given = diffusers.LCMScheduler(beta_schedule="scaled_linear")
    assert single_step(given) is given
    given.set_timesteps(4, original_inference_steps=50)
    assert given.timesteps.tolist() == [999, 759, 499, 259]


def test_a_learned_variance_is_left_out():
    """DeepFloyd IF would hand prediction and variance to the scheduler, which knows no variance."""
    made = single_step(diffusers.DDPMScheduler(variance_type="learned_range"))
    assert made.config.variance_type == "fixed_small"

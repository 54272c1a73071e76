"""What is said of a model's folder and of ``model.call`` before, or instead of, loading weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.models import LoRAOptions, load_policy
from flowrl.models.diffusion.arguments import batch_call, check_call, check_saved_call, guidance_advice
from flowrl.models.files import check_files, variant_of
from flowrl.runtime.preflight import check
from tests import pipelines

CALL = {"height": 16, "width": 16}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sdxl"
    torch.manual_seed(0)
    pipelines.sdxl().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def plan(folder: Path, **call: Any) -> None:
    rewards, train = ["jpeg_compressibility"], {"iterations": 1}
    model = {"path": str(folder), "call": {**CALL, **call}}
    check(Config.of({"name": "x", "model": model, "algorithm": "ddpo", "rewards": rewards, "train": train}))


def load(folder: Path, **call: Any) -> Any:
    return load_policy(str(folder), family="diffusion", call={**CALL, **call}, lora=LoRAOptions(rank=1))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"sigmas": [1.0, 0.5]}, "algorithm.sampler.steps"),
        ({"timesteps": [999]}, "algorithm.sampler.steps"),
        ({"num_inference_steps": 20}, "algorithm.sampler.steps"),
        ({"denoising_end": 0.8}, "clean picture"),
        ({"generator": 1}, "train.seed"),
        ({"latents": [0.0]}, "train.seed"),
        ({"num_images_per_prompt": 2}, "data.group"),
        ({"output_type": "pil"}, "remove it"),
        ({"return_dict": False}, "remove it"),
        ({"callback_on_step_end": "x"}, "remove it"),
        ({"prompt": "a dog"}, "data.train"),
        ({"negative_prompt": ["a", "b"]}, "one row"),
        ({"negative_prompt": []}, "one row"),
        ({"guidance_scale": float("inf")}, "finite"),
        ({"guidance_scale": True}, "a number"),
        ({"guidance_scale": "5"}, "a number"),
        ({"height": "512"}, "whole number"),
        ({"height": 0}, "1 or more"),
        ({"heigth": 512}, "did you mean 'height'"),
        ({"prompt_2": False}, "switch"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused_before_loading(saved: Path, call: Any, words: str) -> None:
    with pytest.raises(UserError, match=r"model\.call") as caught:
        plan(saved, **call)
    assert words in str(caught.value) and len(str(caught.value)) <= 600


def test_embeddings_of_two_rows_and_guidance_that_does_nothing() -> None:
    with pytest.raises(UserError, match=r"prompt_embeds of shape \(2, 4, 8\).*one row"):
        check_call({"prompt_embeds": torch.zeros(2, 4, 8)})
    with pytest.raises(UserError, match=r"true_cfg_scale=4.0 does nothing without model.call.negative_prompt"):
        check_call({"true_cfg_scale": 4.0})
    check_call({"true_cfg_scale": 4.0, "negative_prompt": " "})
    assert batch_call({"negative_prompt": ["x"], "height": 8}, 3) == {"negative_prompt": ["x"] * 3, "height": 8}
    check_saved_call("owner/name", {"whatever": 1})  # of the hub: its class is not known yet


def test_advice_on_guidance_leads_somewhere() -> None:
    assert "negative_prompt" in guidance_advice(["true_cfg_scale", "guidance_scale"], embedded=True)
    assert "leave algorithm.sampler.guidance" in guidance_advice(["guidance_scale"], embedded=True)
    assert "guidance_scale above 1" in guidance_advice(["guidance_scale"], embedded=False)
    policy = load_policy(pipelines.flux(), call=CALL, lora=LoRAOptions(rank=1))
    with pytest.raises(UserError, match=r"true_cfg_scale above 1 and model\.call\.negative_prompt"):
        policy.check_guidance(3.5)
    advised = {**CALL, "true_cfg_scale": 3.5, "negative_prompt": "bad"}
    load_policy(pipelines.flux(), call=advised, lora=LoRAOptions(rank=1)).check_guidance(3.5)


def test_a_scale_that_takes_the_place_of_the_users_is_told() -> None:
    call = {"guidance_scale": 4.5, "height": 16, "width": 16}
    guided = load_policy(pipelines.sd3(), call=call, lora=LoRAOptions(rank=1))
    assert guided.check_guidance(1.0) == pytest.approx(4.5)
    assert guided.check_guidance(None) is None and guided.check_guidance(4.5) is None
    plain = load_policy(pipelines.sd3(), call={**call, "guidance_scale": 1.0}, lora=LoRAOptions(rank=1))
    assert plain.check_guidance(1.0) is None
    read = load_policy(pipelines.flux(), call={**CALL, "guidance_scale": 4.5}, lora=LoRAOptions(rank=1))
    assert read.check_guidance(1.0) is None  # an input of the network, which stays 4.5


def test_sizes_of_sdxl_may_be_lists(saved: Path) -> None:
    sizes = {"original_size": [16, 16], "target_size": [16, 16], "crops_coords_top_left": [0, 0]}
    assert load(saved, **sizes).recorder.call["original_size"] == (16, 16)


def test_damaged_folders_are_told_by_the_dry_run(copy: Path) -> None:
    def hurt(name: str, content: bytes, words: str) -> None:
        path = copy / name
        before = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            plan(copy)
        path.write_bytes(before)

    weights = "unet/diffusion_pytorch_model.safetensors"
    whole = (copy / weights).read_bytes()
    hurt("unet/config.json", b'{"in_channels": ', r"config\.json is damaged: not JSON")
    hurt("model_index.json", b"[]", "should hold an object")
    hurt("text_encoder/config.json", b"[" * 100_000, "damaged")
    hurt(weights, whole[:-7], "damaged or cut short")
    hurt(weights, whole[:3], "damaged or cut short")
    hurt(weights, b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull")
    plan(copy)
    (copy / weights).rename(copy / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickle.*flowrl\.score\.convert"):
        check_files(copy)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors is missing"):
        check_files(tmp_path)


def test_a_folder_of_one_variant_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipelines.sdxl().save_pretrained(tmp_path / "model", variant="fp16")
    assert variant_of(tmp_path / "model") == "fp16"
    assert load(tmp_path / "model").recipe.guidance.scale == 5.0


def test_weights_that_are_nan_are_named(copy: Path) -> None:
    path = copy / "vae/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["decoder.conv_in.bias"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 of \d+ numbers of vae\.decoder\.conv_in\.bias are NaN"):
        load(copy)

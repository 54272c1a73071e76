"""What is said of a model's folder and of ``model.call`` before, or instead of, loading weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from flowrl import cli
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.models import LoRAOptions, load_policy
from flowrl.models.diffusion.call_arguments import batch_call, check_call, check_saved_call, guidance_advice
from flowrl.models.diffusion.load import open_pipeline
from flowrl.models.family import declared_family
from flowrl.models.files import check_files, variant_of
from flowrl.models.source import ModelSource
from flowrl.startup.preflight import check_run
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
    check_run(Config.of({"name": "x", "model": model, "algorithm": "ddpo", "rewards": rewards, "train": train}))


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
    with pytest.raises(UserError, match=r"pickle.*flowrl\.scorers\.convert"):
        check_files(copy)


@pytest.mark.parametrize(
    "field, value", [("auto_map", ["a", "b"]), ("auto_map", 3), ("architectures", 1), ("model_type", ["llama"])]
)
def test_fields_of_another_kind_are_named(tmp_path: Path, field: str, value: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", field: value}))
    with pytest.raises(UserError, match=rf"config\.json is damaged: its {field} should be .*; download"):
        declared_family(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "auto_map": None, "architectures": None}))
    assert declared_family(str(tmp_path)) == ("causal", True)


def without(file: Path, key: str) -> dict[str, torch.Tensor]:
    """Remove one tensor from a file of weights; all that it held."""
    weights = load_file(file)
    save_file({name: tensor for name, tensor in weights.items() if name != key}, file, metadata={"format": "pt"})
    return weights


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("text_encoder/model", "embeddings.position_embedding.weight"),
        ("text_encoder_2/model", "text_projection.weight"),
        ("unet/diffusion_pytorch_model", "conv_in.weight"),
        ("vae/diffusion_pytorch_model", "decoder.conv_in.bias"),
    ],
)
def test_weights_that_a_file_lacks_are_no_random_numbers(copy: Path, part: str, key: str) -> None:
    file = copy / f"{part}.safetensors"
    held = without(file, next(name for name in load_file(file) if name.endswith(key)))
    with pytest.raises(UserError, match=rf"not whole: {part.split('/')[0]} lacks 1 of the weights of .*{key}"):
        load(copy)
    save_file(held, file, metadata={"format": "pt"})
    load(copy)


def test_tied_weights_and_constants_are_not_missed(tmp_path: Path) -> None:
    """T5 holds its tied embeddings once; positions of images are constants; batch statistics are not."""
    torch.manual_seed(0)
    for name in ("sd3", "flux2"):
        pipelines.PIPELINES[name]().save_pretrained(tmp_path / name)
    shared = load_file(tmp_path / "sd3/text_encoder_3/model.safetensors")
    assert sum("shared" in key or "embed_tokens" in key for key in shared) == 1
    without(tmp_path / "sd3/transformer/diffusion_pytorch_model.safetensors", "pos_embed.pos_embed")
    open_pipeline(ModelSource(str(tmp_path / "sd3")), torch.float32)
    without(tmp_path / "flux2/vae/diffusion_pytorch_model.safetensors", "bn.running_var")
    with pytest.raises(UserError, match=r"vae lacks 1 of the weights .*bn\.running_var"):
        open_pipeline(ModelSource(str(tmp_path / "flux2")), torch.float32)


def test_attention_named_as_in_2022_is_read(copy: Path) -> None:
    """Files of the first Stable Diffusion say query, key, value, proj_attn; diffusers renames them."""
    file = copy / "vae/diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, tensor in load_file(file).items():
        for new, name in names.items():
            key = key.replace(f".{new}.", f".{name}.")
        old[key] = tensor
    assert any(".proj_attn." in key for key in old)
    whole = open_pipeline(ModelSource(str(copy)), torch.float32).vae.state_dict()
    save_file(old, file, metadata={"format": "pt"})
    read = open_pipeline(ModelSource(str(copy)), torch.float32).vae.state_dict()
    assert all(torch.equal(whole[key], read[key]) for key in whole)


def test_a_pipeline_of_the_hub_is_looked_at_as_well(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As downloaded earlier, without a network."""
    repository = tmp_path / "models--somebody--sdxl"
    shutil.copytree(saved, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    opened = open_pipeline(ModelSource("somebody/sdxl"), torch.float32)
    assert type(opened).__name__ == "StableDiffusionXLPipeline"
    file = repository / "snapshots" / ("0" * 40) / "vae/diffusion_pytorch_model.safetensors"
    without(file, "decoder.conv_in.bias")
    with pytest.raises(UserError, match="vae lacks 1 of the weights"):
        open_pipeline(ModelSource("somebody/sdxl"), torch.float32)


@pytest.mark.slow
def test_guidance_that_a_pipeline_cannot_give_is_said_before_sampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run ends at its start, in one sentence that says what FLUX takes."""
    pipelines.save("flux", tmp_path / "flux")
    values = {
        "name": "x", "out": str(tmp_path / "run"),
        "model": {"path": str(tmp_path / "flux"), "call": CALL, "lora": {"rank": 1}, "dtype": "float32"},
        "algorithm": {"use": "flow_grpo", "sampler": {"steps": 4, "guidance": 3.5}},
        "rewards": ["jpeg_compressibility"], "data": {"train": "shapes:train", "prompts": 2, "group": 2},
        "train": {"iterations": 1},
    }  # fmt: skip
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(values))
    monkeypatch.setattr("flowrl.samplers.flow.FlowSampler.__call__", lambda *_, **__: pytest.fail("sampled"))
    monkeypatch.setattr("sys.argv", ["flowrl", "train", str(path)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = " ".join(capfd.readouterr().err.split())
    assert stopped.value.code == 2 and "Traceback" not in said
    assert "guidance 3.5 needs the unconditional branch, which FluxPipeline was loaded without" in said
    assert "true_cfg_scale above 1 and model.call.negative_prompt" in said


def test_missing_shards_are_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors is missing"):
        check_files(tmp_path)


def test_a_folder_of_one_variant_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipelines.sdxl().save_pretrained(tmp_path / "model", variant="fp16")
    assert variant_of(tmp_path / "model") == "fp16"
    assert load(tmp_path / "model").spec.guidance.scale == 5.0


def test_weights_that_are_nan_are_named(copy: Path) -> None:
    path = copy / "vae/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["decoder.conv_in.bias"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 of \d+ numbers of vae\.decoder\.conv_in\.bias are NaN"):
        load(copy)

"""Adapters of other tools act as they do in PEFT and diffusers, or are refused by name; ours act there as here."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.evaluation.targets import Request, find_target
from flowrl.models import LoRAOptions, check_parity, export_policy, load_adapter, load_policy
from flowrl.models.adapters import is_adapter_name, kohya, peft, read
from flowrl.models.adapters.verify import check_updates
from flowrl.models.deviation import deviation
from flowrl.models.diffusion.recorder import Recorder
from flowrl.startup.model_checks import with_adapter_shape
from flowrl.startup.policies import open_policy
from tests import components_text, pipelines
from tests.parity.conftest import move

PROMPT = ("a red circle",)


# ------------------------------------------------------------------------------------------------ PEFT, language
def made_by_peft(place: Path, **options: Any) -> Path:
    """A trained-looking adapter of the tiny llama, saved by PEFT."""
    source = components_text.folder("llama")
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(source), LoraConfig(**{"r": 4, "lora_alpha": 6, **options})
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.rand(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(str(place))
    return place


def peft_logits(place: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(components_text.folder("llama"))
    with torch.no_grad():
        return PeftModel.from_pretrained(model, str(place)).eval()(torch.arange(3, 12)[None]).logits


def logits(policy: Any) -> Tensor:
    with torch.no_grad():
        return policy.network.model(torch.arange(3, 12)[None]).logits


def config_with(place: Path | str, **lora: Any) -> Config:
    return Config.of(
        {
            "name": "t",
            "model": {
                "path": str(components_text.folder("llama")),
                "adapter": str(place),
                **({"lora": lora} if lora else {}),
            },
            "algorithm": "grpo",
            "rewards": ["exact_match"],
            "data": {"train": "sudoku:train"},
            "eval": {"every": 0},
            "train": {"iterations": 1},
        }
    )


Q, V, GATE = "q_proj", "v_proj", "gate_proj"
HONOURED = {
    "plain": {"target_modules": [Q, V]},
    "rslora": {"target_modules": [Q, V], "use_rslora": True},
    "dora": {"target_modules": [Q, GATE], "use_dora": True},
    "both": {"target_modules": [Q], "use_dora": True, "use_rslora": True},
    "patterns": {
        "target_modules": [Q, V, GATE],
        "rank_pattern": {GATE: 8, r".*\.0\.self_attn.v_proj": 2},
        "alpha_pattern": {V: 3},
    },
    "rslora with patterns": {"target_modules": [Q, V], "rank_pattern": {V: 9}, "use_rslora": True},
    "one layer": {"target_modules": [Q, V], "layers_to_transform": [1]},
    "excluded": {"target_modules": "all-linear", "exclude_modules": [GATE]},
    "dropout": {"target_modules": [Q], "lora_dropout": 0.5},
    "orthogonal": {"target_modules": [Q], "init_lora_weights": "orthogonal"},
}


@pytest.mark.parametrize("kind", HONOURED)
def test_peft_adapters_act_as_in_peft(kind: str, tmp_path: Path) -> None:
    place = made_by_peft(tmp_path / "adapter", **HONOURED[kind])
    expected = peft_logits(place)
    base = logits(load_policy(components_text.folder("llama")))
    assert deviation(base, expected) > 1e-2
    trained = open_policy(config_with(place))  # model.adapter
    torch.testing.assert_close(logits(trained), expected, atol=2e-6, rtol=1e-5)
    with trained.using("reference"):  # training starts from the adapter, and its reference is the base model
        torch.testing.assert_close(logits(trained), base, atol=2e-6, rtol=1e-5)
    target, _ = find_target(str(place), Request(model=str(components_text.folder("llama"))))  # sample and eval
    torch.testing.assert_close(logits(target.variants[1].open()), expected, atol=2e-6, rtol=1e-5)
    assert export_policy(trained, tmp_path / "again", "peft") < 1e-5
    torch.testing.assert_close(peft_logits(tmp_path / "again"), expected, atol=2e-6, rtol=1e-5)


def test_the_users_own_shape_is_kept_where_it_fits(tmp_path: Path) -> None:
    place = made_by_peft(tmp_path / "adapter", target_modules=[Q, V], use_rslora=True)
    config = with_adapter_shape(config_with(place), "causal")
    assert config.model.lora.rslora and (config.model.lora.rank, config.model.lora.alpha) == (4, 6)
    assert with_adapter_shape(Config.of(config.model_dump(mode="json")), "causal") == config, "as a run's own config"
    mine = open_policy(config_with(place, rank=4, alpha=64, targets=[Q, V, GATE]))  # other strength, one layer more
    torch.testing.assert_close(logits(mine), peft_logits(place), atol=2e-6, rtol=1e-5)
    with pytest.raises(
        UserError, match=r"model.lora.rank is 8, and the adapter .* has the rank 4; leave model.lora out"
    ):
        with_adapter_shape(config_with(place, rank=8), "causal")
    with pytest.raises(UserError, match=r"does not fit model.lora .*first difference: .*v_proj"):
        open_policy(config_with(place, rank=4, targets=[Q]))


REFUSED = {
    "biases": ({"bias": "all"}, "bias=all"),
    "own biases": ({"lora_bias": True}, "lora_bias"),
    "whole layers": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changed the base"),
    "olora": ({"init_lora_weights": "olora"}, "init_lora_weights='olora' changed the base"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_more_than_low_rank_is_refused_by_its_field(kind: str, tmp_path: Path) -> None:
    options, message = REFUSED[kind]
    place = made_by_peft(tmp_path / "adapter", target_modules=[Q], **options)
    same_answer(place, message)


def same_answer(place: Path, message: str) -> None:
    """``model.adapter``, and sample and eval, refuse in the same words."""
    base = str(components_text.folder("llama"))
    with pytest.raises(UserError, match=message) as first:
        with_adapter_shape(config_with(place), "causal")
    with pytest.raises(UserError, match=message) as second:
        find_target(str(place), Request(model=base))
    assert str(first.value) == f"model.adapter: {second.value}"


@pytest.mark.parametrize("kind", ["LoHaConfig", "LoKrConfig", "IA3Config", "OFTConfig", "VeraConfig"])
def test_other_kinds_of_adapters_are_named(kind: str, tmp_path: Path) -> None:
    import peft

    options: dict[str, Any] = {"target_modules": [Q]}
    if kind == "IA3Config":
        options["feedforward_modules"] = []
    model = AutoModelForCausalLM.from_pretrained(components_text.folder("llama"))
    get_peft_model(model, getattr(peft, kind)(**options)).save_pretrained(str(tmp_path / "adapter"))
    same_answer(tmp_path / "adapter", rf"is a {kind.removesuffix('Config').upper()} adapter \(peft_type\)")


def edited(place: Path, **changes: Any) -> None:
    file = place / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def without(place: Path, part: str) -> None:
    file = place / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if part not in key}, file)


def to_nan(place: Path) -> None:
    file = place / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "alpha is text": (lambda p: edited(p, lora_alpha="16"), "lora_alpha should be a number above 0, found '16'"),
    "alpha is 0": (lambda p: edited(p, lora_alpha=0), "lora_alpha should be a number above 0"),
    "alpha is nothing": (lambda p: edited(p, lora_alpha=None), "lora_alpha should be a number above 0"),
    "alpha is infinite": (lambda p: edited(p, lora_alpha=float("inf")), "lora_alpha should be a number above 0"),
    "rank 0": (lambda p: edited(p, r=0), "r should be a number above 0, found 0"),
    "another rank": (lambda p: edited(p, r=8), "r is 8 for .*, whose tensors have the rank 4"),
    "rank is true": (lambda p: edited(p, r=True), "r should be a number above 0"),
    "a pattern is a list": (lambda p: edited(p, alpha_pattern=[3]), "alpha_pattern should map layers to numbers"),
    "a field of the future": (lambda p: edited(p, use_new_trick=True), "use_new_trick=True is not supported"),
    "parameters are a text": (lambda p: edited(p, target_parameters="w"), "target_parameters should be a list"),
    "no B": (lambda p: without(p, "lora_B"), r"lacks .*lora_B.weight"),
    "no tensors": (lambda p: without(p, "lora_"), "holds no LoRA"),
    "not finite": (to_nan, "values that are not finite"),
    "truncated": (lambda p: os.truncate(p / "adapter_model.safetensors", 100), "is damaged or cut short"),
    "config is a list": (lambda p: (p / "adapter_config.json").write_text("[1]"), "should hold an object, found list"),
    "config is cut": (lambda p: (p / "adapter_config.json").write_text('{"r": '), "is damaged: not JSON"),
    "config is deep": (lambda p: (p / "adapter_config.json").write_text("[" * 90000), "is damaged: not JSON"),
    "a pickle": (
        lambda p: (p / "adapter_model.safetensors").rename(p / "adapter_model.bin"),
        r"adapter_model.bin is a pickle, which can run code.*save it as safetensors",
    ),
    "no config": (lambda p: (p / "adapter_config.json").unlink(), "has no adapter_config.json beside its tensors"),
}


@pytest.mark.parametrize("harm", DAMAGE)
def test_damaged_adapters_give_a_sentence(harm: str, tmp_path: Path) -> None:
    place = made_by_peft(tmp_path / "adapter", target_modules=[Q])
    DAMAGE[harm][0](place)
    with pytest.raises(UserError, match=DAMAGE[harm][1]) as caught:
        with_adapter_shape(config_with(place), "causal")
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


def test_adapters_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's cache as it lies on a disk, without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--owner--lora"
    place = made_by_peft(repository / "snapshots" / "abc", target_modules=[Q], use_rslora=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    shutil.copy(place / "adapter_model.safetensors", place / "second.safetensors")
    assert is_adapter_name("owner/lora") and not is_adapter_name("owner/other")
    expected = peft_logits(place)
    torch.testing.assert_close(logits(open_policy(config_with("owner/lora"))), expected, atol=2e-6, rtol=1e-5)
    target, _ = find_target("owner/lora", Request(model=str(components_text.folder("llama"))))
    torch.testing.assert_close(logits(target.variants[1].open()), expected, atol=2e-6, rtol=1e-5)
    with pytest.raises(UserError, match=r"adapter 'owner/other' is not on this machine, and HF_HUB_OFFLINE is set"):
        with_adapter_shape(config_with("owner/other"), "causal")
    with pytest.raises(UserError, match="no adapter nowhere"):
        with_adapter_shape(config_with("nowhere"), "causal")


# ---------------------------------------------------------------------------------------------- image models
def predictions(pipeline: Any, name: str) -> Tensor:
    return Recorder(pipeline, pipelines.CALLS[name]).record(PROMPT, 1).steps[0].model_output


def of_diffusers(folder: Path, name: str, file: Path) -> Tensor:
    import diffusers

    fresh = diffusers.DiffusionPipeline.from_pretrained(folder)
    fresh.load_lora_weights(str(file.parent), weight_name=file.name)
    return predictions(fresh, name)


def ours(folder: Path, name: str, file: Path | str) -> Tensor:
    lora = read(str(file), str(folder)).options()
    policy = load_policy(folder, call=pipelines.CALLS[name], lora=lora, parity="skip")
    load_adapter(policy, file)
    assert check_parity(policy) < 1e-4
    return predictions(policy.pipeline, name)


def random_pair(out: int, inner: int, rank: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(rank, inner) * 0.3, torch.randn(out, rank) * 0.3


def layers_of(module: Any, ends: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    found = {
        name: part for name, part in module.named_modules() if name.endswith(ends) and hasattr(part, "in_features")
    }
    assert found
    return {name: (part.out_features, part.in_features) for name, part in found.items()}


def written(folder: Path, form: str, file: Path) -> Path:
    """A LoRA of attention (and, for some, text encoders) in the names of a tool, written by hand."""
    import diffusers

    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, sizes in layers_of(pipeline.unet, ("to_q", "to_k", "to_v", "to_out.0")).items():
        down, up = random_pair(*sizes)
        parent, _, last = name.replace("to_out.0", "to_out").rpartition(".")
        stem = {
            "kohya": "lora_unet_" + name.replace(".", "_"),
            "kohya with text": "lora_unet_" + name.replace(".", "_"),
            "old": f"unet.{parent}.processor.{last}_lora",
            "oldest": f"{parent}.processor.{last}_lora",
            "classic": f"unet.{name}.lora",
            "peft": f"unet.{name}",
            "bare": name,
        }[form]
        a, b = {"peft": ("lora_A", "lora_B"), "bare": ("lora_A", "lora_B"), "kohya": ("lora_down", "lora_up"),
                "kohya with text": ("lora_down", "lora_up")}.get(form, ("down", "up"))  # fmt: skip
        tensors |= {f"{stem}.{a}.weight": down, f"{stem}.{b}.weight": up}
        if form.startswith("kohya"):
            tensors[f"{stem}.alpha"] = torch.tensor(1.5)
    if form == "kohya with text":
        for name, sizes in layers_of(pipeline.text_encoder, ("q_proj", "k_proj", "v_proj", "out_proj", "fc1")).items():
            stem = "lora_te_text_model_" + name.removeprefix("text_model.").replace(".", "_")
            down, up = random_pair(*sizes)
            tensors |= {
                f"{stem}.lora_down.weight": down,
                f"{stem}.lora_up.weight": up,
                f"{stem}.alpha": torch.tensor(3.0),
            }
    save_file(tensors, file)
    return file


@pytest.mark.parametrize(
    "form",
    ["kohya", *(pytest.param(form, marks=pytest.mark.slow) for form in ("kohya with text", "old", "classic", "peft"))],
)
@pytest.mark.slow
def test_single_files_act_as_in_diffusers(form: str, folder: Any, tmp_path: Path) -> None:
    base = folder("sd15")
    file = written(base, form, tmp_path / "some lora.safetensors")
    expected = of_diffusers(base, "sd15", file)
    plain = predictions(load_policy(base, call=pipelines.CALLS["sd15"], parity="skip").pipeline, "sd15")
    assert deviation(plain, expected) > 1e-2
    assert is_adapter_name(str(file)) and is_adapter_name(str(tmp_path))
    for place in (file, tmp_path):
        assert deviation(ours(base, "sd15", place), expected) < 1e-6
    target, _ = find_target(str(file), Request(model=str(base), call=pipelines.CALLS["sd15"]))
    assert deviation(predictions(target.variants[1].open().pipeline, "sd15"), expected) < 1e-6


@pytest.mark.parametrize("form", ["oldest", "bare"])
def test_names_without_the_network_are_understood(form: str, folder: Any, tmp_path: Path) -> None:
    """Diffusers' pipelines ignore them with a note; its networks read them (`save_attn_procs`, `save_lora_adapter`)."""
    base = folder("sd15")
    file = written(base, form, tmp_path / "a.safetensors")
    same = written(base, "peft", tmp_path / "b.safetensors")
    assert deviation(ours(base, "sd15", file), of_diffusers(base, "sd15", same)) < 1e-6


def test_every_layers_own_alpha_counts(folder: Any, tmp_path: Path) -> None:
    base = folder("sd15")
    file = written(base, "kohya", tmp_path / "a.safetensors")
    tensors = load_file(file)
    for number, key in enumerate(key for key in tensors if key.endswith("alpha")):
        tensors[key] = torch.tensor(0.5 + number / 9)
    save_file(tensors, file)
    folded = {
        key: value * (float(tensors[key.split(".")[0] + ".alpha"]) / 3 if "lora_up" in key else 1)
        for key, value in tensors.items() if not key.endswith("alpha")
    }  # fmt: skip
    save_file(folded, tmp_path / "b.safetensors")
    assert deviation(ours(base, "sd15", file), of_diffusers(base, "sd15", tmp_path / "b.safetensors")) < 1e-5


def test_text_encoders_stay_adapted_in_exports(folder: Any, tmp_path: Path) -> None:
    base = folder("sd15")
    file = written(base, "kohya with text", tmp_path / "a.safetensors")
    policy = load_policy(base, call=pipelines.CALLS["sd15"], lora=read(file, str(base)).options(), parity="skip")
    load_adapter(policy, file)
    move(policy, 0.05)
    expected = predictions(policy.pipeline, "sd15")
    export_policy(policy, tmp_path / "out", "diffusers")
    assert deviation(of_diffusers(base, "sd15", tmp_path / "out" / "pytorch_lora_weights.safetensors"), expected) < 1e-6
    export_policy(policy, tmp_path / "merged", "merged")
    again = load_policy(tmp_path / "merged", call=pipelines.CALLS["sd15"], parity="skip")
    assert deviation(predictions(again.pipeline, "sd15"), expected) < 1e-4
    with pytest.raises(UserError, match="text encoders is not written"):
        export_policy(policy, tmp_path / "kohya", "kohya")


FOREIGN: dict[str, dict[str, Tensor]] = {
    "LoHa": {"lora_unet_a.hada_w1_a": torch.ones(2, 2)},
    "LoKr": {"lora_unet_a.lokr_w1": torch.ones(2, 2)},
    "DoRA of LyCORIS": {"lora_unet_a.lora_down.weight": torch.ones(2, 2), "lora_unet_a.dora_scale": torch.ones(2)},
    "textual inversion": {"emb_params": torch.ones(2, 8)},
    "weight differences": {"lora_unet_a.diff": torch.ones(2, 2)},
    "Tucker core": {"lora_unet_a.lora_mid.weight": torch.ones(2, 2)},
    "whole checkpoint": {"model.diffusion_model.out.weight": torch.ones(2)},
    "no LoRA in a format": {"something.weight": torch.ones(2)},
    "kohya's names of another": {"lora_unet_joint_blocks_0_x.lora_down.weight": torch.ones(2, 2)},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_that_are_no_lora_are_named(kind: str, folder: Any, tmp_path: Path) -> None:
    save_file(FOREIGN[kind], tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=kind if "kohya" not in kind else "cannot be renamed|kohya"):
        read(tmp_path / "x.safetensors", str(folder("sd15")))


def test_folders_that_do_not_say_which_file(folder: Any, tmp_path: Path) -> None:
    base = str(folder("sd15"))
    (tmp_path / "old.ckpt").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"old.ckpt is a pickle"):
        read(tmp_path, base)
    with pytest.raises(UserError, match=r"old.ckpt is a pickle"):
        read(tmp_path / "old.ckpt", base)
    for name in ("a", "b"):
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"several files \(a.safetensors, b.safetensors\); name one"):
        read(tmp_path, base)
    (tmp_path / "c.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n")
    with pytest.raises(UserError, match="is a pointer of Git LFS"):
        read(tmp_path / "c.safetensors", base)


# ------------------------------------------------------------------------------------------------ what is written
@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux"])
def test_kohyas_form_gives_the_same_pictures(name: str, folder: Any, tmp_path: Path) -> None:
    base = folder(name)
    policy = load_policy(base, call=pipelines.CALLS[name], lora=LoRAOptions(rank=4, alpha=10), parity="skip")
    move(policy, 0.2)
    expected = predictions(policy.pipeline, name)
    assert export_policy(policy, tmp_path / "mine", "kohya") < 1e-5
    file = tmp_path / "mine" / "mine.safetensors"
    tensors = load_file(file)
    assert {key.rsplit(".", 1)[-1] for key in tensors} == {"weight", "alpha"}
    assert all(f"{key.split('.')[0]}.alpha" in tensors for key in tensors)
    if name != "sd3":  # for which diffusers has no converter
        assert deviation(of_diffusers(base, name, file), expected) < 1e-5
    assert deviation(ours(base, name, file), expected) < 1e-5
    known = {
        "sd15": "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        "sdxl": "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q",
        "sd3": "lora_unet_joint_blocks_0_x_block_attn_qkv",
        "flux": "lora_transformer_transformer_blocks_0_attn_to_q",
    }[name]
    assert f"{known}.lora_down.weight" in tensors, sorted(tensors)[:9]


def test_kohyas_names_of_flux_are_taken_apart_by_diffusers() -> None:
    """At FLUX.1's own width, with a part of a joint layer missing."""
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    width = kohya.FLUX_WIDTH
    torch.manual_seed(0)
    double, single = "transformer_blocks.3.", "single_transformer_blocks.7."
    square = [f"{double}attn.{part}" for part in ("to_q", "to_k", "to_v", "add_q_proj", "to_out.0")]
    sizes = dict.fromkeys([*square, f"{single}attn.to_q", f"{single}attn.to_v"], (width, width))
    sizes |= {f"{double}ff.net.0.proj": (4 * width, width), f"{single}proj_out": (width, 5 * width)}
    updates = {name: random_pair(*size, rank=2) for name, size in sizes.items()}
    scales = {name: 0.5 if "to_k" not in name else 2.0 for name in sizes}
    named = kohya.to_kohya("FluxPipeline", updates, scales, lambda n: 4 * width if n.endswith("proj_mlp") else width)
    assert "lora_unet_double_blocks_3_img_attn_qkv.alpha" in named
    assert "lora_unet_single_blocks_7_linear1.alpha" in named
    back = _convert_kohya_flux_lora_to_diffusers(dict(named))
    for name, (down, up) in updates.items():
        got = back[f"transformer.{name}.lora_B.weight"] @ back[f"transformer.{name}.lora_A.weight"]
        torch.testing.assert_close(got[:64], (scales[name] * up @ down)[:64], atol=1e-5, rtol=1e-4)
    assert not back[f"transformer.{single}proj_mlp.lora_B.weight"].any()


@pytest.mark.parametrize("to", ["diffusers", "peft", "kohya"])
def test_exports_are_readable_and_the_same_bytes_each_time(to: Any, folder: Any, tmp_path: Path) -> None:
    policy = load_policy(folder("sd15"), call=pipelines.CALLS["sd15"], parity="skip")
    move(policy)
    before = os.umask(0o022)
    try:
        found = []
        for number in range(4):
            place = tmp_path / str(number) / "lora"
            export_policy(policy, place, to)
            assert place.stat().st_mode & 0o777 == 0o755
            assert {file.stat().st_mode & 0o777 for file in place.iterdir()} == {0o644}
            found.append({file.name: file.read_bytes() for file in place.iterdir()})
    finally:
        os.umask(before)
    assert all(one == found[0] for one in found)
    if to == "peft":
        targets = json.loads(found[0]["adapter_config.json"])["target_modules"]
        assert targets == sorted(targets)


def test_auto_classes_of_peft_open_exports(tmp_path: Path) -> None:
    from peft import AutoPeftModel, AutoPeftModelForCausalLM

    policy = load_policy(components_text.folder("llama"))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    export_policy(policy, tmp_path / "causal", "peft")
    opened = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "causal").eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(torch.arange(3, 12)[None]).logits, logits(policy), atol=2e-6, rtol=1e-5)
    config = json.loads((tmp_path / "causal" / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM" and Path(config["base_model_name_or_path"]).is_absolute()
    masked = load_policy(components_text.folder("bert"), family="masked")
    export_policy(masked, tmp_path / "masked", "peft")
    other = AutoPeftModel.from_pretrained(tmp_path / "masked")
    assert type(other.base_model.model) is type(masked.network.model)


def test_guidance_does_not_spoil_the_check_in_half_precision(folder: Any, tmp_path: Path) -> None:
    """The difference of predictions is measured before guidance multiplies its rounding."""
    call = {**pipelines.CALLS["sd15"], "guidance_scale": 30.0}
    policy = load_policy(folder("sd15"), call=call, dtype="bfloat16", parity="skip")
    move(policy, 0.3)
    for to in ("diffusers", "peft"):
        assert export_policy(policy, tmp_path / to, to) < 5e-2


@pytest.mark.parametrize(
    "to",
    [
        "kohya",
        "merged",
        pytest.param("peft", marks=pytest.mark.slow),
        pytest.param("diffusers", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "name", [pytest.param("sd15", marks=pytest.mark.slow), "sd3", pytest.param("flux", marks=pytest.mark.slow)]
)
def test_rounding_does_not_spoil_the_check_in_half_precision(name: str, to: str, folder: Any, tmp_path: Path) -> None:
    """An adapter so large that a merged weight's rounding moves predictions by more than 5 %."""
    lora = LoRAOptions(rank=4, alpha=10)
    policy = load_policy(folder(name), call=pipelines.CALLS[name], dtype="bfloat16", lora=lora, parity="skip")
    move(policy, 0.3)
    found = export_policy(policy, tmp_path / "out", to)
    assert found < 0.2 and (to not in ("peft", "diffusers") or found == 0)


@pytest.mark.parametrize("to", ["kohya", "merged"])
def test_what_is_more_than_rounding_is_refused_in_half_precision(
    to: str, folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strength that is 5 % too large on one layer."""
    lora = LoRAOptions(rank=4, alpha=10)
    policy = load_policy(folder("sd3"), call=pipelines.CALLS["sd3"], dtype="bfloat16", lora=lora, parity="skip")
    move(policy, 0.3)
    adapter_tensors = peft.adapter_tensors

    def strong(adaptation: Any) -> dict[str, Tensor]:
        tensors = adapter_tensors(adaptation)
        return {key: value * 1.05 if key == min(tensors) else value for key, value in tensors.items()}

    monkeypatch.setattr(peft, "adapter_tensors", strong)
    with pytest.raises(UserError, match=r"another (update|weight)"):
        export_policy(policy, tmp_path / "out", to)
    assert not list(tmp_path.iterdir())


def adapted_layer(down: Tensor, up: Tensor, alpha: float = 16, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    config = LoraConfig(r=16, lora_alpha=alpha, target_modules=["0"])
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(48, 64)), config)
    layer: Any = model.base_model.model[0]
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = down.to(dtype), up.to(dtype)
    return model


def test_updates_are_compared_up_to_the_rounding_of_their_factors() -> None:
    half = torch.bfloat16
    torch.manual_seed(0)
    down, up = torch.randn(16, 48), torch.randn(64, 16)
    ours = adapted_layer(down, up)
    check_updates(ours, adapted_layer(down * 2, up, alpha=8), "x")
    check_updates(ours, adapted_layer(down, up, dtype=half), "x")
    row = up.clone()
    row[3] = 0
    for other in (adapted_layer(down, row, dtype=half), adapted_layer(down, up * 1.03, dtype=half)):
        with pytest.raises(UserError, match="another update"):
            check_updates(ours, other, "x")
    down[8:], up[:, 8:] = down[:8], 0.01 * up[:, 8:] - up[:, :8]  # parts that cancel: the sum is smaller than its error
    check_updates(adapted_layer(down, up), adapted_layer(down, up, dtype=half), "x")


def mixture(place: Path) -> Path:
    """A tiny mixture of experts whose experts lie in one tensor."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    tokenizer = components_text.character_tokenizer()
    config = DeepseekV3Config(
        vocab_size=len(tokenizer) + 3, hidden_size=32, intermediate_size=48, moe_intermediate_size=16,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2,
        n_group=1, topk_group=1, first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=12, qk_rope_head_dim=4,
        qk_nope_head_dim=8, v_head_dim=8, max_position_embeddings=128, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    DeepseekV3ForCausalLM(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def test_mixtures_of_experts_merge_as_in_peft_and_read_their_own_exports(tmp_path: Path) -> None:
    base = mixture(tmp_path / "base")
    policy = load_policy(base, lora=LoRAOptions(rank=4, alpha=6))
    said = policy.network.adaptation.describe()
    assert "2 of them hold all experts of a layer: model.layers.1.mlp.experts, model.layers.2.mlp.experts" in said
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    expected = logits(policy)
    export_policy(policy, tmp_path / "peft", "peft")
    export_policy(policy, tmp_path / "merged", "merged")
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "peft"))
    merged: Any = opened.merge_and_unload()
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    for key, value in merged.state_dict().items():
        torch.testing.assert_close(ours[key], value, atol=1e-6, rtol=1e-5)
    lora = read(tmp_path / "peft", str(base), family="causal").options()
    again = load_policy(base, lora=lora)
    load_adapter(again, tmp_path / "peft")
    torch.testing.assert_close(logits(again), expected, atol=1e-6, rtol=1e-5)
    other = load_policy(base, lora=LoRAOptions(rank=4, alpha=8))
    with pytest.raises(UserError, match=r"leave model\.lora out"):
        load_adapter(other, tmp_path / "peft")


def test_experts_in_one_tensor_are_adapted_where_they_are_named_and_said_to_be_left_out_where_not() -> None:
    folder = components_text.folder("diffusion_gemma")
    plain = load_policy(folder, lora=LoRAOptions(rank=4))
    said = plain.adaptation.describe()
    assert "experts without one: experts.gate_up_proj, experts.down_proj (model.lora.parameters: [" in said
    assert not any(".experts." in name for name in plain.adaptation.parameters)
    named = load_policy(folder, lora=LoRAOptions(rank=4, parameters=("experts.gate_up_proj", "experts.down_proj")))
    assert "experts without one" not in named.adaptation.describe()
    assert any(".experts." in name for name in named.adaptation.parameters)
    assert "experts without one" not in load_policy(components_text.folder("llama")).adaptation.describe()


VALUES = (None, True, -1, 0, 1e400, 10**400, "16", "", [], [[]], {}, {"a": {}}, {"(": 2}, {"q_proj": "x"})


def test_any_configuration_is_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    """A seeded fuzzer over PEFT's configuration, its tensors' names and the bytes of the file."""
    place = made_by_peft(tmp_path / "adapter", target_modules=[Q])
    config = json.loads((place / "adapter_config.json").read_text())
    tensors = load_file(place / "adapter_model.safetensors")
    data = (place / "adapter_model.safetensors").read_bytes()
    random.seed(0)
    counts = {"read": 0, "refused": 0}
    for number in range(400):
        changed = dict(config)
        for key in random.sample(sorted(config), k=random.choice([0, 1, 2])):
            changed[key] = random.choice(VALUES)
        text = json.dumps(changed)
        cut = random.randrange(len(text)) if number % 9 == 0 else len(text)
        (place / "adapter_config.json").write_text(text[:cut])
        if number % 3 == 0:
            position = random.randrange(600)
            (place / "adapter_model.safetensors").write_bytes(data[:position] + os.urandom(2) + data[position + 2 :])
        elif number % 3 == 1:
            renamed = {random.choice([k, k, k + ".x", k.replace("lora_A", "lora_B")]): v for k, v in tensors.items()}
            save_file(renamed, place / "adapter_model.safetensors")
        else:
            (place / "adapter_model.safetensors").write_bytes(data)
        try:
            adapter = read(place, str(components_text.folder("llama")), family="causal")
            assert adapter.options().rank >= 1 and all(adapter.scale(layer) > 0 for layer in adapter.alphas)
            counts["read"] += 1
        except UserError as error:
            assert len(str(error)) < 1000
            counts["refused"] += 1
    assert min(counts.values()) > 30, counts

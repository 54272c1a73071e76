"""Pictures of each prompt's own: what the pipeline itself predicts with them, whatever else is in the batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flowrl.config import Config
from flowrl.data import PromptFormat, load_prompts, with_pictures
from flowrl.errors import UserError
from flowrl.models.deviation import deviation
from flowrl.models.diffusion import load_policy
from flowrl.models.diffusion.recorder import Recorder
from flowrl.startup.preflight import read_prompts
from flowrl.types import Prompt
from tests import pipelines
from tests.pipelines_newer import SMALL
from tests.pipelines_pictures import variant
from tests.tiny_vlm import QWEN, tokenizer

QUICK = ("flux_kontext",)
FURTHER = ("inpaint", "adapter_xl", "cogvideox_picture", "flux_control", "wan22_picture", "control_net")
ARGUMENTS = ("image", "mask_image", "control_image")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    folder, made = tmp_path_factory.mktemp("pictures"), []
    for number, (color, box) in enumerate([((200, 80, 40), (2, 3, 8, 9)), ((10, 200, 90), (5, 1, 14, 12))]):
        image = Image.new("RGB", (16, 16), color)
        image.paste((0, 0, 255), box)
        image.save(folder / f"{number}.png")
        made.append(str(folder / f"{number}.png"))
    return made


def split_call(name: str) -> tuple[dict, dict[str, str]]:
    """The call without its pictures, and those as columns."""
    given = {**SMALL, **pipelines.CALLS[name]}
    return {k: v for k, v in given.items() if k not in ARGUMENTS}, {k: "source" for k in ARGUMENTS if k in given}


def asked(pictures: list[str]) -> list[Prompt]:
    return [Prompt("a red circle", number, {"source": path}) for number, path in enumerate(pictures)]


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in FURTHER)])
def test_every_prompt_has_its_own_picture(name, folder, pictures):
    call, inputs = split_call(name)
    policy = load_policy(folder(name), call=call, inputs=inputs)
    prompts = asked(pictures)
    condition = policy.condition(prompts)
    for row, prompt in enumerate(prompts):
        given = policy.encoder.inputs.arguments([policy.encoder.inputs.told(prompt)])
        own = Recorder(policy.pipeline, {**call, **given}).record([prompt.text], 3)
        assert own.timesteps is not None
        times = policy.spec.coordinates.levels(own.timesteps, own.sigmas)
        for t, step in zip(times, own.steps, strict=True):  # the pipeline's own predictions with this picture
            x = policy.spec.calls[0].latents(step.calls[0].inputs).reshape(step.sample.shape).float()
            x = policy.spec.coordinates.from_network(x, t.expand(1))
            with torch.no_grad():
                native = policy.native(x, t.expand(1), condition.take(torch.tensor([row])), None, "cond")
            assert deviation(native.reshape(step.model_output.shape), step.model_output) < 1e-5
    x = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(1)).expand(2, *policy.latent_shape)
    t = policy.times(4)[[1, 1]]
    with torch.no_grad():
        first, second = (policy.velocity(x, t, policy.condition(each)) for each in (prompts, prompts[::-1]))
    assert deviation(first[0], first[1]) > 1e-4, "the pictures do not matter"
    assert deviation(second.flip(0), first) < 1e-5, "the order does"


def test_what_has_no_place_for_a_picture_is_refused(folder, pictures, tmp_path):
    call, inputs = split_call("flux_kontext")
    policy = load_policy(folder("flux_kontext"), call=call, inputs=inputs, parity="skip")
    with pytest.raises(UserError, match=r"'a cat' has no picture in the column 'source'.*did you mean 'sources'"):
        policy.condition([Prompt("a cat", 0, {"sources": "x.png"})])
    wide = tmp_path / "wide.png"
    Image.new("RGB", (32, 16)).save(wide)
    with pytest.raises(UserError, match=r"different shapes of the pictures .*give all pictures one size"):
        policy.condition(asked([pictures[0], str(wide)]))
    cases = [
        ({"imag": "source"}, {}, r"no argument 'imag'.*did you mean 'image'"),
        ({"guidance_scale": "source"}, {}, r"takes none; use model.call"),
        ({"image": "source"}, {"call": {**call, "image": "x"}}, "model.call.image gives all prompts the same"),
        ({"image": "source"}, {"prompt_cache": True}, "set it to false"),
    ]
    for given, more, message in cases:
        options = {"call": {k: v for k, v in call.items() if k != "guidance_scale"}, "parity": "skip", **more}
        with pytest.raises(UserError, match=message):
            load_policy(folder("flux_kontext"), inputs=given, **options)


@pytest.mark.slow
def test_pictures_of_another_size_than_the_latents_are_named(folder, pictures, monkeypatch):
    """InstructPix2Pix takes no height: what it makes is as large as its picture, so its stand-in says how large."""
    call = {k: v for k, v in pipelines.CALLS["pix2pix"].items() if k != "image"}
    monkeypatch.setattr("flowrl.models.diffusion.prompt_inputs.SIDE", 32)
    policy = load_policy(folder("pix2pix"), call=call, inputs={"image": "source"}, parity="skip")
    with pytest.raises(
        UserError, match=r"of the shape \[8, 8\] of .*0.png, which do not fit its latents \[4, 16, 16\]"
    ):
        policy.condition(asked(pictures))
    monkeypatch.setattr("flowrl.models.diffusion.prompt_inputs.SIDE", 16)
    policy = load_policy(folder("pix2pix"), call=call, inputs={"image": "source"})
    x, t = torch.zeros(2, *policy.latent_shape), policy.times(4)[[1, 1]]
    with torch.no_grad():
        first, second = policy.velocity(x, t, policy.condition(asked(pictures)))
    assert deviation(first, second) > 1e-4


def write(folder: Path, rows: list[dict]) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_paths_are_relative_to_the_data_file_and_checked_with_entry_and_column(folder, tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "text.png").write_text("no picture")
    good = {"prompt": "make it red", "source": "pictures/a.png", "answer": "red"}
    spec = write(tmp_path, [good, {**good, "source": str(tmp_path / "pictures" / "a.png")}])
    call, inputs = split_call("flux_kontext")
    model = {"path": str(folder("flux_kontext")), "call": call, "inputs": inputs}
    more = {"algorithm": "flow_grpo", "rewards": ["aesthetic"], "train": {"iterations": 1}}
    config = Config.of({"name": "edit", "model": model, **more})
    for where in (spec, f"{spec}[:1]"):
        prompts = read_prompts(config, where).prompts
        assert {prompt.columns["source"] for prompt in prompts} == {str(tmp_path / "pictures" / "a.png")}
        assert prompts[0].columns["answer"] == "red"
    for wrong, message in {
        "gone.png": "entry 2: the column 'source' names gone.png, and there is no file",
        "text.png": "entry 2: the column 'source' names text.png, which is no picture",
        None: "entry 2: the column 'source' of model.inputs holds NoneType",
    }.items():
        with pytest.raises(UserError, match=message):
            read_prompts(config, write(tmp_path, [good, {**good, "source": wrong}]))
    found = load_prompts(write(tmp_path, [{"prompt": "x", "sauce": "a"}]), PromptFormat())
    with pytest.raises(UserError, match=r"'source' of model.inputs is not there"):
        with_pictures(found, ["source"], "prompts")


@pytest.mark.slow
def test_a_run_trains_evaluates_and_samples_with_them(folder, pictures, tmp_path):
    from flowrl.commands.sample import SampleOptions, prompts_of, sample
    from flowrl.train import train

    reward = tmp_path / "near.py"
    reward.write_text(
        "from PIL import Image\nimport torch\n"
        "def near(images, prompts, source, **columns):\n"
        "    means = [sum(Image.open(path).resize((1, 1)).getpixel((0, 0))) / 765 for path in source]\n"
        "    return -(images.flatten(1).mean(dim=1).cpu() - torch.tensor(means)).abs()\n"
    )
    data = write(tmp_path, [{"prompt": "make it red", "source": path} for path in pictures])
    call, inputs = split_call("flux_kontext")
    run = train(
        Config.of(
            {
                "name": "edit",
                "out": str(tmp_path / "run"),
                "model": {"path": str(folder("flux_kontext")), "call": call, "inputs": inputs,
                          "lora": {"rank": 4, "alpha": 8}},
                "algorithm": {"use": "flow_grpo", "sampler": {"steps": 4}},
                "data": {"train": data, "test": data, "prompts": 2, "group": 3},
                "rewards": [f"{reward}:near"],
                "train": {"iterations": 1, "micro_batch": 6},
                "eval": {"every": 1, "sampling_steps": 4},
                "checkpoint": {"every": 1},
            }
        )
    )  # fmt: skip
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (step,) = [line for line in lines if "loss" in line]
    assert step["ratio/first_max_deviation"] < 1e-3 and step["grad_norm"] > 0
    assert any("eval/reward" in key for line in lines for key in line)
    written = sample(str(run), prompts_of([f"prompts:{data}"]), tmp_path / "out", SampleOptions())
    assert len(written.files) == 2
    with pytest.raises(UserError, match=r"has no picture in the column 'source'"):
        sample(str(run), ["a cat"], tmp_path / "more", SampleOptions())


def qwen_edit() -> Any:
    """A tiny Qwen-Image-Edit, whose text encoder reads the picture too."""
    from transformers import Qwen2VLProcessor, Qwen2VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    of, words = pipelines.qwen_image(), tokenizer(QWEN)
    for config in (of.text_encoder.config, of.text_encoder.model.config):
        config.image_token_id = words.convert_tokens_to_ids("<|image_pad|>")
        config.video_token_id = words.convert_tokens_to_ids("<|video_pad|>")
        config.vision_start_token_id = words.convert_tokens_to_ids("<|vision_start|>")
    images = Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28})
    processor = Qwen2VLProcessor(images, words, Qwen2VLVideoProcessor())
    return variant("QwenImageEditPipeline", of, processor=processor, tokenizer=words)


@pytest.mark.slow
def test_texts_of_a_batch_are_padded_together_with_a_list_of_their_pictures(pictures, monkeypatch):
    module = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit"
    monkeypatch.setattr(f"{module}.calculate_dimensions", lambda area, ratio: (32, 32, None))  # else a megapixel
    torch.manual_seed(0)
    call = {"height": 32, "width": 32, "true_cfg_scale": 4.0, "negative_prompt": "a cube"}
    pipeline = qwen_edit()
    policy = load_policy(pipeline, call=call, inputs={"image": "source"})
    assert policy.encoder.ragged and policy.encoder.inputs.listed
    prompts = [Prompt("a red cube on table", 0, {"source": pictures[0]}), Prompt("two", 1, {"source": pictures[1]})]
    x = torch.randn(1, *policy.latent_shape).expand(2, *policy.latent_shape)
    t, one = policy.times(4)[[1, 1]], torch.tensor([0])
    with torch.no_grad():
        first, second = (policy.velocity(x, t, policy.condition(each)) for each in (prompts, prompts[::-1]))
        alone = policy.velocity(x[one], t[one], policy.condition(prompts[:1]))
        swapped = [
            replace(prompt, columns={"source": path}) for prompt, path in zip(prompts, pictures[::-1], strict=True)
        ]
        other = policy.velocity(x, t, policy.condition(swapped))
    assert deviation(second.flip(0), first) < 1e-5 and deviation(alone, first[one]) < 1e-5
    assert deviation(other, first) > 1e-3, "the pictures do not matter"
    monkeypatch.setattr(type(pipeline), "encode_prompt", one_picture_for_all(type(pipeline).encode_prompt))
    with pytest.raises(UserError, match="takes no list of one picture for each prompt"):
        load_policy(qwen_edit(), call=call, inputs={"image": "source"})


def one_picture_for_all(encode: Callable[..., Any]) -> Callable[..., Any]:
    def encoded(self: Any, image: Any, prompt: Any = None, **more: Any) -> Any:
        return encode(self, image=[image[0]] * len(image), prompt=prompt, **more)

    return encoded

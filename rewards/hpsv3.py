"""HPSv3: human preference by a vision-language model with a regression head. Ma et al., arXiv:2508.03789."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from flowrl.errors import UserError
from flowrl.scorers.images import score_images
from flowrl.scorers.loading import check_fit, device_and_dtype, find_safetensors, from_hub, read_safetensors

RANGE = "unbounded, about -5 to 15"
NEEDS = ("weights MizzenAI/HPSv3 (HPSv3.safetensors)", "processor Qwen/Qwen2-VL-7B-Instruct")

TOKEN = "<|Reward|>"
PIXELS = 256 * 28 * 28
"""Area to which every image is resized: 256 visual tokens."""
PROMPT = (resources.files("rewards") / "hpsv3_prompt.txt").read_text(encoding="utf-8")
"""The question of the training, to the letter with its trailing spaces (MizzenAI/HPSv3, MIT)."""
HEAD = "rm_head."
LAYOUT = (
    (r"^(?:model\.)?visual\.", "visual."),
    (r"^model\.language_model\.", "language_model."),
    (r"^model\.", "language_model."),
)
"""Names of the network's parts before and since transformers 4.52, and those of `Qwen2VLModel`."""


class hpsv3:  # noqa: N801 - the name a config uses
    """HPSv3's mean preference mu of an image for its prompt; unbounded, comparable within a prompt.

    Qwen2-VL-7B reads the image, a long rubric and the prompt; an MLP (3584-1024-16-2 with ReLU, float32) reads mu and
    sigma from the last layer's state at the token <|Reward|>. A prompt that contains this token does not move it: the
    last one counts.

    `path` is `HPSv3.safetensors` of `MizzenAI/HPSv3` (MIT; 17 GB in bfloat16) or its folder, `base` the configuration,
    tokenizer and preprocessing of `Qwen/Qwen2-VL-7B-Instruct` (Apache-2.0), as a folder or hub name; its weights are
    not read. Both layouts of names are accepted. As in the published code the whole network, rotary frequencies
    included, is rounded to `dtype`, and positions count tokens one by one, also those of the image: that code calls the
    language model with embeddings only, which leaves out Qwen2-VL's two-dimensional positions, and was trained so.

    Preprocessing: quantised to uint8, Pillow's bicubic filter to an area of 256 x 28 x 28 pixels in multiples of 28
    with the image's proportions, then the processor's normalisation. Compared with the published code (hpsv3 1.0.0) on
    tiny random weights, not with the published weights.
    Raises `UserError` for weights that are missing, pickled or of another architecture.
    """

    def __init__(
        self,
        path: str,
        base: str = "Qwen/Qwen2-VL-7B-Instruct",
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int = 4,
    ) -> None:
        self._place = device_and_dtype(device, dtype)
        file = find_safetensors(path, "hpsv3", preferred="HPSv3.safetensors")
        state = read_safetensors(file, "hpsv3")
        config, self._processor = _base(base)
        network = {_renamed(key): value for key, value in state.items() if not key.startswith((HEAD, "lm_head."))}
        self._model = _network(network, config, file).to(*self._place)
        self._head = _head(state, int(config.text_config.hidden_size), file).to(self._place[0])
        self._token = self._processor.tokenizer.convert_tokens_to_ids(TOKEN)
        if self._token >= config.text_config.vocab_size:
            raise UserError(
                f"hpsv3: {file} has no embedding of {TOKEN} (number {self._token}); give Qwen2-VL-7B as base"
            )
        self._batch_size = batch_size
        self.version = f"hpsv3:{path}:{dtype}:pil-bicubic-1"

    def __call__(self, images: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor:
        """mu [N] of images [N, 3, H, W] in [0, 1]; NaN for an image that is not finite."""

        def score(pixels: Tensor, rows: slice) -> Tensor:
            return self._mu_sigma(pixels, prompts[rows])[:, 0]

        return score_images(images, prompts, self._batch_size, score)

    def _mu_sigma(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        inputs = self._inputs(pixels, prompts)
        ids = inputs["input_ids"]
        positions = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        states = self._model(
            input_ids=ids,
            attention_mask=inputs["attention_mask"],
            position_ids=positions,
            pixel_values=inputs["pixel_values"].to(self._place[1]),
            image_grid_thw=inputs["image_grid_thw"],
            use_cache=False,
        ).last_hidden_state
        last = ids.shape[1] - 1 - (ids == self._token).flip(1).int().argmax(dim=1)
        return self._head(states[torch.arange(len(ids), device=ids.device), last].float())

    def _inputs(self, pixels: Tensor, prompts: Sequence[str]) -> Any:
        contents = [[{"type": "image"}, {"type": "text", "text": PROMPT.format(text_prompt=text)}] for text in prompts]
        conversations = [[{"role": "user", "content": content}] for content in contents]
        texts = self._processor.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
        return self._processor(text=texts, images=self._resized(pixels), padding=True, return_tensors="pt").to(
            self._place[0]
        )

    def _resized(self, pixels: Tensor) -> list[Image.Image]:
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        reader = self._processor.image_processor
        factor = reader.patch_size * reader.merge_size
        height, width = smart_resize(pixels.shape[-2], pixels.shape[-1], factor, min_pixels=PIXELS, max_pixels=PIXELS)
        arrays = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return [Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC) for array in arrays]


def _base(base: str) -> tuple[Any, Any]:
    """Configuration and processor of Qwen2-VL; the processor pads on the right and knows the reward's token."""
    from transformers import AutoConfig, AutoProcessor

    config: Any = from_hub(lambda: AutoConfig.from_pretrained(base), f"base {base}", "hpsv3")
    processor: Any = from_hub(lambda: AutoProcessor.from_pretrained(base), f"base {base}", "hpsv3")
    if config.model_type != "qwen2_vl":
        raise UserError(f"hpsv3 needs Qwen2-VL as base, but {base} is a {config.model_type!r}")
    processor.tokenizer.padding_side = "right"
    processor.tokenizer.add_tokens([TOKEN], special_tokens=True)
    return config, processor


def _network(state: Mapping[str, Tensor], config: Any, file: Path) -> Any:
    """Qwen2-VL without its language head, with as many words as the weights."""
    from transformers import Qwen2VLModel

    words = state.get("language_model.embed_tokens.weight")
    if words is None:
        raise UserError(f"hpsv3: {file} holds another architecture: it has no embeddings of words")
    config.text_config.vocab_size = len(words)
    with torch.device("meta"):  # a misfit shows before billions of random numbers are drawn
        check_fit(Qwen2VLModel(config), state, "hpsv3", file)
    model = Qwen2VLModel._from_config(config, dtype=words.dtype)
    model.load_state_dict(dict(state))
    return model.eval().requires_grad_(False)


def _head(state: Mapping[str, Tensor], width: int, file: Path) -> nn.Sequential:
    """The MLP, its widths read from the weights; dropout is for training."""
    weights = {key.removeprefix(HEAD): value.float() for key, value in state.items() if key.startswith(HEAD)}
    shapes = [tuple(weights[f"{i}.weight"].shape) for i in (0, 3, 5) if f"{i}.weight" in weights]
    if len(shapes) != 3 or shapes[0][1] != width or shapes[2][0] != 2:
        raise UserError(f"hpsv3: {file} holds no head from {width} numbers to mu and sigma ('rm_head.0', '.3', '.5')")
    (first, _), (second, _), (third, _) = shapes
    head = nn.Sequential(
        nn.Linear(width, first), nn.ReLU(), nn.Dropout(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, third)
    )
    check_fit(head, weights, "hpsv3", file)
    head.load_state_dict(weights)
    return head.eval().requires_grad_(False)


def _renamed(key: str) -> str:
    for pattern, name in LAYOUT:
        new, count = re.subn(pattern, name, key)
        if count:
            return new
    return key

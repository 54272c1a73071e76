"""ImageReward: a BLIP model tuned on people's rankings of images for a prompt. Xu et al., arXiv:2304.05977."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.scorers.clip import warn_cut
from flowrl.scorers.images import Preprocessing, judge_images, score_images
from flowrl.scorers.loading import (
    device_and_dtype,
    find_safetensors,
    from_hub,
    linear_stack,
    load_strictly,
    read_safetensors,
)

RANGE = "about -2.3 to 2"
NEEDS = ("weights THUDM/ImageReward, converted to safetensors", "tokenizer google-bert/bert-base-uncased")

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw scores over the training set, from the published code."""
LENGTH = 35
HEAD_WIDTH = 64
"""Of one attention head, in both towers."""
NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)
"""The image tower's names: BLIP's own, and transformers'. The text tower's are the same in both."""


class imagereward:  # noqa: N801 - the name a config uses
    """ImageReward of an image and its prompt, standardised: 0 is the average of its training images, 1 one deviation.

    The prompt's tokens look at the image by cross-attention in every layer; the first token's last state goes through
    five linear layers without activations, and the published mean and deviation are taken off. So, unlike CLIP's, a
    prompt has no embedding of its own: it is tokenized once, and the text tower runs once per image.

    Weights: `ImageReward.pt` from `THUDM/ImageReward` (BLIP ViT-L/16 and a BERT-base with cross-attention, 446 M
    parameters, 1.8 GB in float32; Apache-2.0), a pickle: convert it once with `python -m flowrl.scorers.convert
    ImageReward.pt imagereward.safetensors` and give that file (or its folder) as `path`. The modules are transformers'
    own; sizes are read from the weights. `tokenizer` is `google-bert/bert-base-uncased`, as a folder or hub name; the
    text starts with [CLS] as in the published code (not BLIP's [ENC]) and is padded and cut to 35 tokens.

    Preprocessing: quantised to uint8 (people ranked saved pictures), shortest edge to 224 with Pillow's bicubic filter,
    torchvision's centre crop 224, mean and std of OpenAI's CLIP. Raises `UserError` for weights that are missing,
    pickled or of another architecture.
    """

    def __init__(
        self,
        path: str,
        tokenizer: str = "google-bert/bert-base-uncased",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 32,
    ) -> None:
        self._place = device_and_dtype(device, dtype)
        file = find_safetensors(path, "imagereward")
        state = read_safetensors(file, "imagereward")
        self._image, self._text = (tower.to(*self._place) for tower in towers(state, file))
        width = int(self._text.config.hidden_size)
        self._head = linear_stack(_below(state, "mlp."), width, "imagereward", file).to(self._place[0])
        size = int(self._image.config.image_size)
        self._preprocess = Preprocessing(size, size, floor=False)
        self._tokenizer = _tokenizer(tokenizer, int(self._text.config.vocab_size))
        self._batch_size = batch_size
        self.version = f"imagereward:{path}:{dtype}:pil-bicubic-1"

    def __call__(self, images: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor:
        """Scores [N] of images [N, 3, H, W] in [0, 1]; NaN for an image that is not finite."""
        tokens = self._tokens(prompts)

        def score(pixels: Tensor, rows: slice) -> Tensor:
            return self._score(self._preprocess(pixels), [tokens[prompt] for prompt in prompts[rows]])

        return score_images(images, prompts, self._batch_size, score)

    def gradient(self, images: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor:
        """The same scores with a gradient to the images: not quantised, resized by torch."""
        tokens = self._tokens(prompts)

        def score(pixels: Tensor, rows: slice) -> Tensor:
            return self._score(self._preprocess.smooth(pixels), [tokens[prompt] for prompt in prompts[rows]])

        return judge_images(images, prompts, self._batch_size, score)

    def _score(self, values: Tensor, tokens: Sequence[Tensor]) -> Tensor:
        """[n] of preprocessed images [n, 3, h, w] and the tokens of their prompts."""
        seen = self._image(pixel_values=values.to(*self._place)).last_hidden_state
        ids, mask = torch.stack(list(tokens), dim=1).to(self._place[0])
        # is_decoder=False: cross-attention without the causal mask of a captioner
        states = self._text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=seen, is_decoder=False
        ).last_hidden_state
        return (self._head(states[:, 0].float())[:, 0] - MEAN) / STD

    def _tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and attention mask [2, 35] of every different prompt."""
        unique = list(dict.fromkeys(prompts))
        if not unique:
            return {}
        full = self._tokenizer(unique, verbose=False).input_ids
        warn_cut([prompt for prompt, row in zip(unique, full, strict=True) if len(row) > LENGTH], "imagereward")
        fixed = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
        found = self._tokenizer(unique, **fixed, return_tensors="pt")
        return dict(zip(unique, torch.stack([found.input_ids, found.attention_mask], dim=1), strict=True))


def towers(state: Mapping[str, Tensor], file: Path) -> tuple[Any, Any]:
    """Image and text tower (transformers' BLIP modules, float32) of a checkpoint with ImageReward's own names.

    Their sizes follow from the shapes of the weights. Raises `UserError` for weights of another architecture.
    """
    from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    vision, text = _below(state, "blip.visual_encoder."), _below(state, "blip.text_encoder.")
    text.pop("embeddings.position_ids", None)  # a counter, not a weight
    try:
        patches, positions = vision["patch_embed.proj.weight"].shape, vision["pos_embed"].shape
        seen = BlipVisionConfig(
            **_sizes(patches[0], vision["blocks.0.mlp.fc1.weight"], vision),
            image_size=round((positions[1] - 1) ** 0.5) * patches[-1],
            patch_size=patches[-1],
            layer_norm_eps=1e-6,  # timm's; transformers' default for BLIP is 1e-5
        )
        words = text["embeddings.word_embeddings.weight"].shape
        read = BlipTextConfig(
            **_sizes(words[1], text["encoder.layer.0.intermediate.dense.weight"], text),
            encoder_hidden_size=patches[0],
            vocab_size=words[0],
            max_position_embeddings=len(text["embeddings.position_embeddings.weight"]),
            is_decoder=True,  # creates the cross-attention
            bos_token_id=None,  # nothing is generated
            sep_token_id=None,
        )
    except KeyError as error:
        raise UserError(f"imagereward: {file} holds another architecture: {error.args[0]} is missing") from error
    pair = BlipVisionModel(seen), BlipTextModel(read, add_pooling_layer=False)
    for tower, weights in zip(pair, (_renamed(vision), text), strict=True):
        load_strictly(tower, weights, "imagereward", file)
        tower.eval().requires_grad_(False)
    return pair


def _sizes(width: int, first: Tensor, state: Mapping[str, Tensor]) -> dict[str, Any]:
    layers = {int(found[1]) for key in state if (found := re.search(r"(?:blocks|encoder\.layer)\.(\d+)\.", key))}
    return {
        "hidden_size": width,
        "intermediate_size": len(first),
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
    }


def _renamed(vision: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in vision.items():
        for old, new in NAMES:
            key = re.sub(old, new, key)
        renamed[key] = value
    return renamed


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _tokenizer(path: str, words: int) -> Any:
    from transformers import AutoTokenizer

    found = from_hub(lambda: AutoTokenizer.from_pretrained(path), f"tokenizer {path}", "imagereward")
    if len(found) > words:
        raise UserError(f"imagereward: tokenizer {path} has {len(found)} tokens, the weights {words}; give BERT's")
    return found

"""CLIP models in the layouts of transformers and open_clip, with one embedding per prompt."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flowrl.errors import UserError
from flowrl.scorers.images import CLIP_MEAN, CLIP_STD, Preprocessing, read_preprocessing
from flowrl.scorers.loading import (
    check_fit,
    device_and_dtype,
    find_safetensors,
    from_hub,
    load_pretrained,
    load_strictly,
    read_safetensors,
)

CACHED_PROMPTS = 4096
"""Prompts whose embedding is kept between calls (16 MB at 1024 numbers each)."""


class EmbeddingCache:
    """Embeddings of prompts, made once per unique prompt and kept for later calls."""

    def __init__(self, encode: Callable[[list[str]], Tensor], batch_size: int) -> None:
        self._encode, self._batch_size = encode, batch_size
        self._known: dict[str, Tensor] = {}

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """[N, E] embeddings of N prompts."""
        unique = list(dict.fromkeys(prompts))
        new = [prompt for prompt in unique if prompt not in self._known]
        if len(self._known) + len(new) > CACHED_PROMPTS:
            self._known.clear()
            new = unique
        for start in range(0, len(new), self._batch_size):
            some = new[start : start + self._batch_size]
            self._known |= dict(zip(some, self._encode(some), strict=True))
        return torch.stack([self._known[prompt] for prompt in prompts])


class Encoder(Protocol):
    """A CLIP model: both of its methods return unit vectors in float32 on the model's device."""

    logit_scale: float

    def images(self, pixels: Tensor) -> Tensor:
        """[n, E] from uint8 [n, 3, H, W]."""
        ...

    def smooth_images(self, images: Tensor) -> Tensor:
        """[n, E] from images [n, 3, H, W] in [0, 1], with a gradient to them."""
        ...

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """[n, E], one pass of the text tower per unique prompt."""
        ...


class HuggingFaceClip:
    """A CLIP model in transformers' layout, from a folder or the hub; `processor` holds tokenizer and preprocessing."""

    def __init__(
        self, path: str, name: str, *, device: str | None, dtype: str, batch_size: int, processor: str | None = None
    ) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self._place = device_and_dtype(device, dtype)
        self.model: Any = load_pretrained(CLIPModel, path, name, ("clip",)).to(*self._place)
        source = processor or path
        self.preprocess = read_preprocessing(source, name)
        self._tokenizer: Any = from_hub(lambda: AutoTokenizer.from_pretrained(source), source, name)
        self._length = int(self.model.config.text_config.max_position_embeddings)
        self._name = name
        self.logit_scale = float(self.model.logit_scale.detach().double().exp())
        self.texts = EmbeddingCache(self._encode, batch_size)

    def images(self, pixels: Tensor) -> Tensor:
        """Unit image embeddings [n, E] of uint8 images [n, 3, H, W]."""
        return self._embed(self.preprocess(pixels))

    def smooth_images(self, images: Tensor) -> Tensor:
        """The same of images in [0, 1], with a gradient to them."""
        return self._embed(self.preprocess.smooth(images))

    def _embed(self, values: Tensor) -> Tensor:
        return unit(_pooled(self.model.get_image_features(pixel_values=values.to(*self._place))))

    def _encode(self, prompts: list[str]) -> Tensor:
        ids = self._tokenizer(prompts, verbose=False).input_ids
        warn_cut([prompt for prompt, row in zip(prompts, ids, strict=True) if len(row) > self._length], self._name)
        # padded to the full length: an embedding does not depend on the prompts it is computed with
        fixed = {"padding": "max_length", "truncation": True, "max_length": self._length}
        tokens = self._tokenizer(prompts, **fixed, return_tensors="pt").to(self._place[0])
        answer = self.model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return unit(_pooled(answer))


class OpenClip:
    """A CLIP model in open_clip's layout: weights as one safetensors file, architecture in `open_clip_config.json`.

    `path` is the file, or a folder that holds it. Where no configuration lies beside the weights, `architecture` is
    the name of one that open_clip knows. `preprocess` turns uint8 [n, 3, H, W] into the model's input.
    """

    def __init__(
        self, path: str, name: str, *, architecture: str | None, device: str | None, dtype: str, batch_size: int
    ) -> None:
        import open_clip

        self.device, self._dtype = device_and_dtype(device, dtype)
        file = find_safetensors(path, name, preferred="open_clip_model.safetensors")
        settings, stated = _open_clip_settings(file, name, architecture)
        state = read_safetensors(file, name)
        with torch.device("meta"):  # a misfit shows before a billion random numbers are drawn
            check_fit(open_clip.CLIP(**deepcopy(settings)), state, name, file)
        self.model: Any = open_clip.CLIP(**settings)
        load_strictly(self.model, state, name, file)
        self.model.eval().requires_grad_(False).to(self.device, self._dtype)
        self.size = int(settings["vision_cfg"]["image_size"])
        self._length = int(settings["text_cfg"]["context_length"])
        self._tokenizer = open_clip.SimpleTokenizer(context_length=self._length)
        self._name = name
        usual = Preprocessing(
            self.size, self.size, stated.get("mean", CLIP_MEAN), stated.get("std", CLIP_STD), floor=False
        )
        self.preprocess: Callable[[Tensor], Tensor] = usual
        self.smooth: Callable[[Tensor], Tensor] = usual.smooth
        """The same of images in [0, 1], with a gradient to them."""
        self.logit_scale = float(self.model.logit_scale.detach().double().exp())
        self.texts = EmbeddingCache(self._encode, batch_size)

    def images(self, pixels: Tensor) -> Tensor:
        """Unit image embeddings [n, E] of uint8 images [n, 3, H, W]."""
        return self._embed(self.preprocess(pixels))

    def smooth_images(self, images: Tensor) -> Tensor:
        """The same of images in [0, 1], with a gradient to them."""
        return self._embed(self.smooth(images))

    def _embed(self, values: Tensor) -> Tensor:
        return unit(self.model.encode_image(values.to(self.device, self._dtype)))

    def _encode(self, prompts: list[str]) -> Tensor:
        warn_cut([p for p in prompts if len(self._tokenizer.encode(p)) + 2 > self._length], self._name)
        return unit(self.model.encode_text(self._tokenizer(prompts).to(self.device)))


def unit(embeddings: Tensor) -> Tensor:
    """Rows of length 1 in float32, whatever precision the network ran in: half precision would round scores to ties."""
    return nn.functional.normalize(embeddings.float(), dim=-1)


def warn_cut(prompts: Sequence[str], name: str) -> None:
    """Warn that a scorer reads only the beginning of some prompts."""
    if prompts:
        some = f"{prompts[0][:40]!r}, ..."
        warnings.warn(f"{name} reads only the beginning of {len(prompts)} long prompts ({some})", stacklevel=2)


def _pooled(answer: Any) -> Tensor:
    return answer if isinstance(answer, Tensor) else answer.pooler_output  # a tensor before transformers 5


def _open_clip_settings(file: Path, name: str, architecture: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `open_clip.CLIP`, and what is stated about preprocessing."""
    import open_clip

    beside = file.parent / "open_clip_config.json"
    stated = json.loads(beside.read_text()) if beside.is_file() else {}
    settings = stated.get("model_cfg") or (open_clip.get_model_config(architecture) if architecture else None)
    if settings is None:
        raise UserError(f"{name}: {beside} does not exist or names no model_cfg; it says which architecture {file} is")
    text = settings["text_cfg"]
    pixels = stated.get("preprocess_cfg") or {}
    strange = [key for key in ("hf_model_name", "hf_tokenizer_name") if text.get(key)]
    strange += [key for key in ("timm_model_name",) if settings["vision_cfg"].get(key)]
    usual = {"resize_mode": "shortest", "interpolation": "bicubic"}
    strange += [key for key, value in usual.items() if pixels.get(key, value) != value]
    if strange:
        raise UserError(f"{name}: {beside} states {', '.join(strange)}; only plain CLIP models are supported")
    settings["text_cfg"] = {"context_length": 77, **text}
    settings["vision_cfg"] = {"image_size": 224, **settings["vision_cfg"]}
    return settings, pixels

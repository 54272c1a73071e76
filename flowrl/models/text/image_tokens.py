"""Pictures as completions: an image tokenizer that turns a causal model's tokens into images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowrl.errors import UserError, first_line
from flowrl.models.source import check_finite, check_model_name, without_progress_bars

FOLDER = "image_tokenizer"
"""Of a model's own folder, where its image tokenizer is."""
NAME = "<image_{}>"
"""The token of a code."""
AT_ONCE = 64
"""Pictures that are decoded in one call."""


def find_image_tokenizer(model: str | Path, given: str | None = None) -> str | None:
    """Where the image tokenizer of a model is: what ``model.image_tokenizer`` says, or the folder in the model's
    own; ``None`` for a model that makes texts."""
    if given is not None:
        return given
    own = Path(model) / FOLDER
    return str(own) if own.is_dir() else None


@dataclass(frozen=True)
class ImageTokens:
    """A `VQModel` of diffusers, and the model's token for each of its codes. Rows of a square grid, from the top."""

    network: Any
    codes: Tensor
    """[V] int64: the code of each token; -1 where a token is none."""
    length: int
    """Tokens of a picture."""
    path: str

    @property
    def others(self) -> tuple[int, ...]:
        """Tokens that no picture has."""
        return tuple((self.codes < 0).nonzero().flatten().tolist())

    def check_length(self, length: int) -> None:
        """Raise `UserError` for completions that are no whole pictures."""
        if length != self.length:
            side = isqrt(self.length)
            raise UserError(
                f"a picture of this model has {side} x {side} = {self.length} tokens ({self.path}), and "
                f"algorithm.sampler.length is {length}; set it to {self.length} (flowrl eval: --length {self.length})"
            )

    @torch.no_grad()
    def images(self, completions: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] of completions [N, length]."""
        self.check_length(completions.shape[1])
        weights = self.network.quantize.embedding.weight
        codes, side = self.codes.to(completions.device)[completions], isqrt(self.length)
        found = []
        for part in codes.split(AT_ONCE):
            latents = weights[part.to(weights.device)].view(len(part), side, side, -1).permute(0, 3, 1, 2)
            made = self.network.decode(latents.contiguous(), force_not_quantize=True).sample
            found.append((made.float() / 2 + 0.5).clamp(0, 1))
        return torch.cat(found)


def open_image_tokens(path: str, tokenizer: Any, vocabulary: int, device: torch.device) -> ImageTokens:
    """The image tokenizer at ``path``, a folder or a name on the hub. Raises `UserError` where it does not fit the
    model's tokens."""
    from diffusers import VQModel

    check_model_name(path)
    try:
        with without_progress_bars():
            network: Any = VQModel.from_pretrained(path, use_safetensors=True)
    except Exception as error:  # whatever the library raises
        raise UserError(
            f"model.image_tokenizer: {path} holds no VQModel of diffusers: {first_line(error)}; give its own folder"
        ) from error
    network.eval().requires_grad_(False).to(device)
    check_finite(network, path)
    count, config = network.config.num_vq_embeddings, network.config
    known = tokenizer.get_vocab()
    missing = [NAME.format(code) for code in range(count) if NAME.format(code) not in known]
    if missing:
        raise UserError(
            f"model.image_tokenizer: {path} has {count} codes, and the model's tokenizer has no token {missing[0]} "
            f"({len(missing)} of them are missing); add {NAME.format(0)} to {NAME.format(count - 1)} to it"
        )
    codes = torch.full((vocabulary,), -1)
    places: Sequence[int] = [known[NAME.format(code)] for code in range(count)]
    if max(places) >= vocabulary:
        raise UserError(
            f"the model has {vocabulary} embeddings and token {max(places)} is a picture's; resize its embeddings"
        )
    codes[torch.tensor(places)] = torch.arange(count)
    side = config.sample_size // 2 ** (len(config.block_out_channels) - 1)
    return ImageTokens(network, codes, side * side, path)

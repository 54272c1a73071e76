"""What image scorers share: checked pixels, exact preprocessing, loading from safetensors, one embedding per prompt."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from flowrl.errors import UserError, did_you_mean
from flowrl.media import quantise
from flowrl.paths import expand_user

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
REMEMBERED = 4096
"""Prompts whose embedding is kept between calls (16 MB at 1024 numbers each)."""
CONVERT = "python -m flowrl.scorers.convert"


def score_images(
    images: Tensor, prompts: Sequence[str], batch_size: int, score: Callable[[Tensor, slice], Tensor]
) -> Tensor:
    """[N] float64 scores on the host, from `score(pixels [n, 3, H, W] uint8, rows)` on at most `batch_size` rows.

    NaN where an image is not finite. Raises `UserError` for images that are not [N, 3, H, W], or not one per prompt.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"image scorers take images [N, 3, H, W] in [0, 1], found {'x'.join(map(str, images.shape))}")
    if len(images) != len(prompts):
        raise UserError(f"image scorers need one prompt per image, found {len(images)} images, {len(prompts)} prompts")
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, found {batch_size}")
    parts = [torch.zeros(0, dtype=torch.float64)]
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            rows = slice(start, min(start + batch_size, len(images)))
            finite = torch.isfinite(images[rows]).flatten(1).all(dim=1).cpu()
            values = score(quantise(images[rows]), rows).double().cpu()
            parts.append(values.masked_fill(~finite, torch.nan))
    return torch.cat(parts).clone()


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become the input of a vision tower; resizing is Pillow's on uint8, as in the published pipelines.

    torchvision's antialiased resize of uint8 tensors differs by one level in 10 to 20 % of the pixels.
    """

    crop: int | None
    """Side of the square cut from the centre; None = no crop."""
    resize: int | tuple[int, int]
    """Length of the shortest edge, or exact (height, width)."""
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    resample: int = Image.Resampling.BICUBIC
    floor: bool = True
    """Where the crop starts when the margin is odd: rounded down (transformers) or to even (torchvision)."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """float32 [N, 3, h, w] on the host from uint8 [N, 3, H, W]."""
        arrays = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow resizes without the interpreter lock
            done = np.stack(list(pool.map(self._one, arrays)))
        values = torch.from_numpy(done).permute(0, 3, 1, 2).float() / 255
        return (values - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)

    def _one(self, array: Any) -> Any:
        height, width = array.shape[:2]
        if isinstance(self.resize, tuple):
            size = self.resize
        else:
            short = min(height, width)
            size = (int(self.resize * height / short), int(self.resize * width / short))
        image = Image.fromarray(array)
        if size != (height, width):
            image = image.resize((size[1], size[0]), Image.Resampling(self.resample))
        if self.crop is None:
            return np.asarray(image)
        top, left = self._margin(size[0]), self._margin(size[1])
        return np.asarray(image.crop((left, top, left + self.crop, top + self.crop)))  # black outside the image

    def _margin(self, length: int) -> int:
        assert self.crop is not None
        return (length - self.crop) // 2 if self.floor else round((length - self.crop) / 2)


def read_preprocessing(path: str, name: str) -> Preprocessing:
    """The resize, crop, mean and std that `preprocessor_config.json` of a folder or hub repository states."""
    from transformers import AutoImageProcessor

    stated: Any = _from_hub(lambda: AutoImageProcessor.from_pretrained(path), path, name)
    size, crop = dict(stated.size), dict(getattr(stated, "crop_size", None) or {})
    exact = size.get("height") is not None
    return Preprocessing(
        crop=int(crop["height"]) if getattr(stated, "do_center_crop", False) else None,
        resize=(int(size["height"]), int(size["width"])) if exact else int(size["shortest_edge"]),
        mean=tuple(stated.image_mean),
        std=tuple(stated.image_std),
        resample=int(stated.resample),
    )


class EmbeddingCache:
    """Embeddings of prompts, made once per unique prompt and kept for later calls."""

    def __init__(self, encode: Callable[[list[str]], Tensor], batch_size: int) -> None:
        self._encode, self._batch_size = encode, batch_size
        self._known: dict[str, Tensor] = {}

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """[N, E] embeddings of N prompts."""
        unique = list(dict.fromkeys(prompts))
        if len(self._known) + len(unique) > REMEMBERED:
            self._known.clear()
        new = [prompt for prompt in unique if prompt not in self._known]
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

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """[n, E], one pass of the text tower per unique prompt."""
        ...


class HuggingFaceClip:
    """A CLIP model in transformers' layout, from a folder or the hub; `processor` holds tokenizer and preprocessing."""

    def __init__(
        self, path: str, name: str, *, device: str | None, dtype: str, batch_size: int, processor: str | None = None
    ) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self._place = place(device, dtype)
        self.model: Any = load_pretrained(CLIPModel, path, name, ("clip",)).to(*self._place)
        source = processor or path
        self.preprocess = read_preprocessing(source, name)
        self._tokenizer: Any = _from_hub(lambda: AutoTokenizer.from_pretrained(source), source, name)
        self._length = int(self.model.config.text_config.max_position_embeddings)
        self._name = name
        self.logit_scale = float(self.model.logit_scale.detach().double().exp())
        self.texts = EmbeddingCache(self._encode, batch_size)

    def images(self, pixels: Tensor) -> Tensor:
        """Unit image embeddings [n, E] of uint8 images [n, 3, H, W]."""
        answer = self.model.get_image_features(pixel_values=self.preprocess(pixels).to(*self._place))
        return unit(_pooled(answer))

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

        self.device, self._dtype = place(device, dtype)
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
        self.preprocess: Callable[[Tensor], Tensor] = Preprocessing(
            self.size, self.size, stated.get("mean", CLIP_MEAN), stated.get("std", CLIP_STD), floor=False
        )
        self.logit_scale = float(self.model.logit_scale.detach().double().exp())
        self.texts = EmbeddingCache(self._encode, batch_size)

    def images(self, pixels: Tensor) -> Tensor:
        """Unit image embeddings [n, E] of uint8 images [n, 3, H, W]."""
        return unit(self.model.encode_image(self.preprocess(pixels).to(self.device, self._dtype)))

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


def place(device: str | None, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Device (the GPU if there is one, unless named) and precision. Raises `UserError` for either."""
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not a precision of image scorers{did_you_mean(dtype, DTYPES)}")
    try:
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"device {device!r} is not a torch device (cpu, cuda, cuda:1, ...)") from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device is {device!r} but torch sees no CUDA device; use device: cpu")
    return where, DTYPES[dtype]


def load_pretrained(kind: Any, path: str, name: str, types: tuple[str, ...], unused: str | None = None) -> Any:
    """A transformers model for inference, from safetensors only, every weight found but those below `unused`.

    Raises `UserError` for a folder that does not exist, holds pickles or another architecture than `types`, or lacks
    weights; transformers itself would fill those with random numbers.
    """
    from transformers import AutoConfig

    folder = expand_user(path)
    if not folder.is_dir() and (path.count("/") != 1 or path.startswith((".", "/", "~"))):
        raise UserError(f"{name}: {path!r} is neither a folder nor a name on the Hugging Face hub ('owner/model')")
    source = str(folder) if folder.is_dir() else path
    config: Any = _from_hub(lambda: AutoConfig.from_pretrained(source), path, name)
    if config.model_type not in types:
        raise UserError(f"{name} needs a model of type {' or '.join(types)}, but {path} holds {config.model_type!r}")
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        raise UserError(_no_safetensors(folder, name, "model.safetensors"))

    def load() -> Any:
        return kind.from_pretrained(
            source, use_safetensors=True, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )

    model, report = _from_hub(load, path, name)
    absent = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    absent = [key for key in absent if unused is None or not key.startswith(unused)]
    if absent:
        raise UserError(f"{name}: {path} lacks {len(absent)} weights of its architecture ({absent[0]}, ...)")
    return model.eval().requires_grad_(False)


def find_safetensors(path: str, name: str, preferred: str | None = None) -> Path:
    """The weights file at `path`: itself, or the one in this folder. Raises `UserError`, naming the converter."""
    given = expand_user(path)
    if given.is_dir():
        found = sorted(given.glob("*.safetensors"))
        found = [file for file in found if file.name == preferred] or found
        if len(found) > 1:
            raise UserError(f"{name}: {path} holds {len(found)} .safetensors files; give the file instead")
        if not found:
            raise UserError(_no_safetensors(given, name, preferred or "weights.safetensors"))
        return found[0]
    if not given.is_file():
        raise UserError(f"{name}: weights {path!r} do not exist; give a .safetensors file or the folder that holds it")
    if given.suffix != ".safetensors":
        target = given.with_suffix(".safetensors")
        raise UserError(f"{name}: {path} is not a safetensors file; run `{CONVERT} {path} {target}` and give {target}")
    return given


def read_safetensors(file: Path, name: str) -> dict[str, Tensor]:
    """Every tensor of a safetensors file. Raises `UserError` for a file that is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(file))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{name}: {file} is not a readable safetensors file: {error}") from error


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], name: str, file: Path) -> None:
    """Fill a float32 module with weights of exactly its names and shapes. Raises `UserError` for a misfit."""
    check_fit(model, state, name, file)
    model.load_state_dict({key: value.float() for key, value in state.items()})


def check_fit(model: nn.Module, state: Mapping[str, Tensor], name: str, file: Path) -> None:
    """Raise `UserError` unless weights have exactly a module's names and shapes."""
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    odd = sorted({*wanted.items()} ^ {*found.items()})
    if odd:
        key = odd[0][0]
        raise UserError(
            f"{name}: {file} holds another architecture: {key} is {found.get(key, 'absent')} where "
            f"{wanted.get(key, 'nothing')} is expected ({len({key for key, _ in odd})} weights differ)"
        )


def linear_stack(state: Mapping[str, Tensor], inputs: int, name: str, file: Path) -> nn.Sequential:
    """Linear layers without anything between them, from keys `layers.<i>.weight` and `.bias`, ending in one number.

    Both heads of this form (LAION's, ImageReward's) have only dropout between the layers, which inference omits.
    """
    order = sorted({int(key.split(".")[1]) for key in state if key.startswith("layers.")})
    layers: list[nn.Module] = []
    for index in order:
        weight, bias = state.get(f"layers.{index}.weight"), state.get(f"layers.{index}.bias")
        if weight is None or bias is None or weight.ndim != 2 or weight.shape[1] != inputs:
            raise UserError(f"{name}: layers.{index} of {file} is no linear layer with {inputs} inputs")
        layer = nn.Linear(inputs, len(weight))
        layer.load_state_dict({"weight": weight.float(), "bias": bias.float()})
        layers.append(layer)
        inputs = len(weight)
    if not layers or inputs != 1:
        raise UserError(
            f"{name}: {file} holds no head of linear layers ('layers.0.weight', ...) that ends in one number"
        )
    return nn.Sequential(*layers).eval().requires_grad_(False)


def _pooled(answer: Any) -> Tensor:
    return answer if isinstance(answer, Tensor) else answer.pooler_output  # a tensor before transformers 5


def _from_hub(load: Callable[[], Any], path: str, name: str) -> Any:
    try:
        return load()
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name}: {path} cannot be loaded: {reason}") from error


def _no_safetensors(folder: Path, name: str, target: str) -> str:
    pickles = [file for pattern in ("*.bin", "*.pt", "*.pth") for file in sorted(folder.glob(pattern))]
    if not pickles:
        return f"{name}: {folder} holds no weights; a .safetensors file is needed"
    return f"{name}: {folder} holds no safetensors; run `{CONVERT} {pickles[0]} {folder / target}`"


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

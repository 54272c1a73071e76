"""Tiny models of the architectures that image scorers use, saved as published, and what their tests share."""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from flowrl.scorers.convert import convert
from flowrl.scorers.images import CLIP_MEAN, CLIP_STD

PROMPTS = ["a red cube", "a blue ball", "a red cube", "two green cones on a table", "a blue ball"]
SIDE = 32
CLOSE = {"rtol": 0, "atol": 1e-5}
WIDTH, WORDS, PATCH = 128, 64, 8
WORDS_KNOWN = ("a", "red", "blue", "green", "cube", "ball", "two", "cones", "on", "table")


def pictures(count: int = 5, height: int = 40, width: int = 54) -> Tensor:
    """Smooth colour fields with a little noise; 54 becomes 43 at height 32, a margin that two libraries round apart."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, 3, 4, 5, generator=generator)
    fine = torch.rand(count, 3, height, width, generator=generator)
    return (0.8 * F.interpolate(coarse, size=(height, width), mode="bilinear") + 0.2 * fine).clamp(0, 1)


def as_pil(images: Tensor) -> list[Image.Image]:
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array) for array in pixels]


def by_torchvision(images: Tensor, side: int) -> Tensor:
    """The transform of OpenAI's CLIP and of ImageReward, on Pillow images."""
    from torchvision import transforms as T

    steps = [
        T.Resize(side, interpolation=T.InterpolationMode.BICUBIC),
        T.CenterCrop(side),
        T.ToTensor(),
        T.Normalize(CLIP_MEAN, CLIP_STD),
    ]
    return torch.stack([T.Compose(steps)(image) for image in as_pil(images)])


def by_transformers(images: Tensor, folder: Path) -> Tensor:
    """transformers' own Pillow processor."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil.from_pretrained(folder)
    return processor(as_pil(images), return_tensors="pt")["pixel_values"]


def randomize(model: nn.Module, scale: float = 0.2, seed: int = 0) -> None:
    """Weights large enough that scores of different images differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale" and parameter.ndim > 0:
                noise = torch.randn(parameter.shape, generator=generator) * (0.2 if parameter.ndim == 1 else 1)
                norm = parameter.ndim == 1 and "weight" in name
                parameter.copy_(scale * noise + (1 if norm else 0))


def save_clip(folder: Path) -> Path:
    """A two-layer CLIP with a byte-level tokenizer, in the hub's layout."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer
    from transformers.models.clip.configuration_clip import CLIPTextConfig, CLIPVisionConfig

    letters = [chr(code) for code in range(33, 127)]
    words = [
        *letters,
        *(letter + "</w>" for letter in letters),
        "re",
        "re" + "d</w>",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {word: index for index, word in enumerate(words)}
    merges = [("r", "e"), ("re", "d</w>")]
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77).save_pretrained(folder)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    last = len(words) - 1
    text = CLIPTextConfig(
        **small, vocab_size=len(words), bos_token_id=last - 1, eos_token_id=last, pad_token_id=last, hidden_act="gelu"
    )
    vision = CLIPVisionConfig(**small, image_size=SIDE, patch_size=8, hidden_act="gelu")
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    model = CLIPModel(config)
    randomize(model, seed=17)  # cosines of both signs
    with torch.no_grad():
        model.logit_scale.fill_(math.log(98.0))
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def save_open_clip(folder: Path) -> Path:
    """A two-layer open_clip model in that library's `local-dir:` layout."""
    import open_clip

    settings = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    model = open_clip.CLIP(**json.loads(json.dumps(settings)))
    randomize(model)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def aesthetic_head(width: int = 16, seed: int = 5) -> nn.Sequential:
    head = nn.Sequential(
        *(nn.Linear(width, 24), nn.Dropout(0.2), nn.Linear(24, 12), nn.Dropout(0.2), nn.Linear(12, 6)),
        *(nn.Dropout(0.1), nn.Linear(6, 3), nn.Linear(3, 1)),
    )
    randomize(head, seed=seed)
    return head.eval()


def save_aesthetic(folder: Path) -> Path:
    """A head with the published keys (layers.0, 2, 4, 6, 7), pickled as published and converted by the command."""
    torch.save({f"layers.{key}": value for key, value in aesthetic_head().state_dict().items()}, folder / "head.pth")
    convert(folder / "head.pth", folder / "head.safetensors")
    return folder / "head.safetensors"


def imagereward_weights() -> dict[str, Tensor]:
    """Random weights with the names of `ImageReward.pt`: vision width 128 (2 heads), text width 64 (1 head)."""
    state: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(11)

    def add(name: str, *shape: int, scale: float = 0.08, shift: float = 0.0) -> None:
        state[name] = scale * torch.randn(shape, generator=generator) + shift

    def linear(name: str, inputs: int, outputs: int) -> None:
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    def norm(name: str, width: int) -> None:
        add(f"{name}.weight", width, shift=1.0)
        add(f"{name}.bias", width)

    eye, mouth = "blip.visual_encoder.", "blip.text_encoder."
    add(eye + "cls_token", 1, 1, WIDTH)
    add(eye + "pos_embed", 1, (SIDE // PATCH) ** 2 + 1, WIDTH)
    add(eye + "patch_embed.proj.weight", WIDTH, 3, PATCH, PATCH)
    add(eye + "patch_embed.proj.bias", WIDTH)
    norm(eye + "norm", WIDTH)
    for i in range(2):
        block = f"{eye}blocks.{i}."
        norm(block + "norm1", WIDTH)
        norm(block + "norm2", WIDTH)
        linear(block + "attn.qkv", WIDTH, 3 * WIDTH)
        linear(block + "attn.proj", WIDTH, WIDTH)
        linear(block + "mlp.fc1", WIDTH, 96)
        linear(block + "mlp.fc2", 96, WIDTH)
    add(mouth + "embeddings.word_embeddings.weight", 40, WORDS)
    add(mouth + "embeddings.position_embeddings.weight", 50, WORDS)
    state[mouth + "embeddings.position_ids"] = torch.arange(50)[None]
    norm(mouth + "embeddings.LayerNorm", WORDS)
    for i in range(2):
        layer = f"{mouth}encoder.layer.{i}."
        for kind, source in (("attention", WORDS), ("crossattention", WIDTH)):
            linear(f"{layer}{kind}.self.query", WORDS, WORDS)
            linear(f"{layer}{kind}.self.key", source, WORDS)
            linear(f"{layer}{kind}.self.value", source, WORDS)
            linear(f"{layer}{kind}.output.dense", WORDS, WORDS)
            norm(f"{layer}{kind}.output.LayerNorm", WORDS)
        linear(layer + "intermediate.dense", WORDS, 80)
        linear(layer + "output.dense", 80, WORDS)
        norm(layer + "output.LayerNorm", WORDS)
    linear("blip.vision_proj", WIDTH, 8)  # trained, unused by the score
    for key, value in aesthetic_head(WORDS, seed=6).state_dict().items():
        state[f"mlp.layers.{key}"] = value
    return state


def save_imagereward(folder: Path) -> Path:
    """ImageReward and the tokenizer of `WORDS_KNOWN`, pickled as published and converted."""
    from transformers import BertTokenizer

    torch.save(imagereward_weights(), folder / "ImageReward.pt")
    convert(folder / "ImageReward.pt", folder / "imagereward.safetensors")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS_KNOWN]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
    return folder


def save_dino(folder: Path) -> Path:
    """A two-layer DINOv2."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14
    )
    model = Dinov2Model(config)
    randomize(model)
    model.save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": 28, "width": 28},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder

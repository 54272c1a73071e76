"""A tiny Mask2Former with COCO's classes and a CLIP with QuickGELU, saved as published."""

import json
from pathlib import Path

import torch

from flowrl.detection import OBJECTS
from tests.tiny_scorers import randomize

COCO = [{"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}.get(n, n) for n in OBJECTS]


def save_mask2former(folder: Path) -> Path:
    """Twelve queries on a four-block Swin, in the hub's layout."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=12,
        id2label=dict(enumerate(COCO)),
        label2id={name: index for index, name in enumerate(COCO)},
    )
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(config)
    randomize(model, scale=0.2, seed=1)
    with torch.no_grad():
        model.class_predictor.bias[OBJECTS.index("dog")] += 8.5  # sees dogs above the official threshold
    model.save_pretrained(folder)
    return folder


def taught(folder: Path, label: str = "vase") -> Path:
    """A CLIP's folder whose visual projection is solved for: flat pictures in the ten colours get the embeddings of the
    colour classifier's sentences about them."""
    from transformers import CLIPModel

    from flowrl.detection.colors import ClipColors
    from flowrl.detection.drawings import COLORS, flat

    colors, model = ClipColors(str(folder), device="cpu"), CLIPModel.from_pretrained(folder)
    clip = colors._clip
    pixels = clip.preprocess(torch.stack([flat(color, 32) for color in COLORS]))
    with torch.no_grad():
        seen = model.vision_model(pixel_values=pixels).pooler_output.double()
        wanted = torch.linalg.pinv(colors._prototypes(label).double()).T  # near its own sentences, at 0 to the others
        model.visual_projection.weight.copy_(torch.linalg.lstsq(seen, wanted).solution.T)
    model.save_pretrained(folder)
    return folder


def quick(folder: Path, activation: str = "quick_gelu") -> Path:
    """A CLIP's folder with another activation in its configuration."""
    config = json.loads((folder / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        config[tower]["hidden_act"] = activation
    (folder / "config.json").write_text(json.dumps(config))
    return folder

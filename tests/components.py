"""Offline parts of tiny random pipelines: tokenizers from a small vocabulary, text encoders, VAEs."""

from __future__ import annotations

import string
from typing import Any

import diffusers
import transformers

WORDS = "a the red green blue circle square triangle dog dogs cat above below left of one two three picture".split()  # noqa: SIM905


# ------------------------------------------------------------------------------------------------- tokenizers
def clip_tokenizer() -> Any:
    characters = list(string.ascii_lowercase) + list(string.digits)
    tokens = ["<|startoftext|>", "<|endoftext|>", *characters, *[c + "</w>" for c in characters]]
    return transformers.CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77
    )


def word_tokenizer(
    special: tuple[str, ...] = ("<pad>", "</s>", "<unk>"), side: str = "right", chat: str | None = None
) -> Any:
    """A word-level tokenizer; ``special`` are pad, end and unknown; the end token closes every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pad, end, unknown = special
    vocabulary = {token: i for i, token in enumerate([*special, *WORDS, *string.ascii_letters])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, vocabulary[end])])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token=pad, eos_token=end, unk_token=unknown, padding_side=side, model_max_length=512
    )
    if chat is not None:
        made.chat_template = chat
    return made


# ---------------------------------------------------------------------------------------------- text encoders
def clip_text(width: int = 32, projection: bool = False) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=100, hidden_size=width, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=width, max_position_embeddings=77, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        hidden_act="gelu",
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config)


def t5_text(width: int = 32, kind: str = "T5") -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=100, d_model=width, d_ff=37, d_kv=8, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=1
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)


# ------------------------------------------------------------------------------------------------------- VAEs
def image_vae(channels: int = 4, **options: Any) -> Any:
    return diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        latent_channels=channels, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **options,
    )  # fmt: skip


def flow_vae(channels: int) -> Any:
    return image_vae(channels, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False)


def gemma2() -> Any:
    return transformers.Gemma2Model(transformers.Gemma2Config(
        vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, pad_token_id=0, eos_token_id=1, bos_token_id=1,
    ))  # fmt: skip


def qwen_text() -> Any:
    text = {
        "vocab_size": 100, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},
        "rope_theta": 1e6, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )


def wan_vae(kind: str) -> Any:
    return getattr(diffusers, kind)(
        base_dim=6, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.1, 0.9, 1.5, 1.0],
    )  # fmt: skip

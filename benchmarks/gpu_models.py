"""Models of released sizes with random weights, saved as a user would find them on disk; and a reward for texts.

Of pipelines the denoiser and the autoencoder have the released sizes, and the text encoders their widths but two
layers: they encode a few prompts an iteration. Tokenizers are tiny; nothing is downloaded. A released model's speed and
memory follow from its shapes, so random weights measure them; what it learns they do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PROMPT_WORDS = 24


def save(name: str, folder: Path, device: str, tiny: bool) -> dict[str, float]:
    """Build the model ``name`` in bfloat16 on a device, and save it. Its parameters in billions."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    with _made_on("cpu" if tiny else device):
        count = (_save_pipeline if name in ("sd35", "flux") else _save_text)(name, folder, tiny)
    (folder / "prompts.txt").write_text("\n".join(_prompts(name)))
    return {"billion parameters": count / 1e9}


def even(completions: list[str], **columns: Any) -> list[float]:
    """The reward: the share of words with an even number."""
    return [sum(word[1:].isdigit() and int(word[1:]) % 2 == 0 for word in text.split()) / 100 for text in completions]


@contextmanager
def _made_on(device: str) -> Iterator[None]:
    """Modules made inside are in bfloat16 on a device, where random numbers are quick."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _prompts(name: str) -> list[str]:
    if name in ("sd35", "flux"):
        return [f"a {colour} {thing}" for colour in ("red", "green", "blue") for thing in ("dog", "cat", "circle")]
    return [" ".join(f"w{(7 * i + 13 * j) % 50 + 5}" for j in range(PROMPT_WORDS)) for i in range(16)]


def _save_pipeline(name: str, folder: Path, tiny: bool) -> int:
    if tiny:
        from tests import pipelines

        pipelines.save({"sd35": "sd3"}.get(name, name), folder)
        return 0
    pipeline = (_sd35 if name == "sd35" else _flux)()
    pipeline.save_pretrained(folder)
    return sum(parameter.numel() for parameter in pipeline.transformer.parameters())


def _vae() -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, sample_size=1024,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, shift_factor=0.0609,
        scaling_factor=1.5305, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def _sd35() -> Any:
    """Stable Diffusion 3.5 medium: 2.2 billion parameters."""
    import diffusers

    from tests.components import clip_text, clip_tokenizer, t5_text, word_tokenizer

    transformer = diffusers.SD3Transformer2DModel(
        sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24, attention_head_dim=64,
        num_attention_heads=24, joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048,
        pos_embed_max_size=384, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, vae=_vae(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=clip_text(768, projection=True), text_encoder_2=clip_text(1280, projection=True),
        text_encoder_3=t5_text(4096), tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(),
        tokenizer_3=word_tokenizer(),
    )  # fmt: skip


def _flux() -> Any:
    """FLUX.1-dev: 11.9 billion parameters."""
    import diffusers

    from tests.components import clip_text, clip_tokenizer, t5_text, word_tokenizer

    transformer = diffusers.FluxTransformer2DModel(
        in_channels=64, num_layers=19, num_single_layers=38, attention_head_dim=128, num_attention_heads=24,
        joint_attention_dim=4096, pooled_projection_dim=768, guidance_embeds=True,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=transformer, vae=_vae(), text_encoder=clip_text(768), tokenizer=clip_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        text_encoder_2=t5_text(4096), tokenizer_2=word_tokenizer(),
    )  # fmt: skip


def _tokenizer(size: int) -> Any:
    """Words ``w0`` to ``w<size - 1>``; the first are padding, the end, the mask and what is unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w3"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="w0", eos_token="w1", mask_token="w2", unk_token="w3"
    )


def _save_text(name: str, folder: Path, tiny: bool) -> int:
    model = (_qwen3 if name == "qwen3" else _llada)(tiny)
    model.save_pretrained(folder)
    _tokenizer(model.config.vocab_size).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}


def _qwen3(tiny: bool) -> Any:
    """Qwen3 8B: 8.2 billion parameters."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {
        "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False,
    }  # fmt: skip
    small = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    return Qwen3ForCausalLM(Qwen3Config(**{**sizes, **(small if tiny else {})}, **SPECIAL))


def _llada(tiny: bool) -> Any:
    """A bidirectional transformer of LLaDA 8B's width, depth and vocabulary (7.5 billion parameters): LLaDA's own code
    comes with its weights, so a ModernBERT of full attention stands in for it."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    sizes = {
        "vocab_size": 126_464, "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 4096, "global_attn_every_n_layers": 1,
    }  # fmt: skip
    small = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2}
    special = {**SPECIAL, "cls_token_id": 1, "sep_token_id": 1}
    return ModernBertForMaskedLM(ModernBertConfig(**{**sizes, **(small if tiny else {})}, **special))

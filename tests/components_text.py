"""Tiny random language models of many architectures, saved to folders as their libraries save them."""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
import string
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from flowrl.models.text import remote_code

CHARACTERS = string.digits + string.ascii_lowercase + "+-*/=.:|() "
REMOTE = Path(__file__).parent / "remote" / "modeling_tiny.py"
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
)
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip


def character_tokenizer(*, mask: bool = False, chat: str | None = None) -> Any:
    """Every character a token; ``<pad>`` 0, ``<eos>`` 1, ``<unk>`` 2 and, if asked for, ``<mask>`` 3."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    special = ["<pad>", "<eos>", "<unk>", *(["<mask>"] if mask else [])]
    made = Tokenizer(models.WordLevel({t: i for i, t in enumerate([*special, *CHARACTERS])}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    names = {"mask_token": "<mask>"} if mask else {}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", **names
    )
    if chat is not None:
        tokenizer.chat_template = chat
    return tokenizer


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="flowrl-text-")  # removed when Python ends


@functools.cache
def folder(name: str) -> Path:
    """The folder of the model ``name``, made once per test session."""
    return save(name, Path(_root().name) / name)


def save(name: str, folder: Path) -> Path:
    """Make the model ``name`` in ``folder``; the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(map(ord, name)))
        _MAKERS[name](folder)
    return folder


def _plain(kind: str, *, mask: bool = False, sharp: float = 8.0, **options: Any) -> Any:
    """A maker of a native transformers model; its weights are ``sharp`` times larger than by default, so that
    predictions depend on what they should depend on."""

    def make(folder: Path) -> None:
        tokenizer = character_tokenizer(mask=mask)
        config = getattr(transformers, f"{kind.removesuffix('LMHead').removesuffix('ForMaskedLM')}Config")
        known = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
        model = _model(kind)(config(**{**known, **options}))
        sharpen(model, sharp)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return make


def _model(kind: str) -> Any:
    names = (kind, f"{kind}Model", f"{kind}ForCausalLM")
    found = [getattr(transformers, n) for n in names if hasattr(transformers, n)]
    return found[0] if kind.endswith("ForMaskedLM") else getattr(transformers, _causal_name(kind))


def _causal_name(kind: str) -> str:
    return f"{kind}Model" if kind.endswith("LMHead") else f"{kind}ForCausalLM"


def sharpen(model: torch.nn.Module, factor: float) -> None:
    """Scale every matrix."""
    with torch.no_grad():
        for parameter in set(model.parameters()):
            if parameter.dim() > 1:
                parameter.mul_(factor)


def remote_module() -> Any:
    """The remote code as a module, under the name that it has in the saved folder."""
    name = "modeling_tiny"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, REMOTE)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        with remote_code.patched_transformers():  # as when it is loaded with a model
            spec.loader.exec_module(sys.modules[name])
        remote_code.patch_module(sys.modules[name])
    return sys.modules[name]


def _remote(prefix: str, model_class: str, auto: tuple[str, ...], *, names_mask: bool = True, **options: Any) -> Any:
    def make(folder: Path) -> None:
        module, tokenizer = remote_module(), character_tokenizer(mask=True)
        config = getattr(module, f"{prefix}Config")(vocab_size=len(tokenizer), **options)
        getattr(module, model_class)(config).save_pretrained(folder)
        shutil.copy(REMOTE, folder)
        written = json.loads((folder / "config.json").read_text())
        written["auto_map"] = {name: f"modeling_tiny.{model_class}" for name in auto}
        written["auto_map"]["AutoConfig"] = f"modeling_tiny.{prefix}Config"
        (folder / "config.json").write_text(json.dumps(written))
        tokenizer.save_pretrained(folder)

    return make


def _llada2(folder: Path, **options: Any) -> None:
    """A folder as ``LLaDA2Pipeline.save_pretrained`` lays it out, its network being remote code."""
    from diffusers import BlockRefinementScheduler

    _remote("LLaDA2", "LLaDA2MoeModelLM", ("AutoModelForCausalLM",), **options)(folder / "model")
    (folder / "tokenizer").mkdir()
    for file in [*(folder / "model").glob("tokenizer*"), *(folder / "model").glob("special*")]:
        file.rename(folder / "tokenizer" / file.name)
    BlockRefinementScheduler(block_length=4).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "LLaDA2Pipeline",
        "_diffusers_version": "0.42.0",
        "model": ["transformers", "AutoModelForCausalLM"],
        "scheduler": ["diffusers", "BlockRefinementScheduler"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def diffusion_gemma() -> Any:
    """A model of two layers with a small vision tower that nobody uses; skips the test under a transformers that does
    not have it yet."""
    if not hasattr(transformers, "DiffusionGemmaConfig"):
        pytest.skip(f"transformers {transformers.__version__} has no DiffusionGemma")
    text = {
        "vocab_size": len(character_tokenizer(mask=True)), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "global_head_dim": 8, "max_position_embeddings": 64, "sliding_window": 16, "num_experts": 4,
        "top_k_experts": 2, "moe_intermediate_size": 16, "layer_types": ["sliding_attention", "full_attention"],
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 8, "model_type": "gemma4_vision",
    }  # fmt: skip
    config = transformers.DiffusionGemmaConfig(
        text_config=text, vision_config=vision, canvas_length=4, image_token_id=2, boi_token_id=2, eoi_token_id=2
    )
    model = transformers.DiffusionGemmaForBlockDiffusion(config).eval()
    sharpen(model, 4.0)
    return model


def _diffusion_gemma(folder: Path) -> None:
    diffusion_gemma().save_pretrained(folder)
    character_tokenizer(mask=True).save_pretrained(folder)


_BERT: dict[str, Any] = {**SIZES, "type_vocab_size": 1}
_MAKERS: dict[str, Any] = {
    "llama": _plain("Llama", num_key_value_heads=2, **SIZES),
    "qwen2": _plain("Qwen2", num_key_value_heads=2, **SIZES),
    "qwen3": _plain("Qwen3", num_key_value_heads=2, head_dim=8, **SIZES),
    "gemma2": _plain(
        "Gemma2", num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0, sliding_window=8, **SIZES
    ),
    "cohere": _plain("Cohere", num_key_value_heads=2, logit_scale=0.25, **SIZES),
    "gpt2": _plain("GPT2LMHead", n_embd=32, n_layer=2, n_head=4, n_positions=64, sharp=4.0),
    "opt": _plain(
        "OPT", hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
        word_embed_proj_dim=32, dropout=0.5, layerdrop=0.5, sharp=4.0,
    ),
    "mamba": _plain("Mamba", hidden_size=32, state_size=4, num_hidden_layers=2, expand=2, sharp=2.0),
    "lfm2": _plain(
        "Lfm2", num_key_value_heads=2, conv_L_cache=3, layer_types=["conv", "full_attention"],
        block_auto_adjust_ff_dim=False, sharp=4.0, **SIZES,
    ),
    "falcon_h1": _plain(
        "FalconH1", num_key_value_heads=2, head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8,
        mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8, sharp=4.0, **SIZES,
    ),
    "jamba": _plain(
        "Jamba", num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, attn_layer_period=2, attn_layer_offset=1,
        expert_layer_period=2, expert_layer_offset=1, mamba_d_state=4, mamba_dt_rank=4, use_mamba_kernels=False,
        sharp=4.0, **SIZES,
    ),
    "qwen3_next": _plain(
        "Qwen3Next", num_key_value_heads=2, head_dim=8, linear_key_head_dim=8, linear_value_head_dim=8,
        linear_num_key_heads=2, linear_num_value_heads=4, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, shared_expert_intermediate_size=16, sharp=4.0,
        layer_types=["linear_attention", "full_attention"], **SIZES,
    ),
    "recurrent_gemma": _plain(
        "RecurrentGemma", hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=1, head_dim=8, lru_width=32, attention_window_size=8, conv1d_width=3,
    ),
    "bert": _plain("BertForMaskedLM", mask=True, **_BERT),
    "roberta": _plain("RobertaForMaskedLM", mask=True, **_BERT),
    "modernbert": _plain(
        "ModernBertForMaskedLM", mask=True, cls_token_id=1, sep_token_id=1, local_attention=8,
        global_attn_every_n_layers=2, **SIZES,
    ),
    "unmasked": _plain("BertForMaskedLM", **_BERT),
    "llada": _remote("LLaDA", "LLaDAModelLM", ("AutoModel", "AutoModelForCausalLM")),
    "dream": _remote("Dream", "DreamModel", ("AutoModel",)),
    "llada2": _llada2,
    "nameless": _remote("Tiny", "TinyModel", ("AutoModelForCausalLM",)),
    "llada2-blocks": lambda folder: _llada2(folder, block_causal=4),
    "llada2-square": lambda folder: _llada2(folder, square_mask=True),
    "diffusion_gemma": _diffusion_gemma,
}  # fmt: skip
NAMES = tuple(_MAKERS)

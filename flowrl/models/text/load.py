"""What loading a language model of either family needs: its options, its network with an adapter, its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from flowrl.errors import UserError, did_you_mean
from flowrl.models.lora import LANGUAGE_TARGETS, LoRAOptions, adapt, lora_or_full, trained_parameters
from flowrl.models.merging import check_merging
from flowrl.models.placement import checkpoint_blocks, compile_blocks, place, trained_precision
from flowrl.models.quantization import Method, Quantized, check_device, check_quantization
from flowrl.models.sharding import Shard, check_shard, split
from flowrl.models.source import ModelSource, check_finite
from flowrl.models.text.codec import TextCodec, make_codec
from flowrl.models.text.network import Network
from flowrl.models.text.pretrained import STATE_SPACE, find_model, generation_config, open_model, open_tokenizer
from flowrl.models.text.score_head import train_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Options(TypedDict, total=False):
    """What every language model can be loaded with."""

    lora: LoRAOptions | None
    """The adapter to train (default: rank 32 on attention and feed-forward projections); exclusive with ``full``."""
    full: bool
    """Train every parameter."""
    merge_adapters: bool
    """Predict without gradient with merged weights (`flowrl.models.merging`)."""
    dtype: str
    """Precision of the frozen parts."""
    trained_dtype: str
    """That of the trained parameters: float32, or bfloat16 where ``dtype`` is."""
    device: str
    gradient_checkpointing: bool
    attention: str | None
    """An attention implementation of transformers, such as ``"sdpa"`` or ``"flash_attention_2"``."""
    compile: bool
    quantize: Method | None
    """Hold the frozen linear layers in ``"nf4"`` or ``"int8"``."""
    shard: Shard
    """``"fsdp"``: split the network over the processes (`flowrl.models.sharding`)."""
    trust_remote_code: bool
    chat: bool | None
    """Whether prompts go through the tokenizer's chat template; ``None``: if it has one."""
    system: str | None
    """The template's system message."""
    chat_template_kwargs: Mapping[str, Any]
    """Further arguments of the template, such as Qwen3's ``enable_thinking``."""
    prefill: str | None
    """How every answer begins; part of the prompt."""
    max_prompt: int | None
    """Longest prompt in tokens."""
    keep_special_tokens: bool
    """Whether the texts of completions show special tokens."""


CODEC_OPTIONS = ("chat", "system", "chat_template_kwargs", "prefill", "max_prompt", "keep_special_tokens")
"""Options of the tokens, not of the network."""


def open_network(
    path: str | Path, family: Literal["masked", "causal", "reward"], options: Options
) -> tuple[Network, PreTrainedTokenizerBase, ModelSource]:
    """``(network, tokenizer, source)`` with everything that is not a matter of the family."""
    unknown = sorted(set(options) - set(Options.__annotations__))
    if unknown:
        raise UserError(
            f"a language model has no option {unknown[0]!r}{did_you_mean(unknown[0], Options.__annotations__)}"
        )
    placement = place(options.get("dtype", "float32"), options.get("device", "auto"))
    adapter = lora_or_full(options.get("full", False), options.get("lora"))
    trained = trained_precision(options.get("trained_dtype", "float32"), placement.dtype)
    shard, method = options.get("shard", "none"), options.get("quantize")
    check_shard(shard)
    if method is not None:
        check_quantization(method, adapter is None, shard=shard)
        check_device(method, placement.device)
    merge, dtype = options.get("merge_adapters", False), options.get("dtype", "float32")
    check_merging(merge, adapter, dtype, compile=options.get("compile", False), shard=shard, quantize=method)
    quantized = Quantized(method, device=placement.device)
    source = ModelSource(find_model(path, family), options.get("trust_remote_code", False))
    model = open_model(source, family, placement.dtype, options.get("attention"), quantized)
    tokenizer = open_tokenizer(source)
    adapt(model, adapter, LANGUAGE_TARGETS, untargeted_layers(model), trained)
    if family == "reward":
        train_head(model, trained)
    if shard == "none":
        model.to(placement.device)  # pyright: ignore[reportArgumentType]  (transformers wraps it)
    check_finite(model, source.path)
    if options.get("gradient_checkpointing"):
        checkpoint_blocks(model)
    if options.get("compile"):
        compile_blocks(model)
    pace = None if shard == "none" else split(model, placement.device, adapter is None)
    return Network(model, trained_parameters(model, adapter), placement, pace), tokenizer, source


def open_codec(
    network: Network, tokenizer: Any, source: ModelSource, options: Options, mask: int | None = None
) -> TextCodec:
    """The model's tokenizer with the options that are about texts; ``mask`` is the mask token, which no text shows."""
    spoken: dict[str, Any] = {key: value for key, value in options.items() if key in CODEC_OPTIONS}
    spoken |= {"generation": generation_config(source), "embedded": network.embedded}
    return make_codec(tokenizer, network.model.config, mask=mask, **spoken)


def untargeted_layers(model: PreTrainedModel) -> list[str]:
    """Layers that no adapter is put on unasked: the vocabulary layer, towers that read other than text, and what
    PEFT refuses to adapt."""
    head, recurrent = model.get_output_embeddings(), model.config.model_type in STATE_SPACE
    found = []
    for name, module in model.named_modules():
        other = any(part in ("vision_tower", "embed_vision") for part in name.split("."))
        if module is head or other or (recurrent and name.endswith("out_proj")):
            found.append(name)
    return found

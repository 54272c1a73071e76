"""From a model folder, a hub name or an embedded world to a language-model policy, refusing early what cannot work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from flowrl.errors import UserError, did_you_mean
from flowrl.models.causal.engine import EngineOptions
from flowrl.models.causal.policy import CausalPolicy
from flowrl.models.loading import Source, check_finite, checkpoint_blocks, compile_blocks, exclusive, place
from flowrl.models.lora import LANGUAGE, LoRAOptions, adapt
from flowrl.models.masked.layout import Blocks, Canvases
from flowrl.models.masked.policy import MaskedPolicy
from flowrl.models.text import probing
from flowrl.models.text.critic import Critic, Kind
from flowrl.models.text.layout import Layout, Sequences
from flowrl.models.text.network import Network
from flowrl.models.text.opening import generation_config, locate, open_model, open_tokenizer, read_json
from flowrl.models.text.tokens import Tokens, open_tokens

STATE_SPACE = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
"""Model types whose output projections are used by their kernels directly."""
LLADA2_BLOCK = 32
"""Default of diffusers' BlockRefinementScheduler."""


class Options(TypedDict, total=False):
    """What every language model can be loaded with."""

    lora: LoRAOptions | None
    """The adapter to train (default: rank 32 on attention and feed-forward projections); exclusive with ``full``."""
    full: bool
    """Train every parameter."""
    dtype: str
    """Precision of the frozen parts; trained parameters are always float32."""
    device: str
    gradient_checkpointing: bool
    attention: str | None
    """An attention implementation of transformers, such as ``"sdpa"`` or ``"flash_attention_2"``."""
    compile: bool
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


SPOKEN = ("chat", "system", "chat_template_kwargs", "prefill", "max_prompt", "keep_special_tokens")
"""Options of the tokens, not of the network."""


def load_causal(
    path: str | Path,
    *,
    critic: Kind | None = None,
    vllm: Mapping[str, Any] | None = None,
    **options: Unpack[Options],
) -> CausalPolicy:
    """A policy from any ``AutoModelForCausalLM``.

    Args:
        path: a folder, a hub name, or an embedded world with a causal base model.
        critic: also learn values, with a ``network`` of their own or a linear ``head`` (see `Critic`).
        vllm: options of the inference engine, which starts at its first use (`EngineOptions`).
        options: see :class:`Options`.

    Raises:
        UserError: for a model that is missing or unsuitable, or options that exclude each other.
    """
    network, tokenizer, source = _open(path, "causal", options)
    text = _tokens(network, tokenizer, source, options)
    layout = Sequences(shift=True, causal=True, padded=True, pad=text.pad)
    policy = CausalPolicy(network, text, layout, source, critic=Critic(network, critic) if critic else None)
    policy.engine_options = EngineOptions(**(vllm or {}))
    ahead = probing.lookahead(policy)
    if ahead > probing.TOLERANCE[policy.dtype]:
        raise UserError(
            f"{path} ({network.name}) is a bidirectional model: a later token changes its earlier predictions by"
            f" {ahead:.2g}, but family causal needs an autoregressive one; use family masked"
        )
    probing.settle(policy)
    if policy.critic is not None:
        if network.head.route == "whole":
            raise UserError(
                f"{network.name} does not show its last hidden states, which a critic needs; use a method without one"
            )
        policy.critic.settle(network.head)
    policy.settle_decoding()
    policy.check_parity()
    network.calls = 0
    return policy


def load_masked(
    path: str | Path,
    *,
    mask_token_id: int | None = None,
    shift_logits: bool | None = None,
    **options: Unpack[Options],
) -> MaskedPolicy:
    """A policy from any bidirectional language model: ``AutoModelForMaskedLM``, LLaDA, Dream, a diffusers
    ``LLaDA2Pipeline`` or ``DiffusionGemmaPipeline``, or ``DiffusionGemmaForBlockDiffusion``.

    Args:
        path, options: as in :func:`load_causal`.
        mask_token_id: ``None``: the tokenizer's, else the config's.
        shift_logits: the prediction for position i is read at i - 1; ``None``: for Dream only.

    Raises:
        UserError: for a model that is missing or unsuitable, or options that exclude each other.
    """
    network, tokenizer, source = _open(path, "masked", options)
    mask = _mask_token(mask_token_id, tokenizer, network, str(path))
    text = _tokens(network, tokenizer, source, options, mask)
    layout = _masked_layout(network, source, shift_logits, text.pad, mask)
    policy = MaskedPolicy(network, text, layout, source, mask_token=mask)
    if isinstance(layout, Blocks) and not probing.bears(policy):
        policy.layout = replace(layout, square=False)
    if isinstance(layout, Sequences) and probing.lookahead(policy) <= probing.NOTHING:
        raise UserError(
            f"{path} ({network.name}) is an autoregressive model: later tokens do not change its earlier predictions,"
            " but family masked needs a bidirectional one; use family causal"
        )
    probing.settle(policy)
    policy.settle_reading()
    policy.check_parity()
    network.calls = 0
    return policy


def _open(path: str | Path, family: Any, options: Options) -> tuple[Network, Any, Source]:
    """``(network, tokenizer, source)`` with everything that is not a matter of the family."""
    unknown = sorted(set(options) - set(Options.__annotations__))
    if unknown:
        raise UserError(
            f"a language model has no option {unknown[0]!r}{did_you_mean(unknown[0], Options.__annotations__)}"
        )
    placement = place(options.get("dtype", "float32"), options.get("device", "auto"))
    adapter = exclusive(options.get("full", False), options.get("lora"))
    source = Source(locate(path, family), options.get("trust_remote_code", False))
    model = open_model(source, family, placement.dtype, options.get("attention"))
    tokenizer = open_tokenizer(source)
    adaptation = adapt(model, adapter, LANGUAGE, spared(model))
    model.to(placement.device)
    check_finite(model, source.path)
    if options.get("gradient_checkpointing"):
        checkpoint_blocks(model)
    if options.get("compile"):
        compile_blocks(model)
    return Network(model, adaptation, placement), tokenizer, source


def _tokens(network: Network, tokenizer: Any, source: Source, options: Options, mask: int | None = None) -> Tokens:
    spoken: dict[str, Any] = {key: value for key, value in options.items() if key in SPOKEN}
    spoken |= {"generation": generation_config(source), "embedded": len(network.model.get_input_embeddings().weight)}
    return open_tokens(tokenizer, network.model.config, mask=mask, **spoken)


def spared(model: Any) -> list[str]:
    """Layers that no adapter is put on unasked: the vocabulary layer, towers that read other than text, and what
    PEFT refuses to adapt."""
    head, recurrent = model.get_output_embeddings(), model.config.model_type in STATE_SPACE
    found = []
    for name, module in model.named_modules():
        other = any(part in ("vision_tower", "embed_vision") for part in name.split("."))
        if module is head or other or (recurrent and name.endswith("out_proj")):
            found.append(name)
    return found


def _mask_token(given: int | None, tokenizer: Any, network: Network, path: str) -> int:
    words = len(network.model.get_input_embeddings().weight)
    for token in (given, tokenizer.mask_token_id, getattr(network.model.config, "mask_token_id", None)):
        if token is not None:
            if not 0 <= token < words:
                raise UserError(f"mask_token_id={token} is not one of the model's {words} tokens; give the right id")
            return int(token)
    raise UserError(
        f"neither the tokenizer nor the config of {path} names a mask token; set model.mask_token_id to its id"
    )


def _masked_layout(network: Network, source: Source, shift: bool | None, pad: int, mask: int) -> Layout:
    kind = str(network.model.config.model_type)
    if kind == "diffusion_gemma":
        return Canvases(network.model.config.canvas_length)
    if kind.startswith("llada2"):
        scheduler = read_json(str(Path(source.path) / "scheduler"), "scheduler_config.json") or {}
        return Blocks(int(scheduler.get("block_length", LLADA2_BLOCK)), mask=mask, square=True, joint=True)
    shifted = kind.lower().startswith("dream") if shift is None else shift
    return Sequences(shift=shifted, causal=False, padded=True, pad=pad)

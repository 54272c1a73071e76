"""Which parameters of a network are trained: a LoRA adapter by PEFT, or all of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import nn

from flowrl.errors import UserError

ADAPTER = "default"
MOST_SHOWN = 4
"""Names of layers, or of the blocks' parts they are in, in a description of an adapter: it is one line, or two."""
ATTENTION_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Attention projections of nearly every diffusers network; the last four are those of joint text-image attention."""
LANGUAGE_TARGETS = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj"),  # Llama, Qwen, Gemma, Mistral, OPT, Phi-3
    *("gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "fc_in", "fc_out"),
    *("c_attn", "c_proj", "c_fc"),  # GPT-2
    *("query_key_value", "attention.dense", "self_attn.dense", "self_attention.dense"),  # GPT-NeoX, Phi, Falcon, Bloom
    *("dense_h_to_4h", "dense_4h_to_h"),
    *("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"),  # BERT, RoBERTa
    *("query_proj", "key_proj", "value_proj", "q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"),  # DeBERTa, ...
    *("Wqkv", "Wo", "Wi"),  # ModernBERT, MPT
    *("att_proj", "attn_out", "ff_proj", "ff_out"),  # LLaDA
    *("in_proj", "x_proj"),  # state-space models, whose out_proj PEFT does not adapt
)
"""Attention and feed-forward projections of the usual language models (arXiv:2305.14314 adapts all of them)."""


@dataclass(frozen=True)
class LoRAOptions:
    """A low-rank adapter (arXiv:2106.09685); the defaults are Flow-GRPO's for SD3.5."""

    rank: int = 32
    alpha: float = 64
    targets: tuple[str, ...] | None = None
    """Module names, or their last parts; ``None``: the attention projections, in language models the feed-forward ones
    too."""
    dropout: float = 0.0
    """Active only where gradients are; with dropout the first ratios of an iteration are not 1."""
    init: Literal["gaussian", "default", "pissa", "olora"] = "gaussian"
    rslora: bool = False
    """The update is multiplied by ``alpha / sqrt(rank)`` (arXiv:2312.03732) instead of ``alpha / rank``."""
    dora: bool = False
    """Also train the length of every column of the adapted weights (arXiv:2402.09353)."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Other ranks, by regular expressions that match the end of a layer's name, as in PEFT."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    """Parameters that are no layers, by the ends of their names, as in PEFT: the experts of a mixture in one tensor.
    PEFT adds them by itself where ``targets`` name the parts of experts; where none does, they are not adapted, and
    `Adaptation.describe` says so."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"model.lora.rank must be at least 1, got {self.rank}")


def lora_or_full(full: bool, lora: LoRAOptions | None) -> LoRAOptions | None:
    """The adapter to train, ``None`` for all parameters. Raises `UserError` where both were asked for."""
    if full and lora is not None:
        raise UserError("model.full and model.lora exclude each other; remove one")
    return None if full else lora or LoRAOptions()


@dataclass(frozen=True)
class Adaptation:
    """What is trained in a network."""

    parameters: dict[str, nn.Parameter]
    lora: LoRAOptions | None
    """``None`` for full fine-tuning."""
    dropouts: tuple[nn.Module, ...] = ()
    untouched: tuple[str, ...] = ()
    """Experts of a mixture in one tensor each, by the ends of their names, that no adapter is on."""

    def describe(self) -> str:
        """How many layers an adapter sits on and how they are called, or that all parameters are trained."""
        if self.lora is None:
            return f"all {sum(p.numel() for p in self.parameters.values()):,} parameters are trained"
        adapted = dict.fromkeys(name.rsplit(".lora_", 1)[0] for name in self.parameters if ".lora_" in name)
        layers = list(dict.fromkeys(name.removesuffix(".base_layer") for name in adapted))
        experts = [name for name in layers if f"{name}.base_layer" in adapted or name.endswith(".experts")]
        held = f"; {len(experts)} of them hold all experts of a layer: {', '.join(experts)}" if experts else ""
        names = ", ".join(self.untouched)
        spared = f"; experts without one: {names} (model.lora.parameters: [{names}] adapts them)" if names else ""
        return describe_layers(layers, self.lora) + held + spared

    @contextmanager
    def dropout(self, active: bool) -> Iterator[None]:
        """Switch the adapter's dropout on where gradients are taken."""
        for module in self.dropouts:
            module.train(active)
        yield


def adapt(
    network: nn.Module,
    options: LoRAOptions | None,
    defaults: Sequence[str] = ATTENTION_TARGETS,
    excluded: Sequence[str] = (),
    trained_dtype: torch.dtype = torch.float32,
) -> None:
    """Freeze ``network`` but for a fresh adapter (or nothing, for ``None``) and keep what is trained in float32. Its
    parameters are collected afterwards, where the network has been placed: `trained_parameters`.

    defaults: layers to adapt where the options name none. excluded: full names of layers that the defaults leave out.
    trained_dtype: another precision of the adapter, in which a network that is trained whole was loaded; what its class
    keeps in float32 stays so.
    """
    network.requires_grad_(options is None)
    if options is None and trained_dtype == torch.float32:
        network.float()
    elif options is not None:
        _add_adapter(network, options, defaults, excluded)
    for parameter in network.parameters() if options is not None else ():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(trained_dtype)
    network.eval()


def trained_parameters(network: nn.Module, options: LoRAOptions | None) -> Adaptation:
    """What is trained of a network that `adapt` prepared and that has been placed or sharded since: both may put other
    parameters in the place of those that were there (``.to`` on XLA, FSDP2 everywhere), and the old ones would be
    trained without effect."""
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    dropouts = [m for name, m in network.named_modules() if "lora_dropout" in name and isinstance(m, nn.Dropout)]
    return Adaptation(parameters, options, tuple(dropouts), _untouched_experts(network) if options else ())


def _untouched_experts(network: nn.Module) -> tuple[str, ...]:
    """``experts.gate_up_proj, ...``: tensors [experts, out, in], which no layer's name reaches."""
    found = [name for name, p in network.named_parameters() if p.dim() == 3 and not p.requires_grad]
    ends = [".".join(name.split(".")[-2:]) for name in found]
    return tuple(dict.fromkeys(end for end in ends if end.startswith("experts.")))


def _add_adapter(network: nn.Module, options: LoRAOptions, defaults: Sequence[str], excluded: Sequence[str]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    alone = options.parameters and options.targets == ()
    targets = [] if alone else matching_targets(network, options.targets, defaults)
    if excluded and options.targets is None:  # then each by its full name, of which none is spared
        targets = target_layers(network, options, defaults, excluded)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # pyright: ignore[reportArgumentType]  (PEFT takes floats too)
        target_modules=targets,
        lora_dropout=options.dropout,
        fan_in_fan_out=any(_transposed(network, name) for name in _layers(network) if _named(name, targets)),
        init_lora_weights=True if options.init == "default" else options.init,
        use_rslora=options.rslora,
        use_dora=options.dora,
        target_parameters=list(options.parameters) or None,
        rank_pattern=dict(options.rank_pattern),
        alpha_pattern=cast(Any, dict(options.alpha_pattern)),
    )
    # the same start on every rank and in every run, whatever was drawn before
    with _forked_generators(network):
        torch.manual_seed(0)
        try:
            # PEFT's own function: the `add_adapter` of transformers and diffusers only wrap it, and ask for releases
            # of PEFT by rules that change (transformers 5.24 for one that did not exist yet)
            inject_adapter_in_model(config, cast(Any, network), adapter_name=ADAPTER)
        except (ValueError, ImportError) as error:  # ImportError: an installed backend of PEFT that is too old
            raise UserError(_refusal(network, options, str(error))) from error


def target_layers(
    network: nn.Module, options: LoRAOptions, defaults: Sequence[str] = ATTENTION_TARGETS, excluded: Sequence[str] = ()
) -> list[str]:
    """Full names of the layers that `adapt` would put an adapter on; the network may be on the meta device.

    Raises:
        UserError: as `matching_targets`.
    """
    targets = matching_targets(network, options.targets, defaults)
    left_out = set(excluded) if options.targets is None else set()
    return [name for name in _layers(network) if name not in left_out and _named(name, targets)]


def describe_layers(layers: Sequence[str], options: LoRAOptions) -> str:
    """``LoRA of rank 32 on 191 layers: attn.to_q x 24, ...``: a suffix that hits more than was meant shows here."""
    endings = Counter(_in_block(name) for name in layers)
    if len(endings) > MOST_SHOWN:  # then by the part of the block: ``attn x 168, ff x 48``
        endings = Counter(_in_block(name).split(".")[0] for name in layers)
    shown = ", ".join(f"{ending} x {count}" for ending, count in endings.most_common(MOST_SHOWN))
    rest = sum(endings.values()) - sum(count for _, count in endings.most_common(MOST_SHOWN))
    more = f", others x {rest}" if rest else ""
    return f"LoRA of rank {options.rank} on {len(layers)} layer{'s' * (len(layers) != 1)}: {shown}{more}"


def _refusal(network: nn.Module, options: LoRAOptions, reason: str) -> str:
    """Why PEFT put no adapter on the network; the targets are blamed only where they are the cause."""
    first = reason.strip().splitlines()[0]
    if not re.search("target.modules?", first, re.IGNORECASE):
        return f"PEFT cannot adapt {type(network).__name__} (model.lora): {first}"
    if options.targets:  # one of them also names a module that PEFT cannot adapt
        return f"model.lora.targets {', '.join(options.targets)}: {first}"
    return f"PEFT cannot adapt {type(network).__name__}: {first}; name the layers to adapt in model.lora.targets"


def matching_targets(
    network: nn.Module, given: tuple[str, ...] | None, defaults: Sequence[str] = ATTENTION_TARGETS
) -> list[str]:
    """The targets that name a linear or convolutional layer of the network, whole or by their end.

    Raises:
        UserError: when one of the user's own names matches nothing, or none of the defaults does.
    """
    layers = _layers(network)
    targets = given or defaults
    used = [t for t in targets if any(_named(name, (t,)) for name in layers)]
    missing = [t for t in targets if t not in used]
    if not used or (missing and given is not None):
        ends = sorted({_ending(name) for name in layers})
        raise UserError(
            f"LoRA target {', '.join(missing)} matches no layer of {type(network).__name__}; set model.lora.targets to"
            f" some of: {', '.join(ends)}"
        )
    return used


def _layers(network: nn.Module) -> list[str]:
    """Full names of what an adapter can be put on."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    return [name for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d, Conv1D))]


def _transposed(network: nn.Module, name: str) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(network.get_submodule(name), Conv1D)


def _named(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _in_block(name: str) -> str:
    """A module's name within its block: what follows the last index into a list of blocks or layers."""
    parts = name.split(".")
    listed = [i for i, part in enumerate(parts) if i and part.isdigit() and _is_list(parts[i - 1])]
    return ".".join(parts[listed[-1] + 1 :]) or name if listed else name


def _is_list(name: str) -> bool:
    return name.endswith("s") or name in ("h", "layer", "block")


def _ending(name: str) -> str:
    """The part of a module name that repeats over blocks: what follows the last index, or the whole of it."""
    parts = name.split(".")
    indices = [i for i, part in enumerate(parts[:-1]) if part.isdigit()]
    if not indices:
        return name if not parts[-1].isdigit() else ".".join(parts[-2:])
    ending = parts[indices[-1] + 1 :]
    return ".".join(parts[-2:]) if ending[-1].isdigit() else ".".join(ending)


def _forked_generators(network: nn.Module) -> AbstractContextManager[None]:
    """What is drawn inside changes no generator outside, of the host or of the device that holds the network."""
    devices = {p.device for p in network.parameters() if p.device.type not in ("cpu", "meta", "mps")}
    kind = next((device.type for device in devices), "cuda")
    return torch.random.fork_rng([device.index or 0 for device in devices], device_type=kind)

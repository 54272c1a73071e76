"""Adapters and merged language models on disk, each verified by loading it as users would."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from flowrl.errors import UserError
from flowrl.models.adapters import peft
from flowrl.models.adapters.verify import check_adapter, check_merged, swapped_in
from flowrl.models.deviation import deviation
from flowrl.models.export_folder import Difference, into_folder
from flowrl.models.lora import Adaptation
from flowrl.models.quantization import check_mergeable, is_quantized
from flowrl.models.source import ModelSource
from flowrl.models.text.image_tokens import FOLDER as IMAGE_TOKENIZER
from flowrl.models.text.network import Network
from flowrl.models.text.parity import make_probe, single_row_logits
from flowrl.models.text.policy import TextPolicy
from flowrl.models.text.pretrained import folders_of, open_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMATS = ("peft", "merged")


def export(policy: TextPolicy, directory: Path, to: str) -> float:
    """Write the live weights to ``directory`` (new or empty), verified before it appears: see
    :func:`flowrl.models.export_folder.into_folder`. The critic is not part of it."""
    network = policy.network

    def write(work: Path) -> Difference:
        if to == "peft":
            base = peft.shared_base(network.model)
            peft.save_peft(network.model, network.adaptation, policy.source, work, task_of(policy))
            peft.load_peft(base, work)
            check_adapter(network.model, base, to)
            return _difference(policy, base)
        merged = merged_copy(policy, work)
        check_merged(network.model, merged)
        return _difference(policy, merged)

    return into_folder(directory, to, FORMATS, network.adaptation, policy.dtype, write, policy.origin)


def formats(policy: TextPolicy) -> tuple[str, ...]:
    """What this model can be exported to: a fully trained one has no adapter, one on a base in a few bits cannot be
    merged."""
    if policy.adaptation.lora is None:
        return ("merged",)
    return ("peft",) if is_quantized(policy.network.model) else FORMATS


def task_of(policy: TextPolicy) -> dict[str, Any]:
    """How PEFT's ``AutoPeftModel`` finds the base model's class: causal ones by their task; masked ones, for which
    PEFT has no task, by their class where it is transformers' own. Code that comes with a model is opened as
    ``AutoModel``, PEFT's ``FEATURE_EXTRACTION``."""
    if policy.family == "causal":
        return {"task_type": "CAUSAL_LM"}
    kind = type(policy.network.model)
    if not kind.__module__.startswith("transformers."):
        return {"task_type": "FEATURE_EXTRACTION"}
    return {"auto_mapping": {"base_model_class": kind.__name__, "parent_library": kind.__module__}}


def merged_copy(policy: TextPolicy, work: Path) -> PreTrainedModel:
    """The model with merged weights and its tokenizer written into ``work``, with everything else that a pipeline had,
    and loaded from there."""
    source, network = policy.source, policy.network
    check_mergeable(network.model)
    base = open_model(source, policy.family, policy.dtype)
    untie(base, network.adaptation)
    merged = peft.merge(base, network.model, network.adaptation)
    merged.requires_grad_(False)
    place, _ = folders_of(Path(source.path))
    if place != Path(source.path):  # a pipeline: the model is one of its folders
        shutil.copytree(source.path, work, dirs_exist_ok=True, ignore=_all_but_parts(Path(source.path), place))
        merged.save_pretrained(work / place.name)
    else:
        merged.save_pretrained(work)
        policy.codec.tokenizer.save_pretrained(work)
    if policy.image_tokens is not None and Path(policy.image_tokens.path).is_dir():
        shutil.copytree(policy.image_tokens.path, work / IMAGE_TOKENIZER, dirs_exist_ok=True)
    return open_model(ModelSource(str(work), source.trust_remote_code), policy.family, policy.dtype)


def _all_but_parts(root: Path, model: Path) -> Callable[[str, list[str]], set[str]]:
    def ignore(folder: str, names: list[str]) -> set[str]:
        return {model.name} & set(names) if Path(folder) == root else set()

    return ignore


def untie(network: PreTrainedModel, adaptation: Adaptation) -> None:
    """Where adapters change layers that share a weight, each in its own way, give every layer a weight of its own
    (DiffusionGemma's encoder and decoder are one; once trained apart they are two, and so is the file's size).

    Raises:
        UserError: where the weight is shared with the embeddings, which would change with it.
    """
    names = [name for name in adaptation.parameters if ".lora_" in name]  # experts are wrapped once for each parameter
    adapted = {name.rsplit(".lora_", 1)[0].removesuffix(".base_layer") for name in names}
    layers = [network.get_submodule(name) for name in sorted(adapted)]
    weights = [layer.weight for layer in layers if getattr(layer, "weight", None) is not None]
    embeddings = network.get_input_embeddings().weight
    if any(weight is embeddings for weight in weights):
        raise UserError(
            "an adapted layer shares its weight with the embeddings, so its adapter cannot be merged; export to peft"
        )
    if len({id(weight) for weight in weights}) == len(weights):
        return
    seen: set[int] = set()
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in seen:
                setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
            seen.add(id(parameter))
    network.config.tie_word_embeddings = False
    network.all_tied_weights_keys = {}


@torch.no_grad()
def _difference(policy: TextPolicy, reloaded: PreTrainedModel) -> Difference:
    """How far the reloaded model's own logits are, row by row on both sides: in half precision, batches differ."""
    probe = make_probe(policy)
    ours = single_row_logits(policy, probe).cpu()
    other = copy.copy(policy)
    with swapped_in(policy.network.model, reloaded):
        other.network = Network(reloaded.eval(), Adaptation({}, None), policy.network.placement)
        theirs = single_row_logits(other, probe).cpu()
    possible = ~theirs.isinf()

    @torch.no_grad()
    def rounding() -> float:
        with peft.as_merged(policy.network.model):
            return deviation(single_row_logits(policy, probe).cpu()[possible], ours[possible])

    return Difference(deviation(theirs[possible], ours[possible]), rounding)

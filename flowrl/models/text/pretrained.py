"""Language models on disk or on the hub: which family they are of, and how transformers opens them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from flowrl.errors import UserError, first_line, is_out_of_memory
from flowrl.models.family import declared_family, embedded_model, is_of
from flowrl.models.files import check_files, variant_of
from flowrl.models.hub import download, read_json
from flowrl.models.load_errors import explain, load_error
from flowrl.models.quantization import FULL_PRECISION, Quantized, compute_dequantized, transformers_options
from flowrl.models.source import ModelSource, check_model_name, without_load_reports, without_progress_bars
from flowrl.models.text import remote_code
from flowrl.models.text.attention import check_attention
from flowrl.models.text.score_head import begin_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATE_SPACE = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
"""Model types whose kernels use the weights of layers directly."""
KINDS = {
    "masked": "a masked (bidirectional) language model",
    "causal": "an autoregressive language model",
    "reward": "a reward model",
}


def find_model(path: str | Path, family: Literal["masked", "causal", "reward"]) -> str:
    """Folder or hub name of the model that ``path`` means for a family.

    Raises:
        UserError: for a model that is not there, or not of this family.
    """
    embedded = embedded_model(str(path), family)
    if embedded is not None:
        return str(embedded)
    source = str(path)
    check_model_name(source)
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in ("config.json", "model_index.json")):
        raise UserError(f"{source} has no config.json, so it is not a language model; pass the model's own folder")
    found, certain = declared_family(source)
    if certain and not is_of(found, family):
        kind = KINDS.get(found, "a diffusion pipeline")
        raise UserError(
            f"{source} is {kind} ({_class_of(source)}), but family {family} needs {KINDS[family]}; use family {found}"
        )
    if not folder.is_dir() and read_json(source, "model_index.json") is not None:
        source = str(download(source))
    return source


def _class_of(source: str) -> str:
    index, config = read_json(source, "model_index.json"), read_json(source, "config.json") or {}
    if index is not None:
        return str(index.get("_class_name"))
    names = config.get("architectures") or [config.get("_class_name") or f"model_type {config.get('model_type')}"]
    return str(names[0])


def folders_of(path: Path) -> tuple[Path, Path]:
    """``(model, tokenizer)`` folders: the path itself, or two of a pipeline's."""
    if not (path / "model_index.json").is_file():
        return path, path
    return path / "model", path / ("processor" if (path / "processor").is_dir() else "tokenizer")


def _places(source: ModelSource) -> tuple[str, str]:
    if not Path(source.path).is_dir():
        return source.path, source.path
    model, tokenizer = folders_of(Path(source.path))
    return str(model), str(tokenizer)


def open_model(
    source: ModelSource,
    family: str,
    dtype: torch.dtype,
    attention: str | None = None,
    quantized: Quantized = FULL_PRECISION,
) -> PreTrainedModel:
    """The network, in evaluation mode and without gradients. Raises `UserError` where it cannot be loaded whole."""
    place, _ = _places(source)
    loader = _loader(place, family, source.trust_remote_code)
    chosen: dict[str, Any] = {} if attention is None else {"attn_implementation": check_attention(attention)}
    if quantized.network is not None:
        _check_quantizable(place)
        chosen |= transformers_options(quantized.network, dtype, quantized.device)
    if Path(place).is_dir():
        check_files(Path(place))
        variant = variant_of(Path(place))
        chosen |= {} if variant is None else {"variant": variant}
    if family == "reward":
        _check_labels(place)
        chosen["num_labels"] = 1
    quiet = without_load_reports if family == "reward" else without_progress_bars
    try:
        with quiet(), remote_code.patched_transformers() if source.trust_remote_code else nullcontext():
            model, report = loader.from_pretrained(
                place,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=source.trust_remote_code,
                output_loading_info=True,
                **chosen,
            )
            remote_code.patch_model(model)
    except Exception as error:  # whatever the library or the model's own code raises
        if attention is not None and "ttention" in str(error) and not is_out_of_memory(error):
            raise UserError(f"attention {attention!r} is not available for {place}: {first_line(error)}") from error
        raise load_error(place, error) from error
    missing = sorted(report["missing_keys"])
    if family == "reward":
        begin_head(model, missing, place)
    elif missing:
        raise UserError(
            f"model {place!r} lacks {len(missing)} weights of {type(model).__name__} ({missing[0]}, ...), which would"
            " be random; use a checkpoint with a language-model head"
        )
    compute_dequantized(model)
    return model.requires_grad_(False).eval()


def _check_labels(place: str) -> None:
    """Raise `UserError` for a classifier with another number of outputs than one."""
    config = read_json(place, "config.json") or {}
    labels = len(config.get("id2label") or (0, 1))  # transformers writes them down unless there are two
    if labels != 1 and any(str(a).endswith("ForSequenceClassification") for a in config.get("architectures") or ()):
        raise UserError(
            f"model {place!r} is a classifier with {labels} outputs, and a reward model has one; take another"
        )


def _check_quantizable(place: str) -> None:
    kind = str((read_json(place, "config.json") or {}).get("model_type", ""))
    if kind in STATE_SPACE:
        raise UserError(f"model.quantize: the kernels of {kind} read its layers' weights themselves; leave it out")


def generation_config(source: ModelSource) -> dict[str, Any] | None:
    """What the model's folder says of its generation; ``None`` without such a file."""
    return read_json(_places(source)[0], "generation_config.json")


def open_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises `UserError` if there is none."""
    from transformers import AutoTokenizer

    model, place = _places(source)
    if place != model and not Path(place).is_dir():
        raise UserError(f"the pipeline {source.path} was saved without a tokenizer; save one in its folder 'tokenizer'")
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=source.trust_remote_code)
    except Exception as error:  # as of the network
        if is_out_of_memory(error) or explain(error, place) is not None:
            raise load_error(place, error, "tokenizer") from error
        raise UserError(
            f"no tokenizer can be loaded from {place}: {first_line(error)}; save one beside the model"
        ) from error


def _loader(place: str, family: str, trust: bool) -> Any:
    """The transformers class that opens the model."""
    import transformers
    from transformers.models.auto import configuration_auto, modeling_auto

    config = read_json(place, "config.json") or {}
    kind, offered = str(config.get("model_type", "")), dict(config.get("auto_map") or {})
    native = kind in configuration_auto.CONFIG_MAPPING_NAMES
    if offered and not native and not trust:
        raise UserError(
            f"model {place!r} ({kind}) comes with code of its own; read it, then set model.trust_remote_code: true"
        )
    if kind == "diffusion_gemma" and family == "masked":
        return transformers.DiffusionGemmaForBlockDiffusion
    wanted = {
        "masked": ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModel"),
        "causal": ("AutoModelForCausalLM",),
        "reward": ("AutoModelForSequenceClassification",),
    }
    for name in wanted[family]:
        if trust and name in offered:
            return getattr(transformers, name)
    names = {
        "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "reward": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    }[family]
    if kind not in names:
        raise UserError(
            f"transformers has no {KINDS[family]} of the type {kind!r} ({place}); use another model or family"
        )
    return getattr(transformers, wanted[family][0])

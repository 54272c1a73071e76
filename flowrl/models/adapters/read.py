"""From the word that names an adapter to its files: PEFT's folders, safetensors files, repositories of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from flowrl.errors import UserError
from flowrl.models.adapters import diffusion
from flowrl.models.adapters.adapter import DOWN, Adapter, joined, validated
from flowrl.models.adapters.peft import PEFT_FILE, PEFT_PREFIX
from flowrl.models.adapters.peft_config import check_fields, layer_alphas, target_parameter_options
from flowrl.models.files import PICKLED, open_safetensors, read_object
from flowrl.models.hub import download, downloaded, is_hub_id

CONFIG, DIFFUSERS_FILE = "adapter_config.json", "pytorch_lora_weights.safetensors"
STAGES = ("transformer", "transformer_2")
"""Folders of an adapter of two denoisers."""
FOREIGN = {
    "model.diffusion_model.": "a whole checkpoint of a diffusion model",
    "hada_w1_a": "a LoHa of LyCORIS",
    "lokr_w1": "a LoKr of LyCORIS",
    "oft_": "an OFT adapter",
    "lora_mid": "a LoCon with a Tucker core (lora_mid)",
    "dora_scale": "a DoRA of LyCORIS (dora_scale)",
    "on_input": "an IA3 of LyCORIS",
    "ia3_l": "an IA3 adapter",
    "vera_lambda": "a VeRA adapter",
    "lora_embedding_": "a LoRA of embeddings (lora_embedding_A)",
    "token_adapter": "an adapter of single tokens",
    "prompt_embeddings": "a prompt-tuning adapter",
    "emb_params": "a textual inversion",
    "string_to_param": "a textual inversion",
    "clip_l": "a textual inversion",
    ".diff_b": "a file of weight differences (diff_b)",
    ".diff": "a file of weight differences (diff)",
    ".a1.weight": "a GLoRA of LyCORIS",
    "lora_controlnet": "a Control-LoRA",
}
"""What a part of a tensor's name says of a file that is no plain LoRA; the first that occurs."""
ELSEWHERE = ("clip_l",)
"""Of these, those that are a tensor's whole name: other files have the words in longer names."""


def read(name: str | Path, model: str | None, network: str | None = None, family: str | None = None) -> Adapter:
    """The adapter that ``name`` means: a folder (for a model with two denoisers, one with a folder for each of them), a
    ``.safetensors`` file, or a hub id (``owner/name``, with a file ``owner/name/file.safetensors``).

    model: the base model (folder or hub id), whose pipeline class knows the names of other tools; ``None``: as the
    adapter says. network: ``transformer`` or ``unet`` for pipelines; ``None``: the model tells. family: of the model;
    ``None``: adapters that are not PEFT's are those of image models.

    Raises:
        UserError: for what is not there, is a pickle, is damaged, is of another format (named), or has fields that
            change more than flowrl can keep (named).
    """
    where = str(name)
    if _has_stages(Path(where).expanduser()):
        return joined(where, {part: read(f"{where}/{part}", model, network, family) for part in STAGES})
    config, file = find_adapter(where)
    with open_safetensors(file, "") as opened:
        tensors, header = {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    if config is not None:
        return _of_peft(where, config, tensors)
    _refuse_foreign(tensors, where)
    if file.name == PEFT_FILE or family not in (None, "diffusion"):
        raise UserError(
            f"{where} has no {CONFIG} beside its tensors, which would tell the adapter's strength; give PEFT's folder"
        )
    return diffusion.read(where, tensors, header, model, network)


def _has_stages(folder: Path) -> bool:
    """Whether a folder has an adapter for each of two denoisers, as exports of such models have."""
    return all(any((folder / part / file).is_file() for file in (CONFIG, DIFFUSERS_FILE)) for part in STAGES)


def is_adapter_name(text: str) -> bool:
    """Whether a word on the command line names an adapter: a folder or file that is here, or a repository of the hub
    that has been downloaded."""
    path = Path(text).expanduser()
    if path.is_file():
        return path.suffix == ".safetensors"
    if path.is_dir():
        return any((path / file).is_file() for file in (CONFIG, DIFFUSERS_FILE)) or _has_stages(path) or _lone(path)
    kept = _in_cache(text)
    return kept is not None and is_adapter_name(str(kept))


def _lone(folder: Path) -> bool:
    """Whether a folder is that of one adapter file and nothing that a model would have."""
    files = list(folder.glob("*.safetensors"))
    if len(files) != 1 or any((folder / name).exists() for name in ("config.json", "model_index.json", "state")):
        return False
    try:
        with open_safetensors(files[0]) as file:
            return diffusion.is_low_rank(file.keys())
    except UserError:  # damaged, which its reader will say
        return False


def find_adapter(name: str) -> tuple[Path | None, Path]:
    """``(adapter_config.json or None, tensors)``. Raises `UserError` where there is no such file."""
    path = Path(name).expanduser()
    if not path.exists():
        path = _fetched(name)
    if path.is_file():
        _refuse_pickle(path)
        config = path.parent / CONFIG
        return (config if path.name == PEFT_FILE and config.is_file() else None), path
    if (path / CONFIG).is_file():
        if not (path / PEFT_FILE).is_file():
            for other in sorted(path.glob("adapter_model.*")):
                _refuse_pickle(other)
            raise UserError(f"{name} holds no LoRA adapter: it has {CONFIG} but no {PEFT_FILE}")
        return path / CONFIG, path / PEFT_FILE
    if (path / DIFFUSERS_FILE).is_file():
        return None, path / DIFFUSERS_FILE
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return None, files[0]
    if files:
        raise UserError(f"{name} has several files ({', '.join(f.name for f in files[:5])}); name one of them")
    for other in sorted(path.iterdir()):
        _refuse_pickle(other)
    raise UserError(f"{name} holds no LoRA adapter ({DIFFUSERS_FILE}, or {CONFIG} with {PEFT_FILE})")


def _refuse_pickle(file: Path) -> None:
    if file.suffix in PICKLED:
        raise UserError(
            f"{file} is a pickle, which can run code when it is opened; open it with the tool that made it, in a place "
            "you can lose, and save it as safetensors (PEFT: save_pretrained, diffusers: save_lora_weights)"
        )


def _hub_parts(name: str) -> tuple[str, str | None] | None:
    """``(owner/name, file or None)`` of what could be on the hub."""
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if not is_hub_id(f"{owner}/{repository}"):
        return None
    return f"{owner}/{repository}", file or None


def _fetched(name: str) -> Path:
    """What a hub id names, downloaded if it is not here. Raises `UserError`."""
    parts = _hub_parts(name)
    if parts is None:
        raise UserError(f"there is no adapter {name} (looked in {Path.cwd()}); give a folder, a file or a hub id")
    repository, file = parts
    try:
        folder = download(repository, [file] if file else [CONFIG, "*.safetensors", "README.md"], "adapter")
    except UserError:
        kept = _in_cache(name)
        if kept is None:
            raise
        return kept
    place = folder / file if file else folder
    if not place.exists():
        raise UserError(f"adapter {name!r}: the repository {repository} has no file {file}")
    return place


def _in_cache(name: str) -> Path | None:
    """The folder or file of a hub repository that was downloaded earlier."""
    parts = _hub_parts(name)
    folder = None if parts is None else downloaded(parts[0])
    if parts is None or folder is None:
        return None
    place = folder / parts[1] if parts[1] else folder
    return place if place.exists() else None


def _of_peft(where: str, file: Path, tensors: Mapping[str, Tensor]) -> Adapter:
    config = read_object(file, "")
    check_fields(config, where)
    _refuse_foreign(tensors, where)
    bare = {key.removeprefix(PEFT_PREFIX).replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector"): value
            for key, value in tensors.items()}  # fmt: skip
    ranks = {key.removesuffix(DOWN): len(value) for key, value in bare.items() if key.endswith(DOWN)}
    base = config.get("base_model_name_or_path")
    own, layers = (
        target_parameter_options(config, ranks, where) if config.get("target_parameters") else (None, list(ranks))
    )
    return validated(
        Adapter(
            where,
            base if isinstance(base, str) else None,
            bare,
            layer_alphas(config, {layer: ranks[layer] for layer in layers}, where),
            rslora=bool(config.get("use_rslora")),
            dora=bool(config.get("use_dora")),
            lora_options=own,
        )
    )


def _refuse_foreign(tensors: Mapping[str, Tensor], where: str) -> None:
    for part, kind in FOREIGN.items():
        if any((key == part) if part in ELSEWHERE else (part in key) for key in tensors):
            raise UserError(
                f"{where} is {kind}, which flowrl does not read; fuse it into its model with the tool that made it, "
                "and give that as model.path"
            )

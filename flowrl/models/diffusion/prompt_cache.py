"""What text encoders made of prompts, on disk: one file per prompt, named by everything that it depends on."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.errors import first_line, is_out_of_memory
from flowrl.files import raise_if_full, use_default_permissions
from flowrl.models.diffusion.inputs import LeafPath
from flowrl.models.diffusion.recorder import Recorder
from flowrl.paths import cache_folder

Branches = list[dict[LeafPath, Any]]
"""Of one prompt: for each branch, tensors [1, ...] by their place in the denoiser's inputs, or lists of one tensor."""


class PromptCache:
    """Encoded prompts in ``folder``, by default ``prompts`` in flowrl's cache (``FLOWRL_CACHE``, else
    ``~/.cache/flowrl``).

    A file's name is the sha256 of the prompt and of all that its encoding depends on: every weight of the pipeline's
    networks but the denoiser and the autoencoder, its tokenizers' files, its settings, ``model.call``, precision, kind
    of device, and the versions of the libraries. So nothing in it can be stale. A file that cannot be read is said and
    made again. Prompts must be encoded alone: in a batch their last digits depend on its other prompts.
    """

    def __init__(self, recorder: Recorder, folder: Path | None = None) -> None:
        self._folder = folder or cache_folder("prompts")
        self._identity = identity(recorder)
        self._device = recorder.pipeline._execution_device

    def path(self, text: str) -> Path:
        """Where a prompt's encoding is, or will be."""
        key = hashlib.sha256(f"{self._identity}\n{text}".encode()).hexdigest()
        return self._folder / key[:2] / f"{key}.safetensors"

    def load(self, text: str) -> Branches | None:
        """A prompt's encoding; ``None`` where there is none that can be read."""
        from safetensors import safe_open

        path = self.path(text)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                branches: Branches = [{} for _ in range(int(file.metadata()["branches"]))]
                for name in file.keys():  # noqa: SIM118  (it is no dict)
                    branch, listed, place = json.loads(name)
                    value = file.get_tensor(name).to(self._device)
                    branches[branch][tuple(place)] = [value] if listed else value
            return branches
        except Exception as error:  # whatever a damaged file makes the library raise
            if is_out_of_memory(error):
                raise
            warnings.warn(
                f"the cached prompt {path} cannot be read and is made again: {first_line(error)}", stacklevel=2
            )
            return None

    def save(self, text: str, branches: Branches) -> None:
        """Keep a prompt's encoding; one that is not made of tensors alone is left out. Raises `UserError` for a full
        disk."""
        from safetensors.torch import save_file

        named: dict[str, Tensor] = {}
        for index, branch in enumerate(branches):
            for place, value in branch.items():
                listed = isinstance(value, list)
                tensor = value[0] if listed and len(value) == 1 else value
                if not isinstance(tensor, Tensor):
                    return
                named[json.dumps([index, listed, place])] = tensor.detach().cpu().contiguous()
        path = self.path(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=".safetensors")
        os.close(handle)  # of one process: others may write the same prompt
        try:
            save_file(named, partial, {"branches": str(len(branches))})
            use_default_permissions(Path(partial))
            os.replace(partial, path)
        except OSError as error:
            Path(partial).unlink(missing_ok=True)
            raise_if_full(error, path)
            raise


def identity(recorder: Recorder) -> str:
    """sha256 of all that an encoded prompt depends on, besides the prompt."""
    import diffusers
    import transformers

    pipeline: Any = recorder.pipeline
    apart = (*pipeline.components, "_name_or_path")
    settings = {key: value for key, value in pipeline.config.items() if key not in apart}
    digest = hashlib.sha256()
    for version in (torch.__version__, diffusers.__version__, transformers.__version__):
        digest.update(f"{version}\n".encode())
    device = pipeline._execution_device.type
    digest.update(f"{type(pipeline).__qualname__} {device}\n".encode())
    _add(digest, [settings, recorder.call])
    for name, part in sorted(pipeline.components.items()):
        if isinstance(part, nn.Module):
            if part is not recorder.network and not callable(getattr(part, "decode", None)):
                digest.update(f"{name} {type(part).__qualname__} {getattr(part, 'config', '')}\n".encode())
                _add(digest, {**part.state_dict(), **dict(part.named_buffers())})  # a quantised layer's scales too
        elif part is not None and name != "scheduler" and hasattr(part, "save_pretrained"):
            digest.update(f"{name} {type(part).__qualname__}\n".encode())
            with tempfile.TemporaryDirectory() as folder:
                part.save_pretrained(folder)
                for file in sorted(Path(folder).rglob("*")):
                    digest.update(file.name.encode() + (file.read_bytes() if file.is_file() else b""))
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    """A value in a digest, tensors by their bytes."""
    if isinstance(value, Tensor):
        digest.update(f"{tuple(value.shape)} {value.dtype} ".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        for key, inner in sorted(value.items()):
            digest.update(f"{key}: ".encode())
            _add(digest, inner)
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)} values ".encode())
        for inner in value:
            _add(digest, inner)
    else:
        digest.update(f"{value!r}\n".encode())

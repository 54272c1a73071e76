"""Failures to load are told apart: memory, the hub's refusals, the network, this machine; each keeps its cause."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from huggingface_hub import errors
from safetensors import SafetensorError
from safetensors.torch import save_file

from flowrl.errors import UserError
from flowrl.models import family_of, hub
from flowrl.models.causal import choose_decoding as decoding
from flowrl.models.causal.load import load_causal
from flowrl.models.diffusion.load import open_pipeline
from flowrl.models.export_folder import into_folder
from flowrl.models.family import embedded_models
from flowrl.models.files import open_safetensors, read_object
from flowrl.models.load_errors import explain, load_error
from flowrl.models.lora import Adaptation
from flowrl.models.source import ModelSource
from flowrl.models.text import parity, pretrained
from tests.components_text import folder

NAME = "owner/model"


def answered(kind: type[Exception], status: int) -> Exception:
    """As huggingface_hub raises it for an answer of the hub."""
    request = httpx.Request("GET", f"https://huggingface.co/api/models/{NAME}")
    return kind(f"{status} Client Error", response=httpx.Response(status, request=request))  # pyright: ignore


def caused(error: Exception, cause: Exception) -> Exception:
    """``error`` raised from ``cause``, as libraries wrap what their HTTP client raises."""
    error.__cause__ = cause
    return error


def ended(message: str, kind: type[Exception] = OSError) -> Exception:
    return kind(message)


CASES: dict[str, tuple[Exception, str]] = {
    "gated": (answered(errors.GatedRepoError, 403), r"is gated; accept its terms .*/owner/model .*HF_TOKEN"),
    "none such": (answered(errors.RepositoryNotFoundError, 404), "none of that name on the hub, or it is private"),
    "no file": (answered(errors.RemoteEntryNotFoundError, 404), "lacks a file on the hub"),
    "no revision": (answered(errors.RevisionNotFoundError, 404), "no such revision"),
    "token": (answered(errors.HfHubHTTPError, 401), r"needs a valid token of the hub \(401\)"),
    "forbidden": (answered(errors.HfHubHTTPError, 403), r"may not be read with this token of the hub \(403\)"),
    "too often": (answered(errors.HfHubHTTPError, 429), r"asked for too often, says the hub \(429\)"),
    "their fault": (answered(errors.HfHubHTTPError, 503), r"fault of its own \(503\); try again later"),
    "offline": (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set; unset it"),
    "TLS": (
        caused(httpx.ConnectError("failed"), ssl.SSLCertVerificationError("self-signed certificate")),
        r"TLS certificate of huggingface.co is not accepted .*SSL_CERT_FILE",
    ),
    "DNS": (
        caused(ended("cannot load"), caused(httpx.ConnectError("x"), socket.gaierror(-2, "Name or service not known"))),
        r"the name huggingface.co cannot be resolved \(DNS\); check the network",
    ),
    "slow": (caused(ended("cannot load"), httpx.ReadTimeout("timed out")), "did not answer in time"),
    "refused": (httpx.ConnectError("[Errno 111] Connection refused"), r"cannot be connected to \(\[Errno 111\]"),
    "full": (OSError(errno.ENOSPC, "No space left on device"), "needs more disk than is left .*HF_HOME"),
    "full, says safetensors": (SafetensorError("I/O error: No space left on device (os error 28)"), "needs more disk"),
    "forbidden here": (PermissionError(errno.EACCES, "Permission denied", "/m"), "may not be read or written here"),
    "package": (ModuleNotFoundError("No module named 'tiktoken'", name="tiktoken"), "; pip install tiktoken"),
    "not in the cache": (errors.LocalEntryNotFoundError("not found"), "the hub cannot be reached"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_cause_has_its_sentence(case: str) -> None:
    error, words = CASES[case]
    wrapped = caused(OSError(f"We couldn't connect, or {NAME} is no folder with a file named config.json"), error)
    for each in (error, wrapped):
        found = load_error(NAME, each)
        with pytest.raises(UserError, match=words):
            raise found
        assert str(found).startswith(f"model '{NAME}' ")


def test_what_is_unknown_is_quoted_and_memory_is_nobodys_fault(tmp_path: Path) -> None:
    assert explain(ValueError("Unrecognized model"), NAME) is None
    assert str(load_error(NAME, ValueError("Unrecognized"))).endswith("cannot be downloaded: Unrecognized")
    assert str(load_error(str(tmp_path), ValueError("odd"))).endswith("cannot be loaded from its folder: odd")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        load_error(NAME, torch.cuda.OutOfMemoryError("CUDA out of memory"))
    said = UserError("a sentence")
    assert load_error(NAME, said) is said


def test_a_gated_repository_is_no_diffusion_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files cannot be had, though the hub tells of it; so nothing is known of its family."""
    hub.is_offline.cache_clear()
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)

    def refuse(*_: Any, **__: Any) -> str:
        raise answered(errors.GatedRepoError, 403)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    for ask in (family_of, load_causal):
        with pytest.raises(UserError, match="model 'owner/gated' is gated") as caught:
            ask("owner/gated")
        assert isinstance(caught.value.__cause__, errors.GatedRepoError)


def test_a_repository_without_configs_is_of_no_family(monkeypatch: pytest.MonkeyPatch) -> None:
    hub.is_offline.cache_clear()
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)

    def lacks(*_: Any, **__: Any) -> str:
        raise answered(errors.RemoteEntryNotFoundError, 404)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", lacks)
    with pytest.raises(UserError, match=r"neither model_index.json nor config.json on the hub"):
        family_of("owner/empty")


def test_a_pipeline_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DiffusionPipeline

    def fail(*_: Any, **__: Any) -> str:
        raise CASES["DNS"][0]

    monkeypatch.setattr(DiffusionPipeline, "download", fail)
    with pytest.raises(UserError, match=r"model 'owner/model' is not on this machine, and the name .*\(DNS\)"):
        open_pipeline(ModelSource(NAME), torch.float32)


@pytest.mark.parametrize("case", ["package", "full"])
def test_a_tokenizer_that_cannot_be_loaded(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for want of a tokenizer."""
    from transformers import AutoTokenizer

    def fail(*_: Any, **__: Any) -> None:
        raise CASES[case][0]

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(UserError, match=f"^tokenizer .*{CASES[case][1]}"):
        pretrained.open_tokenizer(ModelSource(str(folder("llama"))))


FAULTS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: device-side assert triggered"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=["cuda memory", "memory", "device"])
def test_faults_are_not_taken_for_a_model_that_does_not_agree(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They passed for one way of reading or decoding that does not work, and a slower one was chosen silently."""
    policy = load_causal(folder("llama"))
    head, reference = policy.network.head, parity.single_row_logits(policy, parity.make_probe(policy))

    def fail(*_: Any, **__: Any) -> None:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(type(policy), "logits", fail)
        patch.setattr(parity, "single_row_logits", lambda *_: reference)
        for ask in (parity.choose_reading, parity.check, parity.accepts_layout):
            patch.setattr(
                parity, "single_row_logits", (lambda *_: reference) if ask is not parity.accepts_layout else fail
            )
            with pytest.raises(type(fault), match=str(fault)[:12].replace("[", r"\[")):
                ask(policy)
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "_decoding_deviation", fail)
        with pytest.raises(type(fault)):
            decoding.choose_decoding(policy)
    with monkeypatch.context() as patch:
        patch.setattr(policy.network, "run", fail)
        with pytest.raises(type(fault)):
            parity.lookahead(policy)
    assert head.route == "states"


def test_why_a_model_cannot_be_read_or_decoded_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_causal(folder("llama"))
    reference = parity.single_row_logits(policy, parity.make_probe(policy))

    def fail(*_: Any, **__: Any) -> None:
        raise TypeError("forward() got an unexpected keyword argument 'attention_mask'")

    monkeypatch.setattr(parity, "single_row_logits", lambda *_: reference)
    monkeypatch.setattr(decoding, "_decoding_deviation", fail)
    with pytest.raises(UserError, match=r"cannot be decoded token by token .*unexpected keyword") as caught:
        decoding.choose_decoding(policy)
    assert isinstance(caught.value.__cause__, TypeError)
    monkeypatch.setattr(type(policy), "logits", fail)
    with pytest.raises(UserError, match=r"cannot be trained: .*unexpected keyword") as caught:
        parity.choose_reading(policy)
    assert isinstance(caught.value.__cause__, TypeError)


def test_files_that_may_not_be_read_are_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, config = tmp_path / "a.safetensors", tmp_path / "config.json"
    save_file({"x": torch.ones(1)}, weights)
    config.write_text("{}")

    def forbid(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "file")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", forbid)
        with pytest.raises(UserError, match=r"config.json cannot be read: Permission denied; change its permissions"):
            read_object(config)
    with monkeypatch.context() as patch:
        patch.setattr("flowrl.models.files.safe_open", forbid)
        with (
            pytest.raises(UserError, match=r"a.safetensors cannot be read: Permission denied"),
            open_safetensors(weights),
        ):
            pass
    weights.write_bytes(b"")
    with pytest.raises(UserError, match="is damaged or cut short") as caught, open_safetensors(weights):
        pass
    assert isinstance(caught.value.__cause__, SafetensorError)


FULL = [OSError(errno.ENOSPC, "No space left on device"), CASES["full, says safetensors"][0]]


@pytest.mark.parametrize("full", FULL, ids=["system", "safetensors"])
def test_a_full_disk_leaves_no_half_of_an_export(full: Exception, tmp_path: Path) -> None:
    def write(work: Path) -> float:
        (work / "half").write_text("x")
        raise full

    with pytest.raises(UserError, match=r"no space left on the disk of .*out; free some") as caught:
        into_folder(tmp_path / "out", "merged", ("merged",), Adaptation({}, None), torch.float32, write)
    assert caught.value.__cause__ is full and not list(tmp_path.iterdir())


def test_a_world_that_lacks_a_package_is_not_an_unknown_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(name: str) -> None:
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    assert embedded_models("no_such_world") is None
    monkeypatch.setattr("importlib.import_module", lacks)
    with pytest.raises(ModuleNotFoundError, match="numpy"):
        embedded_models("sudoku")

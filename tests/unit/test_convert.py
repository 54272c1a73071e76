"""Pickled checkpoints become safetensors, and nothing else in them comes to life."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flowrl.errors import UserError
from flowrl.scorers.convert import convert, main


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def one_sentence(error: UserError) -> None:
    assert "\n" not in str(error) and len(str(error)) < 400


class Hostile:
    """Unpickling this runs a command."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_convert_keeps_numbers_and_refuses_everything_but_tensors(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    state = {"module.a": shared, "module.b": shared[0], "module.c": shared.half().t()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "x.pt")
    convert(tmp_path / "x.pt", tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert set(found) == {"a", "b", "c"} and all(torch.equal(found[key], state[f"module.{key}"]) for key in found)
    assert found["c"].dtype == torch.float16
    torch.save({"state_dict": {"a": Hostile(tmp_path / "ran")}}, tmp_path / "hostile.pt")
    torch.save({"a": 1}, tmp_path / "number.pt")
    torch.save([shared], tmp_path / "list.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    for name, match in {
        "hostile": "not a checkpoint of tensors alone",
        "number": "not a state dict",
        "list": "not a state dict",
        "junk": "not a checkpoint",
        "absent": "does not exist",
    }.items():
        with pytest.raises(UserError, match=match) as raised:
            convert(tmp_path / f"{name}.pt", tmp_path / "y.safetensors")
        one_sentence(raised.value)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "y.safetensors").exists()


def test_the_convert_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.ones(2, 3)}, tmp_path / "x.pt")
    source, target = str(tmp_path / "x.pt"), str(tmp_path / "x.safetensors")
    assert main([source, target]) == 0 and "1 tensors, 6 numbers" in capsys.readouterr().out
    assert main([source, target]) == 2 and "already exists" in capsys.readouterr().err
    assert main([source, str(tmp_path / "x.bin")]) == 2 and "*.safetensors" in capsys.readouterr().err
    assert main([source]) == 2 and re.search("usage: python -m flowrl.scorers.convert", capsys.readouterr().err)


def test_memory_that_runs_out_and_files_that_cannot_be_read_are_no_bad_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(2)}, source)

    def failing(error: Exception) -> None:
        monkeypatch.setattr("torch.serialization.load", lambda *_, **__: (_ for _ in ()).throw(error))

    failing(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    with pytest.raises(RuntimeError, match="allocate memory"):
        convert(source, tmp_path / "new.safetensors")
    failing(PermissionError(13, "Permission denied"))
    with pytest.raises(UserError, match=r"weights.pt cannot be read: .*Permission denied"):
        convert(source, tmp_path / "new.safetensors")

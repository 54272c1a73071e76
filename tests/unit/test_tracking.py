"""Trackers by their real packages, offline: what a person finds there of a run, also after a failure and a resume."""

import importlib.util
import json
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.records.directory import RunDirectory
from flowrl.runtime import trackers as tracking
from flowrl.runtime.trackers import Trackers, check_trackers
from flowrl.types import Prompt, Samples, Scores

PROMPTS = ["a red circle", "a blue cross | and `code`"]


def settings(*trackers: str) -> Config:
    values = {
        "name": "told",
        "model": {"path": "sudoku", "full": True},
        "algorithm": {"use": "rloo", "length": 17},
        "rewards": ["sudoku"],
        "train": {"iterations": 4},
        "log": {"trackers": list(trackers), "project": "ours"},
    }
    return Config.model_validate(values)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "told")
    made.path.mkdir()
    return made


def save(run: RunDirectory, step: int, kind: str, **media) -> None:
    prompts = [Prompt(text, i) for i, text in enumerate(PROMPTS)]
    rewards = torch.tensor([[0.25], [math.nan]])
    rows = torch.arange(2)
    scores = Scores(rewards, torch.ones(1), ("bright",), rows, rows, torch.ones(2, dtype=torch.bool))
    folder = run.samples_path if kind == "samples" else run.heldout_path
    run.save_samples(step, Samples(prompts, **media), scores, torch.zeros(2), seeds=rows, folder=folder)


def pictures() -> torch.Tensor:
    return torch.stack([torch.full((3, 8, 8), 0.2), torch.full((3, 8, 8), 0.8)])


# ---- TensorBoard


def events(run: RunDirectory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    found.Reload()
    return found


def texts(found, tag: str) -> list[str]:
    return [event.tensor_proto.string_val[0].decode() for event in found.Tensors(f"{tag}/text_summary")]


def test_tensorboard_shows_curves_pictures_completions_and_the_config(run: RunDirectory) -> None:
    pytest.importorskip("tensorboard")
    save(run, 1, "samples", images=pictures())
    save(run, 1, "heldout", completions=["1\n2 <b>", "``` 3"])
    with Trackers(settings("tensorboard"), run) as trackers:
        told: list[str] = []
        trackers.tell(told.append)
        trackers.tell(told.append)
        trackers.log({"reward/mean": 0.5, "bad": math.nan}, 0)
        trackers.log({"reward/mean": 0.75, "bad": math.inf}, 1)
    assert told == [f"tensorboard: tensorboard --logdir {run.path / 'tensorboard'}"]
    found = events(run)
    assert found.Tags()["scalars"] == ["reward/mean"]
    assert [(e.step, e.value) for e in found.Scalars("reward/mean")] == [(0, 0.5), (1, 0.75)]
    (image,) = found.Images("samples/pictures")
    assert image.step == 1 and image.width >= 16 and image.encoded_image_string[:4] == b"\x89PNG"
    assert PROMPTS[0] in texts(found, "samples/texts")[0] and "bright 0.25" in texts(found, "samples/texts")[0]
    (completions,) = texts(found, "heldout/texts")
    assert "    1\n    2 <b>" in completions and "    ``` 3" in completions and "bright -" in completions
    assert "rloo" in texts(found, "config")[0]


def test_tensorboard_forgets_what_a_resumed_run_does_again(run: RunDirectory) -> None:
    pytest.importorskip("tensorboard")
    with Trackers(settings("tensorboard"), run) as trackers:
        for step in range(4):
            trackers.log({"loss": float(step)}, step)
    with Trackers(settings("tensorboard"), run, resumed=1) as trackers:
        for step in (2, 3, 4):
            trackers.log({"loss": 10.0 + step}, step)
    curve = [(event.step, event.value) for event in events(run).Scalars("loss")]
    assert curve == [(0, 0.0), (1, 1.0), (2, 12.0), (3, 13.0), (4, 14.0)]


# ---- Weights & Biases


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    yield
    wandb.teardown()


def records(path: Path) -> Iterator[bytes]:
    """The entries of an offline file: a header of 7 bytes, then LevelDB's log format (blocks of 32 KiB, entries of
    checksum, length and part, which says whether they are whole)."""
    data, place, entry = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no room for another head
            place += 32768 - place % 32768
            continue
        _, length, part = struct.unpack("<IHB", data[place : place + 7])
        entry += data[place + 7 : place + 7 + length]
        place += 7 + length
        if part in (1, 4):  # whole, or the last part
            yield entry
            entry = b""


def sent(run: RunDirectory) -> list[tuple[str, list[dict]]]:
    """``(run id, lines of its history)`` of every offline session, oldest first, as wandb would upload them."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its process writes the last block when it ends
    found = []
    for path in sorted((run.path / "wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime):
        lines, identity = [], ""
        for entry in records(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(entry)
            identity = record.run.run_id or identity
            if record.HasField("history"):
                lines.append({})
                for item in record.history.item:
                    *above, name = item.nested_key or [item.key]
                    place = lines[-1]
                    for key in above:
                        place = place.setdefault(key, {})
                    place[name] = json.loads(item.value_json)
        found.append((identity, lines))
    return found


@pytest.mark.slow
def test_wandb_offline_holds_curves_pictures_and_completions(run: RunDirectory, offline: None) -> None:
    save(run, 0, "heldout", images=pictures())
    save(run, 1, "samples", completions=["one", "two"])
    told: list[str] = []
    with Trackers(settings("wandb", "wandb"), run) as trackers:
        trackers.log({"reward/mean": 0.5, "bad": math.nan}, 0)
        trackers.log({"reward/mean": 0.75}, 1)
        trackers.tell(told.append)
    assert len(told) == 1 and told[0].startswith("wandb: offline; send it with `wandb sync ")
    ((_, lines),) = sent(run)
    assert [(line["step"], line["reward/mean"]) for line in lines] == [(0, 0.5), (1, 0.75)]
    assert "bad" not in lines[0]
    shown = lines[0]["heldout/pictures"]
    assert shown["count"] == 2 and shown["captions"][0] == f"{PROMPTS[0]} | total 0.25 (bright 0.25)"
    (files,) = (run.path / "wandb").glob("offline-run-*/files")
    assert all((files / name).stat().st_size for name in shown["filenames"])
    table = json.loads((files / lines[1]["samples/texts"]["path"]).read_text())
    assert table["columns"] == ["prompt", "completion", "total", "bright"]
    assert table["data"][0] == [PROMPTS[0], "one", 0.25, 0.25] and table["data"][1][3] is None


@pytest.mark.slow
def test_wandb_goes_on_with_the_same_run(run: RunDirectory, offline: None) -> None:
    for resumed, step in ((None, 0), (0, 1)):
        with Trackers(settings("wandb"), run, resumed) as trackers:
            trackers.log({"loss": 1.0}, step)
    with Trackers(settings("wandb"), run) as trackers:  # begun anew
        trackers.log({"loss": 2.0}, 0)
    (first, _), (second, lines), (third, _) = sent(run)
    assert first == second != third and [line["step"] for line in lines] == [1]


@pytest.mark.slow
def test_a_missing_login_is_told_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    try:
        said = r"wandb has no login for https://wandb.example.org; run `wandb login`, .* WANDB_MODE=offline"
        with pytest.raises(UserError, match=said):
            check_trackers(["tensorboard", "wandb"])
        netrc = tmp_path / ".netrc"
        netrc.write_text("machine wandb.example.org\n  login user\n  password " + "0" * 40 + "\n")
        netrc.chmod(0o600)
        check_trackers(["wandb"])
        netrc.unlink()
        wandb.teardown()
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        check_trackers(["wandb"])
    finally:
        wandb.teardown()


# ---- what must not end a run


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else real(name))
    with pytest.raises(UserError, match=r"log.trackers: wandb needs the package wandb: pip install .*\[tracking\]"):
        check_trackers(["wandb"])


def test_a_package_that_does_not_import_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match=r"wandb cannot be imported \(ModuleNotFoundError.*a_module_that") as broken:
        check_trackers(["wandb"])
    assert isinstance(broken.value.__cause__, ModuleNotFoundError)


def test_a_tracker_that_fails_is_left_out_and_named_once(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[tuple[str, int]] = []

    def opener(name: str, limit: int):
        def log(metrics, step, saved):
            if step > limit:
                raise ConnectionResetError("Connection lost\nat some place")
            got.append((name, step))

        return lambda *_: SimpleNamespace(name=name, place="here", log=log, close=lambda failed: None)

    openers = {"wandb": opener("wandb", 0), "tensorboard": opener("tensorboard", 9)}
    monkeypatch.setattr(tracking, "_OPENERS", openers)
    told: list[str] = []
    with Trackers(settings("wandb", "tensorboard"), run) as trackers:
        for step in range(3):
            trackers.log({"loss": 1.0}, step)
            trackers.tell(told.append)
    assert got == [("wandb", 0), ("tensorboard", 0), ("tensorboard", 1), ("tensorboard", 2)]
    assert [line for line in told if "failed" in line] == [
        "wandb failed and gets nothing more of this run: Connection lost"
    ]

"""What a resumed run looks at before it goes on: checkpoints it cannot read, inputs that changed, a foreign folder."""

import json
import os
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flowrl.commands.checkpoints import checkpoint_rows
from flowrl.config import Config
from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.files import sha256, write_atomically
from flowrl.records import checkpoint, checkpoint_folder, manifest
from flowrl.records.directory import RunDirectory
from flowrl.records.manifest import MANIFEST, SEAL, STATE, read_manifest, seal
from flowrl.report.record import read
from flowrl.startup import inputs
from flowrl.startup.resume import BEFORE_TRAINING, start_or_resume

REWARD = "from beside import factor\n\ndef good(images, prompts):\n    return images.mean((1, 2, 3)) * factor\n"


def written(tmp_path: Path, **changes: Any) -> Config:
    """A config whose prompts, reward and model are files below ``tmp_path``."""
    if not (tmp_path / "mine.py").exists():
        (tmp_path / "mine.py").write_text(REWARD)
        (tmp_path / "beside.py").write_text("factor = 2\n")
        (tmp_path / "prompts.jsonl").write_text('{"prompt": "a dog", "answer": 1}\n{"prompt": "a cat", "answer": 2}\n')
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
        save_file({"w": torch.arange(1_000_000.0)}, tmp_path / "model" / "model.safetensors")
    values: dict[str, Any] = {
        "name": "t",
        "model": {"path": str(tmp_path / "model")},
        "algorithm": "flow_grpo",
        "data": {"train": str(tmp_path / "prompts.jsonl")},
        "rewards": [f"{tmp_path}/mine.py:good"],
        "train": {"iterations": 9},
        "eval": {"every": 0},
        "out": str(tmp_path / "run"),
    }
    return Config.of({**values, **changes})


def described(config: Config) -> dict[str, str]:
    return inputs.fingerprint_inputs(config, load_prompts(config.data.train), None)


def started(tmp_path: Path, steps: int = 2, **changes: Any) -> tuple[Config, RunDirectory]:
    config = written(tmp_path, **changes)
    run = RunDirectory(config.directory)
    assert start_or_resume(config, run, None) is None
    for step in range(steps + 1):
        run.log({"step": step})
    for step in range(1, steps + 1):
        facts = {inputs.MANIFEST_KEY: described(config)}
        checkpoint.save(run.checkpoints, step, {"a": torch.ones(2)}, {}, {}, {}, facts=facts)
    return config, run


def tree(root: Path) -> dict[str, bytes]:
    """Every file but what `start_or_resume` writes anew."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


# ---- checkpoints that cannot be read


def edit_manifest(path: Path, **changes: Any) -> None:
    file = path / MANIFEST
    facts = {**json.loads(file.read_text()), **changes}
    facts.pop(SEAL)
    file.write_text(json.dumps({**facts, SEAL: seal(facts)}))


HARMS = {
    "truncated": lambda path: os.truncate(path / STATE, 10),
    "another format": lambda path: edit_manifest(path, format=2),
    "manifest lost": lambda path: (path / MANIFEST).unlink(),
    "manifest is no JSON": lambda path: (path / MANIFEST).write_bytes(b"\xff\x00{"),
    "manifest is a list": lambda path: (path / MANIFEST).write_text("[1, 2]"),
    "manifest is deep": lambda path: (path / MANIFEST).write_text("[" * 100_000),
    "no files listed": lambda path: edit_manifest(path, files={}),
    "files are numbers": lambda path: edit_manifest(path, files={"x": 3}),
}


@pytest.mark.parametrize("harm", HARMS)
def test_auto_never_removes_what_it_cannot_read(tmp_path: Path, harm: str) -> None:
    config, run = started(tmp_path)
    for path in run.checkpoints.glob("step_*"):
        HARMS[harm](path)
    before = tree(run.path)
    with pytest.raises(UserError, match=r"2 checkpoints that cannot be read .*nothing was removed.*out="):
        start_or_resume(config, run, "auto")
    assert tree(run.path) == before


def test_auto_goes_back_over_damage_and_keeps_it_but_not_over_another_format(tmp_path: Path) -> None:
    config, run = started(tmp_path, steps=3)
    HARMS["truncated"](run.checkpoints / "step_000003")
    with pytest.warns(UserWarning, match="kept as unreadable-step_000003"):
        found = start_or_resume(config, run, "auto")
    assert found is not None and found.step == 2
    assert (run.checkpoints / "unreadable-step_000003" / STATE).stat().st_size == 10
    HARMS["another format"](run.checkpoints / "step_000002")
    shutil.copytree(run.checkpoints / "step_000002", run.checkpoints / "step_000001")
    edit_manifest(run.checkpoints / "step_000001", format=1, step=1)
    with pytest.raises(UserError, match=r"format is 2.*--resume .*step_000001"):
        start_or_resume(config, run, "auto")
    found = start_or_resume(
        config, run, str(run.checkpoints / "step_000001")
    )  # asked for: the foreign one is still kept
    assert found is not None and (run.checkpoints / "unreadable-step_000002").is_dir()


@pytest.mark.parametrize("resume", ["auto", "run", "step"])
def test_a_checkpoint_is_hashed_once_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: str
) -> None:
    config, run = started(tmp_path)
    hashed: list[Path] = []
    monkeypatch.setattr(manifest, "sha256", lambda path: hashed.append(path) or sha256(path))
    where = {"auto": "auto", "run": str(run.path), "step": str(run.checkpoints / "step_000002")}[resume]
    found = start_or_resume(config, run, where)
    assert found is not None and found.step == 2
    assert sorted(path.name for path in hashed) == ["state.safetensors", "values.json"]


def test_a_checkpoint_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    config, run = started(tmp_path)
    os.replace(run.checkpoints / "step_000002", run.checkpoints / ".tmp-old-step_000002")
    found = start_or_resume(config, run, "auto")
    assert found is not None and found.step == 2


def test_a_sealed_manifest_of_another_program_is_a_sentence(tmp_path: Path) -> None:
    _, run = started(tmp_path)
    path = run.checkpoints / "step_000002"
    edit_manifest(path, step="two")
    with pytest.raises(UserError, match="was not written by flowrl"):
        checkpoint.load(path)
    (run.checkpoints / "latest").write_bytes(b"\xff\xfe")
    (run.checkpoints / "best").write_text("../../elsewhere\n")
    assert checkpoint_folder.best(run.checkpoints) is None
    checkpoint.save(run.checkpoints, 3, {"a": torch.ones(2)}, {}, {}, {"m": 1.0}, best="m")
    assert checkpoint_folder.best(run.checkpoints) == run.checkpoints / "step_000003"


def test_a_run_killed_before_its_first_checkpoint_tells_step_0_once(tmp_path: Path) -> None:
    config = written(tmp_path)
    run = RunDirectory(config.directory)
    for _ in range(3):
        assert start_or_resume(config, run, "auto") is None
        run.log({"step": 0})
    assert run.metrics() == [{"step": 0}]
    run.rewind(BEFORE_TRAINING)
    assert run.metrics() == []


def test_state_files_have_the_rights_of_other_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = checkpoint.save(tmp_path, 1, {"a": torch.ones(2)}, {}, {}, {})
    finally:
        os.umask(before)
    assert (path / STATE).stat().st_mode & 0o777 == 0o640
    assert sorted(p.name for p in (path / "state").iterdir()) == ["state.safetensors", "values.json"]


# ---- inputs that changed


def _replaced(file: Path) -> None:
    """The same size, one number far inside: as another seed's weights would be."""
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle - (1 << 19) : middle + (1 << 19)] = os.urandom(1 << 20)
    file.write_bytes(data)


CHANGES = {
    "data.train": lambda here: (here / "prompts.jsonl").write_text('{"prompt": "a dog", "answer": 1}\n' * 2),
    "rewards.": lambda here: (here / "mine.py").write_text(REWARD.replace("factor\n", "factor + 1\n", 2)),
    "rewards..": lambda here: (here / "beside.py").write_text("factor = 3\n"),
    "model.path": lambda here: _replaced(here / "model" / "model.safetensors"),
    "model.path.": lambda here: (here / "model" / "config.json").write_text('{"layers": 3}'),
}


@pytest.mark.parametrize("key", CHANGES)
def test_resume_notices_a_changed_input(tmp_path: Path, key: str) -> None:
    config, run = started(tmp_path)
    same = start_or_resume(config, run, "auto", inputs=described(config))
    assert same is not None
    CHANGES[key](tmp_path)
    before = tree(run.path)
    with pytest.raises(UserError, match=rf"(?s)- {key.rstrip('.')}.*--allow-changed") as caught:
        start_or_resume(config, run, "auto", inputs=described(config))
    assert str(caught.value).count("\n  - ") == 1, "only what changed is named"
    assert tree(run.path) == before
    with pytest.warns(UserWarning, match="going on although"):
        assert start_or_resume(config, run, "auto", inputs=described(config), allow_changed=True) is not None


def test_what_changes_nothing_is_not_noticed(tmp_path: Path) -> None:
    config, run = started(tmp_path)
    (tmp_path / "mine.py").write_text("# a comment\n" + REWARD.replace(" * factor", "*factor"))
    (tmp_path / "model" / ".cache").mkdir()
    (tmp_path / "model" / ".cache" / "x").write_text("x")
    (tmp_path / "model" / "__pycache__").mkdir()
    (tmp_path / "model" / "__pycache__" / "verifier.pyc").write_text("compiled by a later import")
    os.utime(tmp_path / "model" / "model.safetensors", (1, 1))
    text = (tmp_path / "prompts.jsonl").read_text()
    (tmp_path / "prompts.jsonl").write_text(text.replace(": ", ":   "))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert start_or_resume(config, run, "auto", inputs=described(config)) is not None


def test_resume_notices_other_libraries(tmp_path: Path) -> None:
    config, run = started(tmp_path)
    path = run.checkpoints / "step_000002"
    recorded = json.loads((path / MANIFEST).read_text())["versions"]
    edit_manifest(path, versions={**recorded, "torch": "1.13.1", "python": recorded["python"] + "9"})
    with pytest.raises(UserError, match=r"torch: version 1.13.1 -> ") as caught:
        start_or_resume(config, run, "auto")
    assert "python" not in str(caught.value)
    edit_manifest(path, versions={**recorded, "torch": recorded["torch"].partition("+")[0] + "+cu999"})
    assert start_or_resume(config, run, "auto") is not None


def test_a_longer_run_under_a_decaying_rate_is_asked_about(tmp_path: Path) -> None:
    decaying: dict[str, Any] = {"optimizer": {"schedule": "cosine"}}
    started(tmp_path, **decaying)
    longer = written(tmp_path, train={"iterations": 12}, **decaying)
    run = RunDirectory(longer.directory)
    with pytest.raises(UserError, match=r"train.iterations: 9 -> 12.*schedule=cosine"):
        start_or_resume(longer, run, "auto")
    with pytest.warns(UserWarning, match="iterations"):
        assert start_or_resume(longer, run, "auto", allow_changed=True) is not None


def test_a_finished_run_asks_nothing(tmp_path: Path) -> None:
    config, run = started(tmp_path, steps=9)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "other"}\n')
    assert start_or_resume(config, run, "auto", inputs=described(config)) is not None


def test_a_model_of_the_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert inputs._model("owner/name") is None
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc123\n")
    assert inputs._model("owner/name") == "commit abc123"


# ---- directories with anything in them


@pytest.mark.slow
def test_damaged_run_directories_give_a_sentence(tmp_path: Path) -> None:
    """A seeded fuzzer over the files that are read back: sentences only, whatever the bytes."""
    config, run = started(tmp_path)
    (run.path / "heldout" / "step_000001").mkdir(parents=True)
    (run.path / "heldout" / "step_000001" / "samples.jsonl").write_text('{"prompt": "a", "total": 1.0}\n')
    (run.path / "eval").mkdir()
    (run.path / "eval" / "results.json").write_text("{}")
    pristine = tmp_path / "pristine"
    shutil.copytree(run.path, pristine)
    files = [p for p in pristine.rglob("*") if p.is_file() and p.suffix in (".json", ".jsonl", "")]
    random.seed(0)
    counts = {"fine": 0, "sentence": 0}
    for _ in range(90):
        shutil.rmtree(run.path)
        shutil.copytree(pristine, run.path)
        file = random.choice(files)
        (run.path / file.relative_to(pristine)).write_bytes(_mangled(file.read_bytes()))
        for look in (lambda: read(run.path), run.metrics, lambda: start_or_resume(config, run, "auto")):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    look()
                counts["fine"] += 1
            except UserError as error:
                assert len(str(error)) < 2000
                counts["sentence"] += 1
    assert min(counts.values()) > 20, counts


def _mangled(data: bytes) -> bytes:
    kind = random.randrange(6)
    place = random.randrange(len(data) + 1)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + os.urandom(3) + data[place:]
    if kind == 2:
        return data[:place] + b"\x00" * 20
    if kind == 3:
        return random.choice([b"", b"null", b"[]", b"3", b'"x"', b"{}", b"[" * 5000, b'{"step": "x"}\n', b"9" * 5000])
    if kind == 4:
        return data.replace(b'"step": ', b'"step": ' + random.choice([b"null, ", b'"x", ', b"[1], ", b"1e999, "]), 1)
    return data.replace(b"1", random.choice([b"NaN", b"{}", b'"1"', b"-1", b"1" * 400]), 1)


def test_checkpoints_are_listed_with_their_scores(tmp_path: Path) -> None:
    config, run = started(tmp_path, steps=1)
    scores = {"eval/reward/mean": 0.5, "eval/mine/mean": 0.25, "eval/mine/std": 9.0, "loss": 3.0}
    checkpoint.save(run.checkpoints, 2, {"a": torch.ones(2)}, {}, {}, scores, best="eval/reward/mean")

    def fails(folder: Path) -> None:
        raise UserError("it differs")

    with pytest.warns(UserWarning, match="without its export"):
        checkpoint.save(run.checkpoints, 3, {"a": torch.ones(2)}, {}, {"lora": fails}, {}, keep=9)
    HARMS["truncated"](run.checkpoints / "step_000001")
    rows = checkpoint_rows(config.directory)
    assert [(row["name"], row["notes"]) for row in rows] == [
        ("step_000001", [f"cannot be read: {STATE} has 10 of {rows_bytes(run)} bytes"]),
        ("step_000002", ["best"]),
        ("step_000003", ["latest", "without lora/"]),
    ]
    assert rows[1]["scores"] == {"reward": 0.5, "mine": 0.25} and rows[0]["scores"] == {}
    with pytest.raises(UserError, match="is not a run"):
        checkpoint_rows(tmp_path / "nowhere")


def rows_bytes(run: RunDirectory) -> int:
    return read_manifest(run.checkpoints / "step_000001")["files"][STATE]["bytes"]


# ---- runs of an earlier release


def test_a_run_that_called_its_keys_otherwise_is_continued(tmp_path: Path) -> None:
    spec = {"use": "flow_grpo", "selection": "nonzero_advantage", "token_advantage": []}
    config, run = started(tmp_path, algorithm=spec)
    text = run.config_path.read_text()
    old = text.replace("token_advantage:", "credit:").replace("nonzero_advantage", "with_credit")
    assert old != text
    run.config_path.write_text(old)
    assert Config.of_run(run.config_path) == config
    resumed = start_or_resume(config, run, "auto")
    assert resumed is not None and resumed.step == 2


def test_folders_in_the_place_of_a_runs_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.mkdir()
    with pytest.raises(UserError, match=r"config\.yaml is a folder, where flowrl keeps a file; move it away"):
        write_atomically(path, "name: x\n")
    assert not list(tmp_path.glob(".tmp-*"))
    (tmp_path / ".tmp-latest").mkdir()
    with pytest.raises(UserError, match=r"\.tmp-latest is a folder"):
        write_atomically(tmp_path / "latest", "step_000002\n")
    best = tmp_path / "checkpoints" / checkpoint_folder.BEST
    best.mkdir(parents=True)
    with pytest.raises(UserError, match="best is a folder"):
        checkpoint_folder.discard_after(tmp_path / "checkpoints", 2)


def test_a_lock_file_of_other_bytes_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_bytes(b"\x89PNG")
    with pytest.warns(UserWarning, match="the last run here"), RunDirectory(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith("process ")

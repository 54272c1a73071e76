"""`flowrl push`: what goes to the hub, what never does, and what is said where it cannot."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import safe_open
from safetensors.torch import save_file

from flowrl import cli
from flowrl.commands.push import PushOptions, push
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.report import card as cards
from flowrl.report.card import Export, Licence, heldout, snippet
from flowrl.report.public import public_config
from flowrl.report.record import read
from flowrl.runtime.display import Display

SMALL: dict[str, Any] = {
    "name": "mine",
    "model": {"path": "owner/base", "call": {"guidance_scale": 4.5}, "lora": {"rank": 8, "alpha": 8}},
    "algorithm": {"use": "flow_grpo", "kl": 0.01, "sampler": {"steps": 8}},
    "data": {"train": "hf:owner/prompts:train", "prompts": 4, "group": 6},
    "rewards": ["pickscore", {"use": "ocr", "weight": 0.5}],
    "train": {"iterations": 20},
}


class Hub:
    """An ``HfApi`` that remembers what it was asked."""

    def __init__(self, files: tuple[str, ...] | None = None, private: bool = True, error: Exception | None = None):
        self.files, self.private, self.error, self.sent = files, private, error, {}

    def whoami(self) -> dict[str, str]:
        if self.error is not None:
            raise self.error
        return {"name": "me"}

    def repo_info(self, name: str) -> Any:
        if self.files is None:
            raise RepositoryNotFoundError("none", response=answer(404))
        return SimpleNamespace(private=self.private)

    def list_repo_files(self, name: str) -> list[str]:
        return list(self.files or ())

    def model_info(self, name: str, timeout: float) -> Any:
        return SimpleNamespace(card_data=SimpleNamespace(license="other", license_name="base-terms", license_link="L"))

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
        self.sent |= {"name": name, "private": private}

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.sent["files"] = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}
        self.sent["message"] = commit_message


def answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co"))


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib takes half a second; one test draws."""
    fake = lambda metrics, file: bool(len(metrics) and file.write_bytes(b"drawn"))  # noqa: E731
    monkeypatch.setattr("flowrl.commands.push.draw", fake)


def make_run(folder: Path, base: str = "owner/base", **changes: Any) -> tuple[Path, Path]:
    """A run's directory, and an export of it."""
    run, exported = folder / "run", folder / "exported"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(Config.model_validate({**SMALL, **changes}).to_yaml())
    rows = [
        {"step": 0, "time": 1.0, "eval/reward/mean": 0.2, "eval/ocr/mean": 0.2},
        *({"step": i, "time": 3.0 * i, "reward/mean": i / 20, "reward/std": 0.1} for i in range(1, 10)),
        {
            "step": 10,
            "time": 30.0,
            "reward/mean": 0.5,
            "reward/std": 0.1,
            "eval/reward/mean": 0.6,
            "eval/ocr/mean": 0.4,
        },
        {
            "step": 20,
            "time": 60.0,
            "reward/mean": 0.6,
            "reward/std": 0.1,
            "eval/reward/mean": 0.7,
            "eval/ocr/mean": 0.1,
        },
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {
        "versions": {"flowrl": "0.1.0", "torch": "2.14.1"},
        "commit": "abc+changes",
        "accelerators": ["H200"],
    }
    (run / "environment.json").write_text(json.dumps(environment))
    exported.mkdir()
    inner = json.dumps({"transformer.base_model_name_or_path": base, "transformer.r": 8})
    save_file({"a": torch.ones(2)}, exported / "pytorch_lora_weights.safetensors", {"lora_adapter_metadata": inner})
    origin = {
        "run": "mine",
        "base": base,
        "checkpoint": "step_000010",
        "weights": "ema",
        "model": {"call": {"x": base}},
    }
    (exported / "flowrl.json").write_text(json.dumps({**origin, "algorithm": "flow_grpo"}))
    return run, exported


def sent(run: Path, exported: Path, hub: Hub | None = None, **options: Any) -> Any:
    with Display(silent=True) as display:
        return push(run, "me/mine", PushOptions(exported=exported, **options), display, hub or Hub())


def test_a_push_makes_a_private_repository_of_weights_card_curve_and_config(tmp_path: Path):
    hub = Hub()
    done = sent(*make_run(tmp_path), hub)
    assert (done.address, done.private) == ("https://huggingface.co/me/mine", True)
    assert hub.sent["private"] and hub.sent["message"] == "mine: step_000010, diffusers (flowrl)"
    files = hub.sent["files"]
    assert set(files) == {
        *("README.md", "curve.png", "flowrl.json", "flowrl_config.yaml", "pytorch_lora_weights.safetensors")
    }
    assert Config.model_validate(yaml.safe_load(files["flowrl_config.yaml"])) == Config.model_validate(SMALL)
    assert not (tmp_path / "run/push").exists()


def test_the_card_says_what_was_trained_and_how_good_it_is(tmp_path: Path):
    run, exported = make_run(tmp_path)
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    spread = {"overall": estimate, "samples": estimate, "tags": {"all": estimate}}
    arm = {"measures": {"score": spread}, "unscored": 0, "reasons": {}}
    suite = {"suite": "ocr", "decoding": "", "title": "OCR", "primary": "score", "medium": "images", "partial": False}
    suite |= {"missing_tags": [], "prompts": 9, "prompts_available": 9, "samples_per_prompt": 1, "tags": {"all": {}}}
    suite |= {"arms": {"base": arm, "tuned": arm}, "difference": {"score": spread}}
    tuned = {"checkpoint": "step_000010", "weight_set": "ema"}
    results = {"manifest": {"samples": 2, "seed": 42, "arms": {"tuned": tuned}}, "suites": {"ocr": suite}}
    (run / "eval").mkdir()
    (run / "eval/results.json").write_text(json.dumps(results))
    hub = Hub()
    sent(run, exported, hub)
    text = hub.sent["files"]["README.md"].decode()
    data = ModelCard(text).data
    assert (data.base_model, data.library_name, data.pipeline_tag) == ("owner/base", "diffusers", "text-to-image")
    assert (data.license, data.license_name, data.license_link) == ("other", "base-terms", "L")
    assert data.to_dict()["base_model_relation"] == "adapter" and data.datasets == ["owner/prompts"]
    assert data.eval_results[0].metric_value == 0.5 and data.eval_results[0].metric_type == "score"
    assert {"flowrl", "reinforcement-learning", "lora", "flow_grpo"} <= set(data.tags)
    for line in (
        "LoRA of rank 8 for [owner/base](https://huggingface.co/owner/base)",
        "| overall | 0.500 [.400, .600] | 0.500 [.400, .600] | +0.500 [+.400, +.600] |",
        "| reward | before training | iteration 10 |",  # of the checkpoint that is sent, not the last
        "| ocr | 0.2 | 0.4 |",
        "| `algorithm.kl` | `0.01` |",
        "| iterations | 20, each of 4 prompts x 6 samples, 1 optimiser step |",
        "| `ocr` | 0.5 |  |",
        "| time | 60 s on 1 x H200 |",
        "flowrl eval runs/mine --suite ocr --samples 2 --seed 42",
        'pipe.load_lora_weights("me/mine")',
        "Made with flowrl 0.1.0, torch 2.14.1.",
    ):
        assert line in text, line
    results["manifest"]["arms"]["tuned"]["checkpoint"] = "step_000020"
    (run / "eval/results.json").write_text(json.dumps(results))
    sent(run, exported, hub)
    assert "0.500 [" not in hub.sent["files"]["README.md"].decode(), "an evaluation of other weights"


def test_nothing_secret_or_local_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "home/alice"
    base = home / "models/sd35"
    base.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    rewards = [
        {"use": f"{home}/code/my.py:bright", "options": {"api_key": "sekret1", "url": "https://judge.inner/v1"}},
        {"use": "http://10.0.0.5:8000/hps", "options": {"headers": {"x": "sekret2"}, "mode": "strict"}},
        {
            "use": "callable:f",
            "name": "g",
            "options": {"a": "judge.inner:8000/v1", "b": "10.0.0.7", "c": "localhost:99"},
        },
        {"use": "judge", "options": {"model": "hf_abcdefghijklmnop", "path": "~alice/w"}},
    ]
    run, exported = make_run(
        tmp_path,
        str(base),
        model={"path": str(base), "adapter": f"{home}/old", "system": f"Notes are in {home}/n. Bearer sekret3"},
        data={"train": f"{home}/prompts.txt", "test": "data/alice/t.txt"},
        rewards=rewards,
        out=str(home / "runs"),
        rollouts={"ray": {"address": "ray://10.0.0.6:1"}},
        log={"project": "sekret4"},
    )
    hub = Hub()
    sent(run, exported, hub)
    for name, content in hub.sent["files"].items():
        for word in ("alice", "sekret", "judge.inner", "10.0.0", "localhost", "hf_abc", str(tmp_path)):
            assert word.encode() not in content, f"{word} in {name}"
    kept = yaml.safe_load(hub.sent["files"]["flowrl_config.yaml"])
    assert kept["model"]["path"] == "sd35" and kept["data"] == {"train": "prompts.txt", "test": "t.txt"}
    assert kept["rewards"][0]["use"] == "my.py:bright" and kept["rewards"][1]["options"]["mode"] == "strict"
    text = hub.sent["files"]["README.md"].decode()
    assert (
        "`model.path`" in text
        and "`rewards.2.use`" in text
        and "a model in a local folder, `sd35`" in text
        and "base_model:" not in text
    )
    (tmp_path / "w.safetensors").write_bytes(hub.sent["files"]["pytorch_lora_weights.safetensors"])
    with safe_open(tmp_path / "w.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["lora_adapter_metadata"])["transformer.r"] == 8
        assert torch.equal(opened.get_tensor("a"), torch.ones(2))
    with safe_open(exported / "pytorch_lora_weights.safetensors", "pt") as opened:
        assert str(base) in opened.metadata()["lora_adapter_metadata"], "the export itself stays as it is"


def test_a_token_in_words_of_the_run_stops_the_push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "plain words")
    run, exported = make_run(tmp_path, data={"template": "{prompt} plain words"})
    hub = Hub()
    with pytest.raises(UserError, match=r"flowrl_config.yaml would hold a token of yours"):
        sent(run, exported, hub)
    assert not hub.sent and not (run / "push").exists()


def test_what_is_no_secret_stays():
    values = {
        **SMALL,
        "checkpoint": {"best": "eval/ocr/mean"},
        "algorithm": {"use": "grpo", "token_advantage": ["gae"]},
    }
    values["model"] = {"path": "owner/base", "mask_token_id": 5, "keep_special_tokens": True}
    values["rewards"] = [{"use": "clipscore", "options": {"revision": "0123456789abcdef" * 3, "path": "owner/clip"}}]
    public, changed = public_config(Config.model_validate(values))
    assert not changed and Config.model_validate(public) == Config.model_validate(values)


def test_a_dry_run_asks_nobody_and_leaves_the_folder(tmp_path: Path):
    class Nobody:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    run, exported = make_run(tmp_path)
    done = sent(run, exported, Nobody(), dry_run=True)
    assert done.address is None and done.folder == run / "push" and dict(done.files)["README.md"] > 500
    assert sent(run, exported, Nobody(), dry_run=True).files == done.files


def test_a_repository_with_files_is_written_to_only_when_asked(tmp_path: Path):
    run, exported = make_run(tmp_path)
    with pytest.raises(UserError, match=r"has files already \(a.bin\); --update"):
        sent(run, exported, Hub((".gitattributes", "a.bin")))
    with pytest.raises(UserError, match=r"is public; --public"):
        sent(run, exported, Hub(("a.bin",), private=False), update=True)
    assert sent(run, exported, Hub(("a.bin",)), update=True, public=True).private, "it stays what it was"
    assert not sent(run, exported, Hub(), public=True).private
    assert sent(run, exported, Hub((".gitattributes",))).address


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LocalTokenNotFoundError("no token"), "not logged in to the hub; log in with 'hf auth login'"),
        (HfHubHTTPError("no", response=answer(401)), "does not know your token (401); log in with 'hf auth login'"),
        (HfHubHTTPError("no", response=answer(403)), "may not write to me/mine (403)"),
        (HfHubHTTPError("no", response=answer(503)), "the hub refuses me/mine"),
        (OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE is set; unset it"),
    ],
)
def test_what_the_hub_fails_with_is_one_sentence(tmp_path, monkeypatch, capsys, error: Exception, words: str):
    run, _ = make_run(tmp_path)
    monkeypatch.setattr("flowrl.commands.push._api", lambda: Hub(error=error))
    monkeypatch.setattr(sys, "argv", ["flowrl", "push", str(run), "me/mine"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    told = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 2 and words in told and "Traceback" not in told


def test_a_hub_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        api = HfApi(endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}", token="hf_x")
        with pytest.raises(UserError, match="me/mine: the hub cannot be reached: connection refused; try again"):
            sent(*make_run(tmp_path), api)


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/bad name", "me/a--b", "me/", "/tmp/x", "me/mine.git"])
def test_a_name_that_no_repository_can_have_is_refused(tmp_path: Path, name: str):
    run, exported = make_run(tmp_path)
    with pytest.raises(UserError, match=r"HUB_ID: .* give OWNER/NAME"), Display(silent=True) as display:
        push(run, name, PushOptions(exported=exported), display, Hub())


def test_what_is_no_export_of_the_run_is_refused(tmp_path: Path):
    run, exported = make_run(tmp_path)
    for folder, words in ((tmp_path / "none", "does not exist"), (run, "has no flowrl.json")):
        with pytest.raises(UserError, match=rf"is no export: it {words}; `flowrl export RUN"):
            sent(run, folder)
    (exported / "flowrl.json").write_text('{"run": "other"}')
    with pytest.raises(UserError, match="is an export of the run 'other', and not of"):
        sent(run, exported)
    with pytest.raises(UserError, match="is not a run"):
        sent(tmp_path / "nowhere", exported)
    with pytest.raises(UserError, match="checkpoint"):
        sent(run, None)  # type: ignore[arg-type]


def test_a_run_without_numbers_has_a_card(tmp_path: Path):
    run, exported = make_run(tmp_path)
    (run / "metrics.jsonl").unlink()
    (run / "environment.json").unlink()
    hub = Hub()
    sent(run, exported, hub)
    text = hub.sent["files"]["README.md"].decode()
    assert "curve.png" not in text and "curve.png" not in hub.sent["files"]
    assert "The run evaluated nothing" in text


@pytest.mark.slow
def test_the_curve_is_a_picture(tmp_path: Path):
    run, _ = make_run(tmp_path)
    assert cards.draw(read(run).metrics, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_licence_that_is_not_known_is_said(tmp_path: Path):
    run, _ = make_run(tmp_path)
    config = Config.model_validate(SMALL)
    export = Export("diffusers", "step_000010", "ema")
    text = cards.card(read(run), config, export, "me/mine", None)
    assert "could not be read" in text and "license:" not in text
    assert "license: mit" in cards.card(read(run), config, export, "me/mine", Licence("mit"))


def test_the_held_out_rewards_are_those_up_to_the_checkpoint(tmp_path: Path):
    run, _ = make_run(tmp_path)
    metrics = read(run).metrics
    found = heldout(metrics, 20)
    assert found is not None and found["last"] == "iteration 20" and found["rows"][1] == ["ocr", "0.2", "0.1"]
    assert heldout(metrics, 5) is None


@pytest.mark.parametrize(
    ("world", "preset", "to", "names"),
    [
        ("shapes", "flow_grpo", "diffusers", ["load_lora_weights", 'BASES["diffusion"]']),
        ("shapes", "flow_grpo", "kohya", ['weight_name="x.safetensors"']),
        ("shapes", "flow_grpo", "merged", ['from_pretrained("me/mine"']),
        ("owner/llada", "spg", "peft", ["AutoModelForMaskedLM", '("owner/llada")', "PeftModel"]),
        ("owner/qwen", "grpo", "merged", ['AutoModelForCausalLM.from_pretrained("me/mine")']),
        ("/data/qwen", "grpo", "peft", ["FOLDER_OF_THE_BASE_MODEL"]),
    ],
)
def test_the_way_to_load_it_fits_what_it_is(world: str, preset: str, to: str, names: list[str]):
    config = Config.model_validate({**SMALL, "model": {"path": world}, "algorithm": preset})
    from flowrl.composition import build

    code = snippet(
        Export(to, "c", "live", "x.safetensors" if to == "kohya" else None), build(preset).family, config, "me/mine"
    )
    compile(code, "card", "exec")
    assert all(name in code for name in names)


RUNS = {
    "diffusers": {"model": {"path": "shapes", "lora": {"rank": 2}}, "algorithm": "diffusion_nft"},
    "kohya": {"model": {"path": "shapes", "lora": {"rank": 2}}, "algorithm": "diffusion_nft"},
    "peft": {
        "model": {"path": "sudoku", "lora": {"rank": 2}},
        "algorithm": {"use": "diffu_grpo", "length": 16, "block": 8, "steps": 4},
    },
    "merged": {"model": {"path": "countdown", "lora": {"rank": 2}}, "algorithm": {"use": "grpo", "length": 14}},
}


@pytest.mark.slow
@pytest.mark.parametrize("to", RUNS)
def test_the_code_of_a_card_loads_what_was_pushed(tmp_path: Path, to: str):
    from flowrl.train import train

    world = RUNS[to]["model"]["path"]
    values = {**RUNS[to], "name": "mine", "rewards": [world], "out": str(tmp_path / "run"), "on_nan": "drop_sample"}
    values["data"] = {"train": f"{world}:train", "test": f"{world}:test", "prompts": 2, "group": 2}
    values |= {"train": {"iterations": 1, "threads": 1}, "eval": {"every": 1, "prompts": 2}, "monitor": {"samples": 0}}
    train(Config.model_validate(values))
    with Display(silent=True) as display:
        done = push(tmp_path / "run", "me/mine", PushOptions(to=to, dry_run=True), display)
    text = (done.folder / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0].replace('"me/mine"', repr(str(done.folder)))
    found: dict[str, Any] = {}
    exec(code, found)
    assert ("pipe" in found) == (world == "shapes") and ("model" in found) == (world != "shapes")
    assert "| reward | before training | iteration 1 |" in text and ModelCard(text).data.license == "apache-2.0"

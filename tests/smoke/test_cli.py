"""The command line: help everywhere, mistakes in one sentence with exit code 2, JSON as promised."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from flowrl import cli
from flowrl.composition import build

CONFIGS = Path(__file__).parents[2] / "configs"

CONFIG = """
name: quick
model: {path: shapes}
algorithm: flow_grpo
rewards: [shapes]
train: {iterations: 3}
"""


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def flowrl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Run the entry point in this process, in an empty folder that holds ``quick.yaml``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick.yaml").write_text(CONFIG)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["flowrl", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return Result(int(stopped.value.code or 0), captured.out, captured.err)

    return run


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself_with_an_example(flowrl, command: str) -> None:
    result = flowrl(command, "--help")
    assert result.code == 0
    assert "Example" in result.out and f"flowrl {command}" in " ".join(result.out.split())


def test_the_version_and_completion_for_the_shell(flowrl) -> None:
    from flowrl import __version__

    result = flowrl("--version")
    assert (result.code, result.out) == (0, f"flowrl {__version__}\n")
    environment = {**os.environ, "_FLOWRL_COMPLETE": "complete_bash", "COMP_WORDS": "flowrl test-", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['flowrl']; from flowrl.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.split() == ["test-reward"]


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = "import sys; sys.argv = ['flowrl', '--help']\ntry:\n    from flowrl.cli import main; main()\n"
    code += "except SystemExit:\n    assert not {'torch', 'diffusers', 'pydantic'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "quick.yaml", "optimiser.lr=1"], "did you mean 'optimizer'"),
        (["train", "quick.yaml", "train.iterations=0"], "train.iterations=0"),
        (["train", "quick.yaml", "algorithm=flow_gpro"], "did you mean 'flow_grpo'"),
        (["train", "quick.yaml", "algorithm.klx=1"], "algorithm.klx"),
        (["train", "quick.yaml", "data.group=1"], "data.group=1"),
        (["train", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["train"], "CONFIG"),
        (["train", "quick.yaml", "--resum", "auto"], "--resum"),
        (["trian"], "trian"),
        (["algorithms", "flow_gpro"], "did you mean 'flow_grpo'"),
        (["algorithms", "--diff", "awm"], "name two algorithms"),
        (["test-reward", "nowhere.py:f"], "fails: loads"),
        (["export", "nowhere", "--to", "diffusers", "--out", "x"], "nowhere is not a run"),
        (["export", "nowhere", "--to", "gguf", "--out", "x"], "gguf"),
        (["report", "nowhere"], "nowhere"),
        (["sample", "nowhere", "--prompt", "a", "--out", "x"], "nowhere"),
        (["eval", "nowhere", "--suite", "geneval", "--out", "x"], "nowhere"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(flowrl, arguments: list[str], words: str) -> None:
    result = flowrl(*arguments)
    assert result.code == 2
    assert result.err.startswith("error: ") and words in result.err
    assert "Traceback" not in result.err


def test_without_a_command_the_help_is_shown_and_nothing_else(flowrl) -> None:
    result = flowrl()
    assert result.code == 2 and "Usage: " in result.out + result.err and "error:" not in result.out + result.err


def test_broken_yaml_names_the_line(flowrl) -> None:
    Path("quick.yaml").write_text("name: [a\n")
    result = flowrl("train", "quick.yaml")
    assert result.code == 2 and "not valid YAML at line" in result.err


def test_dry_run_shows_the_plan_and_touches_nothing(flowrl) -> None:
    result = flowrl("train", "quick.yaml", "data.prompts=4", "--dry-run")
    assert result.code == 0
    assert "4 prompts x 12 = 48 samples, 9 decisions each" in result.out
    assert "480 to sample" in result.out and "432 with gradient, 432 of frozen weights" in result.out
    assert "FlowSDE(noise_level=0.7)" in result.out
    assert "LoRA of rank 32 on 23 layers: attn x 23" in " ".join(result.out.split())
    assert [path.name for path in Path().iterdir()] == ["quick.yaml"]


def test_config_as_yaml_can_be_trained_again(flowrl) -> None:
    text = flowrl("config", "quick.yaml", "train.seed=7", "--yaml").out
    Path("resolved.yaml").write_text(text)
    assert flowrl("config", "resolved.yaml", "--yaml").out == text and "seed: 7" in text
    assert "learning rate" in flowrl("config", "quick.yaml").out


def test_config_explains_the_options_of_the_algorithm(flowrl) -> None:
    result = flowrl("config", "quick.yaml", "algorithm={use: flow_grpo, clip: 2e-4, sampler: {steps: 8}}")
    rows = {line.split()[0]: " ".join(line.split()) for line in result.out.splitlines()}
    assert "2e-04 set sets objective.low, objective.high" in rows["algorithm.clip"].replace("0.0002", "2e-04")
    assert rows["algorithm.sampler.steps"].startswith("algorithm.sampler.steps 8 set ")
    assert "default Guidance scale; ``None`` is the policy's own" in rows["algorithm.sampler.guidance"]
    assert (
        "algorithm.objective Clipped default" in rows["algorithm.objective"]
        and "clip(rho" in rows["algorithm.objective"]
    )
    assert "0.04 default factor of this term in the loss" in rows["algorithm.regularizers.0.weight"]
    assert all("algorithm.families" not in key for key in rows)


def test_algorithms_as_json_keep_the_contract(flowrl) -> None:
    rows = json.loads(flowrl("algorithms", "--json").out)
    assert all({"name", "paper", "families", "parts"} <= set(row) for row in rows)
    assert {"flow_grpo", "diffusion_nft"} <= {row["name"] for row in rows}
    one = flowrl("algorithms", "flow_grpo", "--diff", "flow_grpo_fast").out
    assert "sampler.window" in one and "sampler.dynamics.use" in one and "sampler.solver" not in one


def test_rewards_as_json_keep_the_contract(flowrl) -> None:
    rows = json.loads(flowrl("rewards", "--json").out)
    assert all({"name", "kind", "range", "needs", "differentiable"} == set(row) for row in rows)


def test_test_reward_on_a_users_file(flowrl) -> None:
    Path("mine.py").write_text("def bright(images, prompts, scale=1.0): return scale * images.mean(dim=(1, 2, 3))\n")
    good = flowrl("test-reward", "mine.py:bright", "--option", "scale=2", "--size", "16")
    assert good.code == 0 and "same answer one by one" in good.out
    Path("mine.py").write_text(
        "import random\ndef bright(images, prompts): return [random.random() for _ in prompts]\n"
    )
    bad = flowrl("test-reward", "mine.py:bright")
    assert bad.code == 2 and "same answer twice" in bad.err


def test_doctor_examines_the_machine(flowrl) -> None:
    result = flowrl("doctor")
    assert "packages" in result.out and "disk" in result.out and "torch uses" in result.out


def test_doctor_says_what_becomes_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from flowrl.commands import doctor

    def told() -> str:
        return next(f.detail for f in doctor.check_machine(Path()) if f.name == "gpu")

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(doctor, "accelerators", list)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("torch.version.cuda", None)
    assert f"none that torch {torch.__version__} sees" in told() and told().endswith("built without CUDA")
    monkeypatch.setattr("torch.version.cuda", "13.0")
    assert told().endswith("driver is too old for CUDA 13.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    card = SimpleNamespace(name="H200", total_memory=140 * 2**30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: card)
    assert told().startswith("H200 (140 GiB), H200 (140 GiB); flowrl train uses one, torchrun --nproc-per-node 2")


def test_doctor_doubts_full_precision_of_a_model_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flowrl.config import Config
    from flowrl.startup.doubts import doubts

    monkeypatch.setattr("flowrl.startup.doubts.device_kind", lambda config: "cuda")
    config = Config.load(CONFIGS / "quickstart.yaml")
    plan = SimpleNamespace(config=config, test=None, train=range(100), algorithm=build(config.algorithm))
    plan.workload = SimpleNamespace(optimizer_steps=4)

    def told(**changes: str) -> bool:
        model = config.model.model_copy(update=changes)
        plan.config = config.model_copy(update={"model": model})
        return any("model.dtype=bfloat16" in sentence for sentence in doubts(plan))

    assert told(path="owner/name") and not told(path="owner/name", dtype="bfloat16") and not told()
    monkeypatch.setattr("flowrl.startup.doubts.device_kind", lambda config: "cpu")
    assert not told(path="owner/name")


def test_bugs_keep_their_traceback(flowrl, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("flowrl.score.list_rewards", broken)
    monkeypatch.setattr(sys, "argv", ["flowrl", "rewards"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.parametrize(
    "words", [("train", "x" * 5000), ("report", "x" * 5000), ("eval", "x" * 5000, "--suite", "ocr")]
)
def test_names_that_no_file_can_have_are_one_short_sentence(flowrl, words: tuple[str, ...]) -> None:
    result = flowrl(*words)
    assert result.code == 2 and "Traceback" not in result.err and len(result.err) < 800, result.err[:900]

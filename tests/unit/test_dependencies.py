"""flowrl on the libraries it stands on: which of their functions it needs, and what it says where one is missing."""

import importlib.util
import inspect
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from torch import nn
from transformers import PretrainedConfig

from flowrl import errors
from flowrl.commands import doctor
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.models import check_parity
from flowrl.models.lora import Adaptation, LoRAOptions, adapt, trained_parameters
from flowrl.models.placement import Placement
from flowrl.models.text.network import Network
from flowrl.records import machine
from flowrl.startup.preflight import check_run


def small_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes))


def test_an_adapter_needs_peft_alone(monkeypatch):
    """transformers 5.24 demands a release of PEFT in `add_adapter` that the index does not have."""
    from transformers import PreTrainedModel

    def refuse(*args, **kwargs):
        raise ImportError("The version of PEFT you are using is not compatible, please use a version >= 0.99.0")

    monkeypatch.setattr(PreTrainedModel, "add_adapter", refuse)
    network, ids = small_llama(), torch.arange(12).view(2, 6)
    before = network(ids).logits
    options = LoRAOptions(rank=2, alpha=4)
    adapt(network, options, defaults=("q_proj", "v_proj"))
    trained = trained_parameters(network, options)
    layers = [f"model.layers.{i}.self_attn.{n}.lora_{s}" for i in (0, 1) for n in ("q_proj", "v_proj") for s in "AB"]
    assert sorted(trained.parameters) == sorted(f"{name}.default.weight" for name in layers)
    assert torch.equal(network(ids).logits, before)
    with torch.no_grad():
        for parameter in trained.parameters.values():
            parameter.add_(0.1)
    assert (network(ids).logits - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (
            ImportError("torchao 0.1 is too old\nmore"),
            r"PEFT cannot adapt LlamaForCausalLM \(model.lora\): torchao 0.1",
        ),
        (ValueError("Target module Odd() is not supported."), "model.lora.targets q_proj: Target module Odd"),
        (ValueError("remove it from `target_modules` to"), "model.lora.targets q_proj: remove it"),
    ],
)
def test_what_is_blamed_is_the_cause(monkeypatch, failure, said):
    def refuse(*args, **kwargs):
        raise failure

    monkeypatch.setattr("peft.inject_adapter_in_model", refuse)
    with pytest.raises(UserError, match=said) as caught:
        adapt(small_llama(), LoRAOptions(rank=2, targets=("q_proj",)))
    assert caught.value.__cause__ is failure
    assert ("targets" in str(caught.value)) == ("arget" in str(failure))


# ---- the name


def test_the_hint_installs_the_extra_of_what_runs(monkeypatch, tmp_path):
    root = Path(errors.__file__).parents[1]
    monkeypatch.chdir(root)
    assert errors.install_command("data") == "pip install -e '.[data]'"
    monkeypatch.chdir(tmp_path)
    assert errors.install_command("data") == f"pip install -e '{root}[data]'"
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "site-packages/flowrl/errors.py"))
    assert errors.install_command("data") == "pip install 'flowrl-finetune[data]'"
    assert str(errors.missing_package("prompts", "datasets", "data", "leave them out")) == (
        "prompts needs the package datasets: pip install 'flowrl-finetune[data]', or leave them out"
    )


def test_no_text_installs_the_other_project_of_our_name():
    """`flowrl` on the Python package index is not this project."""
    root = Path(errors.__file__).parents[1]
    named = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout.split()
    texts = {
        name: (root / name).read_text() for name in named if name.endswith((".py", ".md", ".yaml", ".toml", "run"))
    }
    wrong = re.compile(r"pip install[^\n&;]*[ '\"]flowrl(?![-\w/])|\bflowrl\[")
    assert not [
        name for name, text in texts.items() if wrong.search(text) and name != "tests/unit/test_dependencies.py"
    ]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["name"] == errors.DISTRIBUTION == "flowrl-finetune"


# ---- names that move


@pytest.mark.parametrize("name", ["cache", "past_key_values", "cache_params"])
def test_a_cache_is_given_and_taken_by_the_models_own_name(name):
    """transformers 5.24 calls it `cache`, earlier ones and the code of checkpoints otherwise."""
    seen = []

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.config = nn.Linear(2, 3), PretrainedConfig()

        def get_output_embeddings(self):
            return self.head

        def forward(self, **given):
            seen.append((given.get(name), given["use_cache"]))
            kept = {name: f"after {given[name]}"} if given["use_cache"] else {}
            return SimpleNamespace(logits=self.head(torch.ones(1, 1, 2)), **kept)

    takes = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in ("input_ids", name, "use_cache")]
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    Model.forward.__signature__ = inspect.Signature([itself, *takes])
    network, at = Network(Model(), Adaptation({}, None), Placement("cpu", torch.float32)), torch.tensor([0])
    inputs = {"input_ids": torch.tensor([[1]])}
    assert network.read(inputs, at, at).cache is None
    first = network.read(inputs, at, at, keep=True)
    assert network.read(inputs, at, at, keep=True, cache=first.cache).cache == "after after None"
    assert seen == [(None, False), (None, True), ("after None", True)]


def test_decoding_asks_for_nothing_that_is_about_to_go():
    from tests.parity.test_text_models import load

    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", DeprecationWarning)
        policy = load("llama")
        check_parity(policy)


# ---- the tested set


PROJECT = tomllib.loads((Path(errors.__file__).parents[1] / "pyproject.toml").read_text())["project"]
UNPINNED = {"ray", "vllm", "xformers", "pre-commit", "flowrl-finetune"}
"""Not part of the tests, or bound to a torch of their own."""


def wanted() -> list[Requirement]:
    """Every direct dependency, those of the extras included."""
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    return [Requirement(line) for line in lines]


def test_every_direct_dependency_is_pinned_to_a_release_that_is_supported():
    pins = machine.tested()
    assert {w.name for w in wanted()} - UNPINNED <= set(pins)
    assert not [w for w in wanted() if w.name in pins and not w.specifier.contains(pins[w.name])]
    assert not [name for name in pins if name.startswith(("nvidia", "cuda", "triton"))], "not there on macOS"


def test_every_direct_dependency_has_a_lower_bound():
    """Which `.ci/oldest` installs."""
    free = [w.name for w in wanted() if not any(bound.operator == ">=" for bound in w.specifier)]
    assert set(free) <= {*UNPINNED, "ruff", "pyright"}


def test_the_first_commands_of_the_readme_install_the_tested_set():
    root = Path(errors.__file__).parents[1]
    block = (root / "README.md").read_text().split("```")[1]
    commands = [line.partition("#")[0].split("&&") for line in block.splitlines() if "&&" in line]
    assert [c[0].strip() for c in commands] == [
        "pip install -c constraints.txt -e .",
        "pip install -c constraints.txt -e '.[test]'",
    ]
    assert (root / "constraints.txt").read_text() == (root / "flowrl/constraints.txt").read_text()


def test_the_doctor_names_what_was_not_tested(monkeypatch):
    monkeypatch.setattr(machine, "tested", lambda: {"torch": "1.0", "numpy": np.__version__, "absent": "2"})
    finding = next(s for s in doctor.check_machine(Path("runs")) if s.name == "releases")
    mine = machine.installed("torch").partition("+")[0]
    assert finding.state == "note" and f"torch {mine}" in finding.detail and "(tested: 1.0)" in finding.detail
    assert "numpy" not in finding.detail and "absent" not in finding.detail
    assert "pip install -c '" in finding.detail and "constraints.txt' -e '" in finding.detail
    monkeypatch.setattr(machine, "requires", lambda name: ["torch>=999", "numpy>=1", 'absent>=2; extra == "data"'])
    finding = next(s for s in doctor.check_machine(Path("runs")) if s.name == "releases")
    assert finding.state == "bad" and "(needed: >=999)" in finding.detail and "numpy" not in finding.detail


def test_the_doctor_knows_every_extra(monkeypatch):
    extras = {k: v for k, v in PROJECT["optional-dependencies"].items() if k not in ("docs", "test", "dev")}
    packages = {name: [Requirement(line).name.replace("-", "_") for line in lines] for name, lines in extras.items()}
    assert packages == {name: list(modules) for name, modules in doctor.EXTRAS.items()}
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pyarrow" else real(name))
    finding = next(s for s in doctor.check_machine(Path("runs")) if s.name == "extras")
    assert "data (pyarrow)" in finding.detail and "[NAME]" in finding.detail


# ---- extras that are not installed


@pytest.mark.parametrize(
    ("package", "extra", "change"),
    [
        ("rapidocr", "rewards", {"rewards": ["ocr"]}),
        ("rapidfuzz", "rewards", {"rewards": ["ocr"]}),
        ("jsonschema", "text", {"rewards": ["json_schema"]}),
        ("httpx", "server", {"rewards": ["http://127.0.0.1:9/ocr"]}),
        ("ray", "ray", {"rewards": ["ray:jpeg_compressibility"]}),
        ("datasets", "data", {"data": {"train": "hf:owner/name:train"}}),
        ("pyarrow", "data", {"data": {"train": "PROMPTS.parquet"}}),
        ("wandb", "tracking", {"log": {"trackers": ["wandb"]}}),
        ("tensorboard", "tracking", {"log": {"trackers": ["tensorboard"]}}),
        ("bitsandbytes", "quantize", {"model": {"path": "shapes", "quantize": "nf4"}}),
        ("bitsandbytes", "quantize", {"model": {"path": "shapes", "quantize_encoders": "int8"}}),
        ("bitsandbytes", "quantize", {"optimizer": {"use": "bitsandbytes.optim.AdamW8bit"}}),
        ("prodigyopt", "optimizers", {"optimizer": {"use": "Prodigy"}}),
        (
            "vllm",
            "vllm",
            {
                "model": {"path": "sudoku", "dtype": "bfloat16"},
                "algorithm": {"use": "grpo", "sampler": {"engine": "vllm"}},
            },
        ),
    ],
)
def test_a_missing_extra_is_one_sentence_before_anything_is_loaded(monkeypatch, tmp_path, package, extra, change):
    """Uninstalled: neither found nor imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "flowrl.clients.http", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Without(package), *sys.meta_path])
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else real(name))
    monkeypatch.setattr("flowrl.clients.find_spec", importlib.util.find_spec)
    monkeypatch.chdir(tmp_path)
    Path("PROMPTS.parquet").touch()
    values = {"name": "x", "model": {"path": "shapes"}, "algorithm": "flow_grpo", "rewards": ["jpeg_compressibility"]}
    config = Config.model_validate({**values, "train": {"iterations": 1}, **change})
    with pytest.raises(UserError, match=rf"needs the package {package}: pip install .*\[{extra}\]"):
        check_run(config)


class Without:
    """Finds nothing, and refuses one package, as a Python does that does not have it."""

    def __init__(self, package: str):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

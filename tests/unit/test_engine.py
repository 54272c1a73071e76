"""Rollouts by an inference engine, with a stand-in for vLLM that computes with transformers and PEFT."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from flowrl import composition
from flowrl.errors import UserError
from flowrl.math.random import seeds
from flowrl.models import LoRAOptions, load_policy
from flowrl.models.causal.engine import EngineOptions
from flowrl.parts.diagnostics import MISMATCH, MISMATCH_MAX
from flowrl.ratio_check import RatioCheck
from flowrl.samplers.causal import CausalSampler
from flowrl.step import UpdateSettings, improve
from flowrl.types import Draw, Scores, TokenTrace, prompts_of
from tests.components_text import folder
from tests.contract.toys import table_of


@dataclass
class SamplingParams:
    temperature: float
    max_tokens: int
    seed: int
    logprobs: int
    stop_token_ids: list[int]
    ignore_eos: bool
    detokenize: bool
    top_p: float = 1.0
    top_k: int = 0


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    """The part of vLLM's interface that is used, on transformers."""

    off = 0.0
    """Added to every reported log-probability, as other kernels would."""
    ends: tuple[int, ...] = ()
    """End tokens of the model's generation config."""

    def __init__(self, model: str, **options: Any) -> None:
        assert options["enable_lora"] and options["logprobs_mode"] == "processed_logprobs"
        assert options["max_lora_rank"] in (1, 8, 16, 32, 64, 128, 256, 320, 512)  # MaxLoRARanks of 0.33
        self.model, self.requests, self.options, self.states = model, [], options, []

    def sleep(self, level: int) -> None:
        self.states.append(f"sleep {level}")

    def wake_up(self) -> None:
        self.states.append("wake")

    def generate(self, prompts: list[dict], params: list[SamplingParams], *, lora_request: LoRARequest, use_tqdm: bool):
        self.requests.append(lora_request.lora_int_id)
        network = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(self.model), lora_request.lora_path)
        return [
            self._one(network, prompt["prompt_token_ids"], how) for prompt, how in zip(prompts, params, strict=True)
        ]

    def _cut(self, logp: Tensor, how: SamplingParams) -> Tensor:
        """The k most likely tokens, and of these the most likely ones up to the mass p, normalised again."""
        allowed, mass = set(), 0.0
        best = sorted(range(len(logp)), key=lambda token: -float(logp[token]))[: how.top_k or None]
        total = float(logp[best].exp().sum())
        for token in best:
            if mass < how.top_p * total:
                allowed.add(token)
            mass += float(logp[token].exp())
        inside = torch.tensor([token in allowed for token in range(len(logp))])
        return logp.masked_fill(~inside, -torch.inf).log_softmax(dim=-1)

    def _one(self, network: Any, ids: list[int], how: SamplingParams) -> Any:
        generator, tokens, found = torch.Generator().manual_seed(how.seed), [], []
        for _ in range(how.max_tokens):
            with torch.no_grad():
                logits = network(torch.tensor([[*ids, *tokens]])).logits[0, -1]
            logp = self._cut((logits / (how.temperature or 1.0)).log_softmax(dim=-1), how)
            token = int(logp.argmax() if not how.temperature else torch.multinomial(logp.exp(), 1, generator=generator))
            tokens.append(token)
            found.append({token: SimpleNamespace(logprob=float(logp[token]) + self.off)})
            if token in how.stop_token_ids or (token in self.ends and not how.ignore_eos):
                break
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(tokens), logprobs=found)])


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Any:
    vllm, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    vllm.LLM, vllm.SamplingParams, request.LoRARequest = LLM, SamplingParams, LoRARequest  # type: ignore[attr-defined]
    for name, module in (("vllm", vllm), ("vllm.lora", lora), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    made = load_policy(str(folder("llama")), family="causal", device="cpu", lora=LoRAOptions(rank=12, alpha=24))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return made


def roll(policy: Any, sampler: CausalSampler) -> tuple[Any, TokenTrace]:
    prompts = ["a b", "a b c d", "a b"]
    draw = Draw.of(seeds(0, "s", count=3), torch.tensor([0, 1, 2]), 0, 0)
    rollout = sampler(policy, policy.condition(prompts_of(prompts)), draw)
    assert isinstance(rollout.trace, TokenTrace)
    return rollout, rollout.trace


def test_the_engine_samples_with_the_weights_in_use_and_reports_their_probabilities(policy: Any) -> None:
    sampler = CausalSampler(length=5, temperature=0.7, engine="vllm")
    rollout, trace = roll(policy, sampler)
    with torch.no_grad():
        ours = policy.score(rollout.condition, trace.tokens, trace.mask, trace.tokens, temperature=0.7).logp
    assert trace.logp is not None and torch.allclose(ours, trace.logp * trace.mask, atol=1e-5)
    greedy = replace(sampler, temperature=0.0)
    own = roll(policy, replace(greedy, engine=None))[0].final
    assert torch.equal(roll(policy, greedy)[0].final, own)
    with policy.using("reference"):
        base = roll(policy, greedy)[0].final
    assert not torch.equal(base, own)
    assert policy.engine("vllm")._engine.requests == [1, 2, 3]


def test_the_engine_cuts_the_distribution_as_we_score_it(policy: Any) -> None:
    sampler = CausalSampler(length=5, temperature=0.7, top_p=0.6, top_k=4, engine="vllm")
    rollout, trace = roll(policy, sampler)
    algorithm = composition.build({"use": "grpo", "kl": 0.0, "length": 5})
    rows = algorithm.estimator.probe(rollout, policy, seeds(0, "p", count=3))
    with torch.no_grad():
        ours = algorithm.estimator(policy, rows, rollout.condition).logp
    assert trace.logp is not None and torch.allclose(ours, trace.logp * trace.mask, atol=1e-5)


def test_the_engine_stops_at_our_end_token_alone(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LLM, "ends", tuple(set(range(policy.vocabulary)) - set(policy.end_tokens)))
    _, trace = roll(policy, CausalSampler(length=5, engine="vllm"))
    assert trace.logp is not None and bool((trace.logp[trace.mask] < 0).all())  # 0 only where nothing was drawn


def test_a_mismatch_is_corrected_by_truncated_importance(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LLM, "off", -0.5)
    algorithm = composition.build(
        {"use": "grpo", "kl": 0.0, "length": 4, "token_advantage": [{"use": "truncated_importance"}]}
    )
    rollout, trace = roll(policy, CausalSampler(length=4, engine="vllm"))
    rows = algorithm.estimator.probe(rollout, policy, seeds(0, "p", count=3))
    with torch.no_grad():
        old = algorithm.estimator(policy, rows, rollout.condition)
    old = replace(old, logp=old.logp.double())
    table = table_of(torch.ones(rows.shape).double(), trace.mask, old, rows)
    advantage = algorithm.token_advantage[0](table).advantage
    assert torch.allclose(advantage[trace.mask], torch.tensor(0.5).exp().double(), atol=1e-4)
    capped = replace(algorithm.token_advantage[0], cap=1.2)(table).advantage
    assert float(capped[trace.mask].max()) == pytest.approx(1.2)


def test_without_vllm_or_without_an_adapter_one_sentence_says_so(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    full = load_policy(str(folder("llama")), family="causal", lora=None, full=True, device="cpu")
    with pytest.raises(UserError, match="LoRA weights only"):
        full.engine("vllm")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"pip install .*\[vllm\]"):
        policy.engine("vllm")
    with pytest.raises(UserError, match="no engine"):
        policy.engine("sglang")


def test_options_reach_the_engine_and_it_sleeps_between_rollouts(policy: Any) -> None:
    sampler = CausalSampler(length=2, engine="vllm")
    policy.engine_options = EngineOptions(0.3, 48, 2, sleep=True, enforce_eager=True)
    roll(policy, sampler)
    roll(policy, sampler)
    made = policy.engine("vllm")._engine
    expected = {
        "gpu_memory_utilization": 0.3, "max_model_len": 48, "tensor_parallel_size": 2, "enable_sleep_mode": True,
        "enforce_eager": True,
    }  # fmt: skip
    assert expected.items() <= made.options.items()
    assert made.states == ["sleep 1", "wake", "sleep 1"]


def test_several_end_tokens_reach_the_engine(policy: Any) -> None:
    """It stops at the first of all of them, and the mask ends there."""
    _, free = roll(policy, CausalSampler(length=12, engine="vllm"))
    ends = (int(free.tokens[0, 3]), int(free.tokens[1, 5]))
    policy.end_tokens = ends
    _, trace = roll(policy, CausalSampler(length=12, engine="vllm"))
    for row in range(3):
        stop = next((i for i, token in enumerate(free.tokens[row].tolist()) if token in ends), 11)
        assert trace.mask[row].sum() == stop + 1 and trace.tokens[row, : stop + 1].equal(free.tokens[row, : stop + 1])
    assert int(trace.mask[0].sum()) <= 4


def test_the_first_step_says_how_far_engine_and_trainer_are_apart() -> None:
    """A sentence of its own beyond what kernels explain; once a run."""
    session: Any = SimpleNamespace(
        algorithm=SimpleNamespace(sampler=CausalSampler(engine="vllm"), objective=SimpleNamespace(bounds=None)),
        config=SimpleNamespace(model=SimpleNamespace(dtype="bfloat16")),
    )
    first = RatioCheck()
    (said,) = first.notes(session, {MISMATCH: 0.004, MISMATCH_MAX: 0.3})
    assert said.startswith("log-probabilities of vllm and of the trainer differ by 0.004 on average, 0.3 at most")
    assert said.endswith("usual for different kernels")
    assert first.notes(session, {MISMATCH: 0.5, MISMATCH_MAX: 0.6}) == []
    (warned,) = RatioCheck().notes(session, {MISMATCH: 0.5, MISMATCH_MAX: 0.6})
    assert "above 0.02 on average it is more than rounding" in warned


def test_the_mismatch_is_measured_in_the_first_batch(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in reports log-probabilities that are .25 too low: mean and largest difference are that."""
    monkeypatch.setattr(LLM, "off", -0.25)
    algorithm = composition.build({"use": "grpo", "kl": 0.0, "length": 4})
    group = torch.tensor([0, 0, 1, 1])
    draw = Draw.of(seeds(0, "s", count=4), group, 0, 0)
    rollout = CausalSampler(length=4, engine="vllm")(
        policy, policy.condition(prompts_of(["a b", "a b", "c", "c"])), draw
    )
    prizes = torch.tensor([[0.0], [1.0], [1.0], [0.0]]).double()
    scores = Scores(prizes, torch.ones(1).double(), ("prize",), group, group, torch.ones(4).bool())
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0)
    advantage = algorithm.advantage(scores, {})
    settings = UpdateSettings(max_grad_norm=1.0, micro_batch=2)
    metrics = improve(policy, optimizer, algorithm, rollout, scores, advantage, settings)
    assert metrics[MISMATCH] == pytest.approx(0.25, abs=1e-4) and metrics[MISMATCH_MAX] == pytest.approx(0.25, abs=1e-4)

"""Rollouts by vLLM beside the trainer: its kernels and scheduler, with the adapter's current weights."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowrl.errors import UserError, missing_package
from flowrl.models.adapters import peft
from flowrl.models.text.condition import TextCondition
from flowrl.models.text.policy import TextPolicy
from flowrl.types import ALL_TOKENS, Truncation

SEED_LIMIT = 2**31
"""vLLM's seeds are 32 bits wide."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM 0.33 takes as the largest rank of an adapter."""


@dataclass(frozen=True)
class EngineOptions:
    """Keys of ``model.vllm``; names in brackets are vLLM's."""

    gpu_memory_utilization: float = 0.4
    """The engine's share of the GPU."""
    max_model_len: int | None = None
    """Longest prompt and completion; ``None``: the model's context, whose keys and values must fit into memory."""
    tensor_parallel: int = 1
    """GPUs over which the engine's weights are split (``tensor_parallel_size``)."""
    sleep: bool = False
    """Move the engine's weights to the host and drop its keys and values between rollouts (``enable_sleep_mode``)."""
    enforce_eager: bool = False
    """No CUDA graphs."""


class VLLMEngine:
    """A vLLM instance of a policy's base model.

    Before every rollout the adapter of the weight set in use is written to a folder, as PEFT does, and given to vLLM as
    a new LoRA request, so the engine never holds stale weights.

    Its log-probabilities are computed by other kernels than the trainer's; the difference is logged as
    ``sampler/mean_log_ratio`` and ``sampler/max_log_ratio``, and ``token_advantage: [truncated_importance]`` corrects
    for it.
    """

    def __init__(self, policy: TextPolicy, choices: EngineOptions) -> None:
        """Raises `UserError` without vLLM, without an adapter, or for too large a one."""
        try:
            import vllm  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise missing_package("sampler.engine=vllm", "vllm", "vllm") from None
        options = policy.network.adaptation.lora
        if options is None:
            raise UserError("sampler.engine=vllm takes over LoRA weights only; set model.full=false, or engine=null")
        room = next((rank for rank in RANKS if rank >= options.rank), None)
        if room is None:
            raise UserError(f"sampler.engine=vllm takes adapters of rank {RANKS[-1]} at most; lower model.lora.rank")
        self._vllm, self._policy, self._version, self._sleeps = vllm, policy, 0, choices.sleep
        limit = {} if choices.max_model_len is None else {"max_model_len": choices.max_model_len}
        self._engine = vllm.LLM(
            model=policy.source.path,
            dtype=str(policy.dtype).removeprefix("torch."),
            trust_remote_code=policy.source.trust_remote_code,
            enable_lora=True,
            max_lora_rank=room,
            gpu_memory_utilization=choices.gpu_memory_utilization,
            tensor_parallel_size=choices.tensor_parallel,
            enable_sleep_mode=choices.sleep,
            enforce_eager=choices.enforce_eager,
            logprobs_mode="processed_logprobs",  # after the temperature: of the distribution drawn from
            **limit,
        )
        self._asleep = False

    def generate(
        self,
        condition: TextCondition,
        seeds: Tensor,
        length: int,
        temperature: Sequence[float],
        truncation: Truncation = ALL_TOKENS,
    ) -> tuple[Tensor, Tensor]:
        """Tokens [N, length], padded after the end, and the log-probabilities [N, length] they were drawn with.

        ``temperature`` holds one value per row, 0 for greedy.
        """
        policy = self._policy
        cut = {"top_p": truncation.top_p, "top_k": truncation.top_k}
        cut = {name: value for name, value in cut.items() if value not in (1.0, None)}
        prompts = [
            {"prompt_token_ids": condition.prompts[index, : int(condition.lengths[index])].tolist()}
            for index in condition.index.tolist()
        ]
        settings = [
            self._vllm.SamplingParams(
                temperature=heat,
                max_tokens=length,
                seed=int(seed) % SEED_LIMIT,
                logprobs=0,  # of the drawn token only
                stop_token_ids=list(policy.end_tokens),
                ignore_eos=True,  # the ends are ours, those of the generation config among them
                detokenize=False,
                **cut,
            )
            for seed, heat in zip(seeds.tolist(), temperature, strict=True)
        ]
        if self._asleep:
            self._engine.wake_up()
        with tempfile.TemporaryDirectory() as folder:
            outputs = self._engine.generate(prompts, settings, lora_request=self._request(folder), use_tqdm=False)
        if self._sleeps:
            self._engine.sleep(level=1)
            self._asleep = True
        tokens = torch.full((len(prompts), length), policy.pad_token, dtype=torch.int64)
        logp = torch.zeros(len(prompts), length)
        for row, output in enumerate(outputs):
            made = output.outputs[0]
            count = len(made.token_ids)
            tokens[row, :count] = torch.tensor(list(made.token_ids), dtype=torch.int64)
            found = [place[token].logprob for place, token in zip(made.logprobs, made.token_ids, strict=True)]
            logp[row, :count] = torch.tensor(found)
        return tokens, logp

    def _request(self, folder: str) -> Any:
        """The adapter as it is now. vLLM caches adapters by their number, so every rollout has its own."""
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        self._version += 1
        network = self._policy.network
        peft.save_peft(network.model, network.adaptation, self._policy.source, Path(folder))
        return LoRARequest(f"rollout-{self._version}", self._version, folder)

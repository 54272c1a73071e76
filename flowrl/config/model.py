"""Keys of ``model``: the policy that is fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from flowrl.config.section import Fraction, Section
from flowrl.paths import absolute_folder

if TYPE_CHECKING:
    from flowrl.types import Acting, Beside, Residual

Family = Literal["diffusion", "masked", "causal", "control", "reward"]
_LANGUAGE = ("router_loss", "chat", "system", "chat_template_kwargs", "prefill", "max_prompt", "keep_special_tokens")
FAMILY_KEYS: dict[Family, tuple[str, ...]] = {
    "diffusion": (
        "call",
        "inputs",
        "decode_batch",
        "vae_slicing",
        "vae_tiling",
        "offload",
        "prompt_cache",
        "quantize_encoders",
    ),
    "masked": (*_LANGUAGE, "mask_token_id", "shift_logits"),
    "causal": (*_LANGUAGE, "critic", "vllm", "image_tokenizer"),
    "control": ("critic",),
    "reward": ("chat", "system"),
}
"""Keys of ``model`` that only some families have."""
NOT_OF_CONTROL = (
    *("lora", "adapter", "merge_adapters", "trained_dtype", "gradient_checkpointing", "attention", "compile"),
    *("quantize", "shard", "trust_remote_code"),
)
"""Those that all others have: small networks are trained whole."""
TRAINED_WITH = ("critic", "prompt_cache", "decode_batch", "vae_slicing", "offload")
"""Those of them that only training needs, or the machine: an export does not remember them."""


class LoRAConfig(Section):
    """Low-rank adapters."""

    rank: PositiveInt = Field(default=32, description="rank of the update of each adapted layer")
    alpha: PositiveFloat = Field(default=64, description="scale: the update is multiplied by alpha / rank")
    targets: list[str] | None = Field(
        default=None,
        description="names of the layers to adapt; null = attention projections, language: all linear layers",
    )
    dropout: Fraction = Field(default=0.0, description="dropout on the adapters' input while training")
    rslora: bool = Field(default=False, description="the update is multiplied by alpha / sqrt(rank)")
    dora: bool = Field(default=False, description="also train the lengths of the weights' columns")
    rank_pattern: dict[str, PositiveInt] = Field(
        default={}, description="other ranks, by regular expressions for the ends of layers' names"
    )
    alpha_pattern: dict[str, PositiveFloat] = Field(default={}, description="other alphas, likewise")
    parameters: list[str] = Field(
        default=[],
        description="parameters that are no layers, by the ends of their names: experts of a mixture that lie in one "
        "tensor (experts.gate_up_proj, experts.down_proj), which no name in targets reaches",
    )


class VLLMConfig(Section):
    """vLLM beside the trainer (``algorithm.sampler.engine: vllm``)."""

    gpu_memory_utilization: Fraction = Field(
        default=0.4, gt=0, description="share of the GPU's memory: weights, keys, values"
    )
    max_model_len: PositiveInt | None = Field(
        default=None, description="longest prompt and completion in tokens; null = the model's context"
    )
    tensor_parallel: PositiveInt = Field(default=1, description="GPUs over which the engine's weights are split")
    sleep: bool = Field(default=False, description="free the engine's memory while training; each rollout wakes it")
    enforce_eager: bool = Field(default=False, description="no CUDA graphs: starts sooner, decodes slower")


class ModelConfig(Section):
    """The policy that is fine-tuned."""

    path: str = Field(
        min_length=1,
        description="folder, hub id (owner/name), embedded world (shapes, sudoku, countdown, avoid), or "
        "new:ENVIRONMENT (new:gym:CartPole-v1) for an untrained policy that acts there",
    )
    call: dict[str, Any] = Field(
        default={}, description="extra arguments of the pipeline's call, such as guidance_scale"
    )
    inputs: dict[str, str] = Field(
        default={},
        description="arguments of that call which are pictures of each prompt's own, and the columns that hold their "
        "paths, from the data file's folder: image: source",
    )
    decode_batch: PositiveInt = Field(default=16, description="diffusion: images decoded at once")
    vae_slicing: bool = Field(
        default=False, description="diffusion: decode image by image inside the VAE; less memory, the same images"
    )
    vae_tiling: bool = Field(
        default=False, description="diffusion: decode large images in tiles, whose seams are blended; much less memory"
    )
    offload: Literal["none", "encoders", "sequential"] = Field(
        default="none",
        description="diffusion: what waits on the host until it is called; encoders = text encoders and VAE; sequential"
        " = the denoiser's frozen layers too, and all but the VAE layer by layer, which is slow",
    )
    prompt_cache: bool = Field(
        default=False,
        description="diffusion: keep encoded prompts on disk (in ~/.cache/flowrl/prompts, or below FLOWRL_CACHE) for"
        " later runs; they are then encoded one by one",
    )
    lora: LoRAConfig = Field(default=LoRAConfig(), description="low-rank adapters")
    full: bool = Field(default=False, description="train all weights of the network instead of LoRA")
    merge_adapters: bool = Field(
        default=False,
        description="add LoRA to copies of the weights it adapts wherever no gradient is taken: sampling, frozen weight"
        " sets; in float32, for memory of the adapted layers once more",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="precision of the frozen network; float16 with a scaled loss (optimizer.loss_scale)",
    )
    trained_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="precision of the trained weights in the network; bfloat16 (with dtype bfloat16) halves their "
        "memory: see optimizer.masters",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    gradient_checkpointing: bool = Field(default=False, description="recompute activations: less memory, slower")
    attention: str | None = Field(
        default=None,
        description="attention of diffusers or transformers: sdpa, flash, flex, xformers, ...; null = its default",
    )
    compile: bool = Field(default=False, description="torch.compile the blocks that the network repeats")
    quantize: Literal["nf4", "int8"] | None = Field(
        default=None, description="hold the frozen network's linear layers in 4 or 8 bits (QLoRA); null = as dtype"
    )
    quantize_encoders: Literal["nf4", "int8"] | None = Field(
        default=None, description="diffusion: the same for the text encoders"
    )
    shard: Literal["none", "fsdp"] = Field(
        default="none",
        description="of several processes: none = each holds the whole network; fsdp = its weights are split over them",
    )
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model")
    adapter: str | None = Field(
        default=None,
        description="LoRA to start from: folder, .safetensors file or hub id; lora has its shape unless you set it",
    )
    chat: bool | None = Field(
        default=None, description="language: wrap prompts in the tokenizer's chat template; null = if it has one"
    )
    system: str | None = Field(default=None, description="language: system message of the chat template")
    chat_template_kwargs: dict[str, Any] = Field(
        default={}, description="language: arguments of the chat template, such as enable_thinking: false"
    )
    prefill: str | None = Field(
        default=None, description="language: how every answer begins; not part of the completion"
    )
    max_prompt: PositiveInt | None = Field(default=None, description="language: longest prompt in tokens; null = any")
    keep_special_tokens: bool = Field(
        default=False, description="language: rewards see the special tokens of a completion, up to its end"
    )
    critic: Literal["auto", "none", "network", "head"] = Field(
        default="auto",
        description="causal, control: values by a network of their own or (causal) a linear head on its states; "
        "auto = a network where the algorithm learns them (ppo)",
    )
    router_loss: NonNegativeFloat = Field(
        default=0.0, description="language: weight of a mixture of experts' load-balancing loss; 0 = none"
    )
    image_tokenizer: str | None = Field(
        default=None,
        description="causal: VQModel of diffusers that makes pictures of completions, folder or hub id; null = the"
        " folder image_tokenizer in the model's, if there is one",
    )
    vllm: VLLMConfig = Field(default=VLLMConfig(), description="causal: options of the engine vLLM")
    mask_token_id: NonNegativeInt | None = Field(default=None, description="masked: id; null = the tokenizer's")
    shift_logits: bool | None = Field(
        default=None, description="masked: position i is predicted at i - 1, as by Dream; null = by model type"
    )

    @field_validator("shard", mode="before")
    @classmethod
    def _no_deepspeed(cls, value: object) -> object:
        if isinstance(value, str) and value.lower().startswith(("deepspeed", "zero")):
            raise ValueError(
                f"{value!r} is not offered; fsdp splits weights, gradients and the optimiser's state as ZeRO-3 does"
            )
        return value

    @field_validator("critic", mode="before")
    @classmethod
    def _switched(cls, value: object) -> object:
        return {True: "network", False: "none"}.get(value, value) if isinstance(value, bool) else value

    def critic_for(self, valued: bool) -> Literal["network", "head"] | None:
        """What learns the values of an algorithm that needs them (``valued``) or not."""
        if self.critic == "auto":
            return "network" if valued else None
        return None if self.critic == "none" else self.critic

    def arguments(
        self,
        family: Family,
        valued: bool = False,
        explores: bool = False,
        residual: Residual | None = None,
        tuned: tuple[int, int] | None = None,
        beside: Mapping[str, Beside] | None = None,
        acting: Acting | None = None,
        network: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Keyword arguments of `load_policy`. The adapter is loaded afterwards (`runtime.restore.open_policy`).
        ``valued``: whether the algorithm learns values; ``explores``: how much noise steps have; ``residual``: what is
        added to a policy's actions; ``tuned``: at the last steps alone (`Algorithm.tuned`); ``beside`` and ``acting``:
        what it trains beside a control policy's own network, and how that acts with it; ``network``: what else that
        has to be."""
        from flowrl.models import LoRAOptions  # torch: only when a model is about to be loaded

        plain = self.model_dump(exclude={"path", "lora", "adapter", "router_loss", *_keys_of_others(family)})
        given = self.lora.model_dump(exclude_none=True)
        given |= {key: tuple(given[key]) for key in ("targets", "parameters") if key in given}
        adapted = None if self.full else LoRAOptions(**given)
        if "critic" in plain:
            plain["critic"] = self.critic_for(valued)
        if explores:
            plain["noise"] = True
        if tuned is not None:
            plain["tuned"] = tuned
        if residual is not None:
            plain["residual"] = residual
        if family == "control" and beside is not None:
            plain |= {"beside": beside, "acting": acting}
        plain |= network or {}
        return {"path_or_pipeline": absolute_folder(self.path), "family": family, "lora": adapted, **plain}

    def unused_keys(self, family: Family) -> list[str]:
        """Keys that were set, but mean nothing for a family of models."""
        others = _keys_of_others(family) | set(NOT_OF_CONTROL if family == "control" else ())
        return sorted(key for key in others if getattr(self, key) != type(self).model_fields[key].default)


def _keys_of_others(family: Family) -> set[str]:
    """Keys that other families of models have, and this one does not."""
    return {key for keys in FAMILY_KEYS.values() for key in keys} - set(FAMILY_KEYS[family])

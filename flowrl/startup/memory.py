"""What memory a run takes, phase by phase, before anything of it is paid: from the config and shapes alone.

The phases are those that `flowrl.runtime.memory_log` measures. Counted are this process' tensors, at most at once:
- weights: the frozen network and the other parts in their precisions, in a few bits where they are quantised; every
  weight set in model.trained_dtype, its averages in float32; of model.shard=fsdp a rank's part and what is gathered;
- the optimiser's state, measured on one matrix: moments of whatever class optimizer.use names, and masters;
- gradients in float32, and what a step of a class that works on all tensors at once holds beside them;
- what is held while networks compute, counted on tensors without numbers (`flowrl.models.held_bytes`);
- on the host: images, recorded states, noise, weights that wait there, and copies for a checkpoint.

Not counted: the rewards' own models, the libraries (about 1 GB of the host; CUDA's own memory), workspaces inside
kernels, memory that an allocator keeps in reserve. tests/device compares it with what a pretended accelerator counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from flowrl.config import Config
from flowrl.config.schema import OptimizerConfig
from flowrl.devices import default_kind
from flowrl.errors import counted, is_out_of_memory
from flowrl.launcher import launch
from flowrl.models.family import embedded_models
from flowrl.models.footprint import Footprint, footprint
from flowrl.models.portions import Portions
from flowrl.models.weights import REFERENCE
from flowrl.parts.algorithm import Algorithm
from flowrl.runtime.optimizers import build_optimizer, optimizer_class, optimizer_state
from flowrl.score.kept import PICTURES_FROM
from flowrl.startup.workload import Workload, workload

FULL = 4
"""Bytes of a gradient's number, of a master, of an average."""
QUANTIZED = {"nf4": 0.5 + 4 / 64, "int8": 1.0}
"""Bytes of a number: of NF4 its 4 bits and a scale for every 64 (arXiv:2305.14314, without its double quantisation)."""
PROMPTS_KEPT = 1 << 30
"""Bytes of encoded prompts that a policy remembers at most (`flowrl.models.diffusion.condition.Encoder`)."""
ON_HOST = "data.prompts, data.group, train.images"
TRIAL = 256
"""Rows and columns of the matrix that an optimiser's state is measured on: as large as the layers of small networks,
and above the 4096 numbers below which bitsandbytes keeps 32 bits."""


@dataclass(frozen=True)
class Phase:
    """Peaks in bytes, of one device and of the host, and the config keys that would lower them."""

    device: float
    host: float
    keys: str


@dataclass(frozen=True)
class Estimate:
    """Peaks by phase, and what is not in them."""

    phases: Mapping[str, Phase]
    notes: tuple[str, ...] = ()

    @property
    def peak(self) -> float:
        """Of a device, over all phases."""
        return max(phase.device for phase in self.phases.values())

    def lines(self) -> list[tuple[str, str]]:
        """Label and text, to print; the peak is marked."""
        shown = []
        for name, phase in self.phases.items():
            most = " (peak)" if phase.device == self.peak else ""
            device = f"device {size(phase.device)}{most}, " if self.peak else ""
            text = f"{name}: {device}host {size(phase.host)}; lower: {phase.keys}"
            shown.append(("memory, estimated" if not shown else "", text))
        return shown + [("", note) for note in self.notes]


def size(count: float) -> str:
    """Bytes in words: MB or GB of 10^6 and 10^9."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def estimate(config: Config, algorithm: Algorithm, work: Workload) -> Estimate | str:
    """The memory of a checked run, or a sentence why it is not known."""
    at = _portions(config, algorithm, work)
    lora = config.model.arguments(algorithm.family).get("lora")
    found = footprint(config.model.path, algorithm.family, lora, _call(config), at)
    if found is None:
        return (
            f"the files of {config.model.path} are not on this machine, or its code is the model's own, so its memory "
            "is not known before it is loaded"
        )
    given = _Given(config, algorithm, work, found)
    notes = [] if found.computing.known else ["what its backward keeps is not known: update counts weights alone"]
    if algorithm.family != "diffusion" and config.model.max_prompt is None:
        notes.append(f"prompts are taken to have {at.prompt} tokens (model.max_prompt)")
    if getattr(algorithm.sampler, "engine", None) is not None:
        notes.append("what vLLM takes beside the trainer (model.vllm.gpu_memory_utilization) is not counted")
    if config.model.shard != "none":
        notes.append(f"model.shard: as one of {counted(given.ranks, 'ranks')}")
    return Estimate(_phases(given), tuple(notes))


def _portions(config: Config, algorithm: Algorithm, work: Workload) -> Portions:
    model, train, sampler, estimator = config.model, config.train, algorithm.sampler, algorithm.estimator
    length, prompt = getattr(sampler, "length", 0), model.max_prompt or 64
    rows = train.micro_batch if train.micro_tokens is None else max(1, train.micro_tokens // (prompt + length))
    sampled = min(train.sample_batch, work.samples)
    guidance = getattr(sampler, "guidance", None)
    most = max(1, work.training_forwards // (train.epochs * train.updates))
    return Portions(
        sampled=sampled,
        groups=-(-sampled // config.data.group),
        updated=min(rows, most),
        decoded=min(model.decode_batch, sampled),
        prompts=work.prompts,
        prompt=prompt,
        length=length,
        drawn=getattr(sampler, "block", None) or length,
        sampled_guidance=guidance,
        updated_guidance=getattr(estimator, "guidance", guidance),
        both=getattr(estimator, "cfg_grad", "both") == "both",
        dtype=model.dtype,
        trained_dtype=model.trained_dtype,
        checkpointed=model.gradient_checkpointing,
        fetched=model.offload == "sequential",
        slicing=model.vae_slicing,
        tiling=model.vae_tiling,
        valued=model.critic_for(algorithm.valued) == "network",
        widened=device_kind(config) != "cuda",
    )


def estimated_peaks(config: Config, algorithm: Algorithm) -> dict[str, tuple[float, float]]:
    """Bytes of a device and of the host by phase; empty where they are not known."""
    found = estimate(config, algorithm, workload(config, algorithm))
    return {} if isinstance(found, str) else {name: (phase.device, phase.host) for name, phase in found.phases.items()}


def _call(config: Config) -> dict[str, Any]:
    from flowrl.worlds.images import CALL

    own = CALL if embedded_models(config.model.path) is not None else {}
    return {**own, **config.model.call}


@dataclass(frozen=True)
class _Given:
    """A run and its model's sizes, and the bytes that follow."""

    config: Config
    algorithm: Algorithm
    work: Workload
    found: Footprint

    @property
    def number(self) -> float:
        """Bytes of a frozen number."""
        return 4 if self.config.model.dtype == "float32" else 2

    @cached_property
    def ranks(self) -> int:
        """Processes that hold the network together."""
        found = launch()
        return 1 if found is None or self.config.model.shard == "none" else found.size

    @property
    def frozen(self) -> float:
        """The frozen network, as it is computed with."""
        model = self.config.model
        return 0.0 if model.full else self.found.network * QUANTIZED.get(model.quantize or "", self.number)

    @property
    def base(self) -> float:
        """What of it is on the device throughout."""
        return 0.0 if self.config.model.offload == "sequential" else self.frozen / self.ranks

    @property
    def fetched(self) -> float:
        """What is there while it computes, beside what is there throughout: gathered blocks, or a layer in full
        precision of a network that is held in few bits."""
        model = self.config.model
        if model.quantize is not None:
            return self.found.largest * self.number
        number = self.trained_number if model.full else self.number
        return self.found.gathered * number * (1 - 1 / self.ranks)

    def part(self, name: str) -> float:
        """Bytes of a part of a pipeline, by its name."""
        method = self.config.model.quantize_encoders if name != "vae" else None
        return self.found.others[name] * QUANTIZED.get(method or "", self.number)

    @property
    def encoders(self) -> list[float]:
        """Bytes of every part but the denoiser and the VAE."""
        return [self.part(name) for name in self.found.others if name != "vae"]

    @property
    def vae(self) -> float:
        """Its bytes; 0 without one."""
        return self.part("vae") if "vae" in self.found.others else 0.0

    @property
    def trained_number(self) -> float:
        """Bytes of a trained number."""
        return 4 if self.config.model.trained_dtype == "float32" else 2

    @property
    def numbers(self) -> float:
        """Trained ones that this process has: adapters are whole on every rank."""
        return self.found.trained / (self.ranks if self.config.model.full else 1)

    @property
    def learnt(self) -> float:
        """With a critic's, which are in no set but the live one."""
        return self.numbers * (2 if self.config.model.critic_for(self.algorithm.valued) == "network" else 1)

    @property
    def stepped(self) -> float:
        """With those of companions, which are weight sets with an optimiser of their own."""
        return self.learnt + self.numbers * len(self.algorithm.companions)

    @property
    def named(self) -> set[str]:
        """Weight sets beside the live one."""
        names = {*self.algorithm.weight_sets, *self.algorithm.estimator.references}
        return names | ({"ema"} if self.config.train.ema is not None else set())

    @property
    def averages(self) -> set[str]:
        """Those of them that become float32 with the first update."""
        learners = (self.algorithm, *self.algorithm.companions)
        names = {average.name for learner in learners for average in learner.ema_weights}
        return self.named & (names | {"ema"})

    @property
    def sets(self) -> float:
        """All weight sets after an update."""
        older = self.config.train.staleness
        plain = self.learnt + self.numbers * (len(self.named - self.averages) + older)
        return plain * self.trained_number + self.numbers * len(self.averages) * FULL

    @property
    def others(self) -> float:
        """Parts of a pipeline, unless they wait on the host."""
        return sum(self.encoders) + self.vae if self.config.model.offload == "none" else 0.0

    @cached_property
    def state(self) -> float:
        """The optimiser's."""
        half = self.config.model.trained_dtype != "float32"
        return self.stepped * state_bytes(self.config.optimizer, half=half)

    @property
    def masters(self) -> float:
        """What of it is there before the first step."""
        half = self.config.model.trained_dtype != "float32" and self.config.optimizer.masters
        return self.stepped * FULL if half else 0.0

    @property
    def gradients(self) -> float:
        return self.learnt * FULL

    @property
    def stepping(self) -> float:
        """What a step holds beside gradients and state: classes of torch.optim but fused AdamW an intermediate result
        of all tensors, others that of one."""
        options = self.config.optimizer
        alone = self.config.model.trained_dtype != "float32" and not options.masters
        of_torch = optimizer_class(options.use).__module__.startswith("torch.optim")
        return self.gradients if of_torch and options.use != "AdamW" and not alone else 0.0

    @property
    def remembered(self) -> float:
        """Encoded prompts."""
        return min(PROMPTS_KEPT, self.work.prompts * self.work.iterations * self.found.encoded)

    @property
    def loading(self) -> float:
        """Weights while a model is loaded and checked, the reference still among them, and when the optimiser is
        there."""
        made = self.learnt + self.numbers * len(self.named | {REFERENCE})
        checking = (self.learnt + self.numbers) * self.trained_number + self.fetched + self.found.computing.probing
        kept = (self.learnt + self.numbers * len(self.named)) * self.trained_number + self.masters
        return self.base + self.others + max(made * self.trained_number, checking, kept)

    @property
    def resident(self) -> float:
        """On the device throughout: the network, its weight sets, the optimiser's state, the other parts."""
        return self.base + self.others + self.sets + self.state + self.remembered

    @property
    def image(self) -> int:
        """Numbers of an image."""
        return math.prod(self.found.image) if self.found.image else 0

    @property
    def latent(self) -> int:
        """Bytes of a sample's latents."""
        return FULL * math.prod(self.found.latent) if self.found.latent else 0

    def kept(self) -> float:
        """On the host through the update: images, recorded states, noise."""
        train, samples = self.config.train, self.work.samples
        images = samples * self.image * FULL
        small = train.images == "uint8" or (
            train.images == "auto" and images >= PICTURES_FROM and device_kind(self.config) != "cpu"
        )
        recorded = self.algorithm.sampler.recorded
        states = samples * (recorded + 1) * self.latent if recorded else 0
        noise = samples * self.work.decisions * self.latent if hasattr(self.algorithm.estimator, "draws") else 0
        return images / (FULL if small else 1) + states + noise


def _phases(given: _Given) -> dict[str, Phase]:
    config, found, held = given.config, given.found, given.found.computing
    waits = config.model.offload != "none"
    host = (sum(given.encoders) + given.vae if waits else 0.0) + (
        given.frozen if config.model.offload == "sequential" else 0.0
    )
    encoder = max(given.encoders, default=0.0) if config.model.offload == "encoders" else 0.0  # else layer by layer
    vae = given.vae if waits else 0.0
    resident, kept = given.resident, host + given.kept()
    gathered = given.fetched * (2 if config.model.full else 1)  # FSDP's gradients too, before they are parted
    update = given.gradients + max(gathered + held.updating, given.stepping)
    written = given.sets + given.state
    exported = 0.0 if config.model.full or given.ranks > 1 else given.fetched + max(held.probing, encoder, vae)
    phases = {
        "load": Phase(
            given.loading + (max(encoder, vae) if waits else 0.0),
            host + found.network * given.number,
            "model.offload, model.quantize, model.dtype",
        ),
        "sample": Phase(
            resident + max(encoder + held.encoding, given.fetched + held.sampling),
            kept,
            "train.sample_batch, train.images"
            if held.sampling >= encoder + held.encoding
            else "model.quantize_encoders",
        ),
        "decode": Phase(
            resident + vae + held.decoding, kept, "model.decode_batch, model.vae_slicing, model.vae_tiling"
        ),
        "reward": Phase(resident, kept, "train.images, the rewards' batch_size and device"),
        "update": Phase(resident + update, kept, "train.micro_batch, model.gradient_checkpointing, optimizer.use"),
        "save": Phase(resident + exported, kept + written, "train.ema, model.lora.rank"),
    }
    if not found.image:
        del phases["decode"]
    if device_kind(config) != "cpu":
        return phases
    samples = given.kept()  # of a run on the CPU that is mostly samples, other keys hardly lower it
    return {
        name: Phase(0.0, p.device + p.host, ON_HOST if samples > p.device and name != "load" else p.keys)
        for name, p in phases.items()
    }


def state_bytes(options: OptimizerConfig, *, half: bool) -> float:
    """Bytes that an optimiser keeps for each trained number, masters included, measured on a matrix; AdamW's where it
    cannot be tried on the CPU. ``half``: of weights in bfloat16."""
    weight = nn.Parameter(torch.zeros(TRIAL, TRIAL, dtype=torch.bfloat16 if half else torch.float32))
    try:
        optimizer = build_optimizer(options, [[weight]], seed=0)
        weight.grad = torch.ones(TRIAL, TRIAL)
        optimizer.step()
        tensors, _ = optimizer_state(optimizer)
    except Exception as error:  # whatever a class raises that works on accelerators alone
        if is_out_of_memory(error):
            raise
        return (2 if "8bit" in options.use else 2 * FULL) + (FULL if half and options.masters else 0)
    return sum(tensor.nbytes for tensor in tensors.values()) / weight.numel()


def device_kind(config: Config) -> str:
    """The type of the device that is trained on."""
    return default_kind() if config.model.device == "auto" else config.model.device.partition(":")[0]

"""What memory a run takes, phase by phase, before anything of it is paid: from the config and shapes alone.

Exact: frozen parameters, recorded states, images, noise, keys and values. Trained weights are counted in float32, with
AdamW's moments (a quarter of them for 8-bit classes), whatever model.trained_dtype and optimizer.use are.
Measured on shapes: what the backward keeps (`flowrl.models.footprint`). Rough: what a forward without gradient and the
VAE hold while they compute. Not counted: the rewards' own models, the libraries (about 1 GB of the host; CUDA's own
memory), memory that an allocator keeps in reserve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flowrl.config import Config
from flowrl.models.footprint import HALF, Footprint, footprint
from flowrl.parts.algorithm import Algorithm
from flowrl.score.kept import PICTURES_FROM
from flowrl.startup.workload import Workload, workload

FULL = 4
"""Bytes of a trained number, its gradient, its average, each of its moments."""
QUANTIZED = {"nf4": 0.5 + 4 / 64, "int8": 1.0}
"""Bytes of a number: of NF4 its 4 bits and a scale for every 64 (arXiv:2305.14314, without its double quantisation)."""
VAE_LAYERS = 4
"""Tensors of the VAE's last, largest layer that are held at once while it decodes."""


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
    options, length = config.model.arguments(algorithm.family), getattr(algorithm.sampler, "length", 0)
    prompt = config.model.max_prompt or 64
    found = footprint(config.model.path, algorithm.family, options.get("lora"), _call(config), prompt + length)
    if found is None:
        return (
            f"the files of {config.model.path} are not on this machine, or its code is the model's own, so its memory "
            "is not known before it is loaded"
        )
    given = _Given(config, algorithm, work, found, prompt + length)
    notes = [] if found.activations else ["what its backward keeps is not known: update counts weights alone"]
    if algorithm.family != "diffusion" and config.model.max_prompt is None:
        notes.append(f"prompts are taken to have {prompt} tokens (model.max_prompt)")
    if config.model.offload == "sequential":
        notes.append("model.offload=sequential: its largest layer comes on top")
    return Estimate(_phases(given), tuple(notes))


def estimated_peaks(config: Config, algorithm: Algorithm) -> dict[str, tuple[float, float]]:
    """Bytes of a device and of the host by phase; empty where they are not known."""
    found = estimate(config, algorithm, workload(config, algorithm))
    return {} if isinstance(found, str) else {name: (phase.device, phase.host) for name, phase in found.phases.items()}


def _call(config: Config) -> dict[str, Any]:
    from flowrl.worlds.shapes import CALL

    return {**(CALL if config.model.path == "shapes" else {}), **config.model.call}


@dataclass(frozen=True)
class _Given:
    """A run and its model's sizes, and the bytes that follow."""

    config: Config
    algorithm: Algorithm
    work: Workload
    found: Footprint
    tokens: int

    @property
    def number(self) -> float:
        """Bytes of a frozen number."""
        return 4 if self.config.model.dtype == "float32" else 2

    @property
    def base(self) -> float:
        """The frozen network on the device; the trained one of full fine-tuning is live."""
        model = self.config.model
        if model.full or model.offload == "sequential":
            return 0.0
        return self.found.network * QUANTIZED.get(model.quantize or "", self.number)

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
    def trained(self) -> float:
        """One weight set."""
        return self.found.trained * FULL

    @property
    def sets(self) -> int:
        """Weight sets: live, those of the algorithm, and the averages."""
        named = {*self.algorithm.weight_sets, *self.algorithm.estimator.references}
        return 1 + len(named | ({"ema"} if self.config.train.ema is not None else set()))

    @property
    def resident(self) -> float:
        """On the device throughout: the network, its weight sets, and the other parts unless they wait on the host."""
        others = sum(self.encoders) + self.vae if self.config.model.offload == "none" else 0.0
        return self.base + self.sets * self.trained + others

    @property
    def moments(self) -> float:
        return self.trained * (0.5 if "8bit" in self.config.optimizer.use else 2)

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
            train.images == "auto" and images >= PICTURES_FROM and _off_cpu(self.config)
        )
        recorded = self.algorithm.sampler.recorded
        states = samples * (recorded + 1) * self.latent if recorded else 0
        noise = samples * self.work.decisions * self.latent if hasattr(self.algorithm.estimator, "draws") else 0
        return images / (FULL if small else 1) + states + noise

    def forward(self, kind: str) -> float:
        """Bytes of a row's activations of a kind; under autocast with casts beside them."""
        if self.found.activations is None:
            return 0.0
        return getattr(self.found.activations, kind) * (1 if self.number == 4 else HALF / 2)


def _phases(given: _Given) -> dict[str, Phase]:
    config, work, found = given.config, given.work, given.found
    waits = config.model.offload != "none"
    host = (sum(given.encoders) + given.vae if waits else 0.0) + (
        found.network * given.number if config.model.offload == "sequential" else 0.0
    )
    trained = given.resident + given.moments
    rows = min(config.train.sample_batch, work.samples)
    cached = rows * found.cache * given.number * given.tokens + rows * found.vocabulary * FULL
    sampling = 2 * rows * given.forward("block") / max(given.tokens if found.cache else 1, 1) + cached
    decoded = min(config.model.decode_batch, rows) * given.image
    decoding = decoded * (VAE_LAYERS * found.decoder_width / 3 * given.number + FULL)
    held = "checkpointed" if config.model.gradient_checkpointing else "whole"
    update = given.trained + config.train.micro_batch * given.forward(held)
    everything = given.sets * given.trained + given.moments
    keys = "model.offload, model.quantize, model.dtype"
    phases = {
        "load": Phase(given.resident, host + found.network * given.number, keys),
        "encode": Phase(
            trained + (max(given.encoders, default=0.0) if config.model.offload == "encoders" else 0.0), host, keys
        ),
        "sample": Phase(trained + sampling, host + given.kept(), "train.sample_batch, train.images"),
        "decode": Phase(
            trained + decoding + (given.vae if waits else 0.0),
            host + given.kept(),
            "model.decode_batch, model.vae_slicing, model.vae_tiling",
        ),
        "reward": Phase(trained, host + given.kept(), "train.images, the rewards' batch_size and device"),
        "update": Phase(
            trained + update, host + given.kept(), "train.micro_batch, model.gradient_checkpointing, optimizer.use"
        ),
        "save": Phase(trained, host + given.kept() + everything, "train.ema, model.lora.rank"),
    }
    if not found.image:
        del phases["decode"]
    if _off_cpu(config):
        return phases
    return {name: replace(p, device=0.0, host=p.device + p.host) for name, p in phases.items()}


def _off_cpu(config: Config) -> bool:
    import torch

    wanted = config.model.device
    return torch.accelerator.is_available() if wanted == "auto" else not wanted.startswith("cpu")

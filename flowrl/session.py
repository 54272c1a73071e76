"""Everything a run consists of, built from a config, and its state as tensors and plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from flowrl.clients.rollouts import RolloutWorkers
from flowrl.companions import Optimizers, build_optimizers, restore_optimizers, state_of
from flowrl.config import Config
from flowrl.data import PromptSet
from flowrl.errors import UserError
from flowrl.math.random import derive
from flowrl.models import DiffusionPolicy, LoadedPolicy, export_formats, export_policy
from flowrl.models.causal.policy import CausalPolicy
from flowrl.models.control.policy import ControlPolicy
from flowrl.models.quantization import describe_quantized
from flowrl.models.text.overlong_prompts import Overlong
from flowrl.models.text.parity import check_routers
from flowrl.models.text.policy import TextPolicy
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.coefficients import with_coefficients
from flowrl.records.checkpoint import Exporter
from flowrl.records.replays import Ring
from flowrl.records.shards import below
from flowrl.runtime.optimizers import build_optimizer, optimizer_state, restore_optimizer
from flowrl.runtime.ranks import ranks as processes
from flowrl.runtime.timing import PhaseTimer
from flowrl.samplers.chunks import joined, sample
from flowrl.score import KeptSamples, Rewards, Scoring, load_rewards
from flowrl.score.gradients import check_loaded_gradients
from flowrl.score.kept import PICTURES_FROM
from flowrl.startup.inputs import fingerprint_inputs
from flowrl.startup.policies import evaluation_weights, open_policy
from flowrl.startup.preflight import CheckedRun
from flowrl.startup.records import fit_completions
from flowrl.startup.teachers import EMA, open_weight_sets
from flowrl.startup.time_grid import check_time_grid
from flowrl.startup.workload import describe_shares
from flowrl.step import UpdateSettings
from flowrl.types import Condition, Draw, Memory, Policy, Prompt, Ranks, Rollout, Sampler, Samples, first_of_group


@dataclass
class Progress:
    """How far a run is."""

    iteration: int = 0
    """Finished iterations."""
    optimizer_steps: int = 0
    samples: int = 0
    forwards: int = 0
    seconds: float = 0.0


@dataclass
class Session:
    """A run's objects. `state` and `restore` make it continue bit for bit."""

    config: Config
    policy: LoadedPolicy
    algorithm: Algorithm
    prompts: PromptSet
    heldout: PromptSet | None
    rewards: Rewards
    optimizer: torch.optim.Optimizer
    scaler: GradScaler = field(default_factory=lambda: GradScaler("cpu", enabled=False))
    """Scales the loss of a float16 network; switched off in every other precision."""
    companions: Optimizers = field(default_factory=dict)
    """The optimisers of the algorithm's companions."""
    memory: Memory = field(default_factory=dict)
    """State of the algorithm over iterations: of its advantage, and the values of its coefficients."""
    progress: Progress = field(default_factory=Progress)
    ranks: Ranks = field(default_factory=processes)
    """The processes that train together."""
    workers: RolloutWorkers | None = None
    """What samples for training instead of this process."""
    ring: Ring | None = None
    """Where a run's samples are kept, from which its algorithm may learn again; ``None``: nothing is kept."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of what the run reads, for the manifests of its checkpoints."""
    notes: Sequence[str] = ()
    """What to say at the start: what is trained, and what the self-checks found."""

    @property
    def present_algorithm(self) -> Algorithm:
        """The algorithm with what its coefficients are in this iteration."""
        return with_coefficients(self.algorithm, self.memory)

    def set_learning_rates(self) -> None:
        """Give the optimiser the coming iteration's `learning_rates`."""
        for group, rate in zip(self.optimizer.param_groups, self.learning_rates(), strict=True):
            group["lr"] = rate
        for each in self.algorithm.companions:
            for group in self.companions[each.name].param_groups:
                group["lr"] = (each.lr or self.config.optimizer.lr) * self._schedule()

    def learning_rate(self) -> float:
        """The policy's rate in the coming iteration: linear warm-up over optimiser steps, then constant, linear or
        cosine to 0; 0 while only the critic learns."""
        options = self.config.optimizer
        return 0.0 if self.progress.iteration < options.critic_warmup else options.lr * self._schedule()

    def learning_rates(self) -> list[float]:
        """That of every group of the optimiser: the policy's, then the critic's, if there is one."""
        options = self.config.optimizer
        critic = 10 * options.lr if options.critic_lr is None else options.critic_lr
        return [self.learning_rate(), critic * self._schedule()][: len(self.optimizer.param_groups)]

    def _schedule(self) -> float:
        """The factor on the rates in the coming iteration."""
        options, train, done = self.config.optimizer, self.config.train, self.progress.optimizer_steps
        if done < options.warmup:
            return (done + 1) / options.warmup
        total = train.iterations * train.updates * train.epochs
        share = (done - options.warmup) / max(total - options.warmup, 1)
        factor = {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}
        return max(factor[options.schedule], 0.0)

    def update_settings(self) -> UpdateSettings:
        """How the samples of the coming iteration are turned into updates."""
        train = self.config.train
        return UpdateSettings(
            updates=train.updates,
            epochs=train.epochs,
            split=train.split,
            micro_batch=train.micro_batch,
            micro_tokens=train.micro_tokens,
            max_grad_norm=self.config.optimizer.max_grad_norm,
            seed=derive(train.seed, "split", self.progress.iteration),
        )

    def policy_metrics(self) -> Mapping[str, float]:
        """What the policy itself measured since it was last asked, on all processes: a mixture's routers."""
        return self.policy.metrics(self.ranks) if isinstance(self.policy, TextPolicy) else {}

    def advance(self, steps: int, samples: int, forwards: int) -> None:
        """Count a finished iteration, of so many optimiser steps, samples and network forwards."""
        self.progress.iteration += 1
        self.progress.optimizer_steps += steps
        self.progress.samples += samples
        self.progress.forwards += forwards

    def follow(self, steps: int) -> None:
        """Let weight sets follow the live one after so many optimiser steps, with the next values of coefficients."""
        done, young = self.progress.optimizer_steps, (1 + self.progress.iteration) / (10 + self.progress.iteration)
        for average in self.present_algorithm.ema_weights:
            self.policy.update_ema(average.name, average.decay(done, done - steps))
        if self.config.train.ema is not None:  # a young average should not be the base's
            self.policy.update_ema(EMA, min(self.config.train.ema, young))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """``(tensors, values)`` of everything that changes: weight sets, optimiser, memory, progress and the
        scale of the loss."""
        tensors = {f"weights/{key}": value for key, value in self.policy.weights.state().items()}
        moments, numbers = optimizer_state(self.optimizer)
        tensors |= {f"optimizer/{key}": value for key, value in moments.items()}
        values = {"progress": vars(self.progress), "memory": self.memory, "scaler": self.scaler.state_dict()}
        values |= {"optimizer": numbers} if numbers else {}
        moments, numbers = state_of(self.companions)
        tensors |= {f"companions/{key}": value for key, value in moments.items()}
        values |= {"companions": numbers} if numbers else {}
        return tensors, values

    def portion(self, draw: Draw) -> tuple[Draw, bool]:
        """This process' part of a draw, and whether it is a spare sample, made of the first seed because no other is
        left: whole groups, or single samples where there are fewer groups than processes and no reward compares the
        samples of a group."""
        if self.ranks.size == 1:
            return draw, False
        starts = first_of_group(draw.group)
        units = len(draw)
        place = torch.arange(units)
        if int(starts.sum()) >= self.ranks.size or self.rewards.grouped:
            units, place = int(starts.sum()), starts.cumsum(dim=0) - 1
        part = self.ranks.share(units)
        rows = ((place >= part.start) & (place < part.stop)).nonzero()[:, 0]
        return draw.take(rows if len(rows) else torch.tensor([0])), not len(rows)

    def sample_and_decode(
        self,
        draw: Draw,
        sampler: Sampler,
        weights: str,
        rows: int,
        timer: PhaseTimer,
        scoring: Scoring | None = None,
    ) -> tuple[Rollout, Samples]:
        """Sample with a weight set, ``rows`` at a time, and decode: ``(rollout, what rewards may see)``. Every chunk
        goes to ``scoring`` as soon as it is decoded, and is scored while the next one is sampled. Without
        ``scoring``, images are as they were made."""
        kept = KeptSamples(len(draw), **({} if scoring is None else {"pictures_from": self._pictures_from()}))
        texts = dict(zip(draw.group.tolist(), draw.prompts, strict=True))

        with timer("sample"):
            condition = self.policy.condition(draw.prompts)
        if self.workers is not None and scoring is not None:
            memory = self.memory if self.algorithm.coefficients else {}
            found = self.workers.sample(draw, condition, sampler, rows, memory, self.policy.device)
            parts: list[Rollout] = []
            while True:
                with timer("sample"):  # what it waits for the next worker, while the samples before are scored
                    made, decoded = next(found, (None, []))
                if made is None:
                    break
                samples = kept.add(as_samples([texts[group] for group in made.group.tolist()], decoded, made.feedback))
                with timer("reward"):
                    scoring.add(samples)
                parts.append(made)
            return joined(parts, condition, draw.group), kept.all()

        def watched(policy: Policy, condition: Condition, part: Draw) -> Rollout:
            with timer("sample"):
                made = sampler(policy, condition, part)
            with timer("decode"):
                prompts = [texts[group] for group in made.group.tolist()]  # of what was made, also where it is more
                samples = kept.add(as_samples(prompts, policy.decode(made.final), made.feedback))
            if scoring is not None:
                with timer("reward"):  # what it waits for rewards that are behind
                    scoring.add(samples)
            return made

        with self.policy.using(weights) as policy, policy.own_pace():
            rollout = sample(cast(Sampler, watched), policy, condition, draw, rows)
        return rollout, kept.all()

    def _pictures_from(self) -> float:
        """Bytes of an image from which on ``train.images`` keeps uint8 of what has been scored. ``auto`` looks at all
        images of an iteration, whatever this process has of them."""
        images, data = self.config.train.images, self.config.data
        if images == "auto" and self.policy.device.type != "cpu":
            return PICTURES_FROM / (data.prompts * data.group)
        return 0.0 if images == "uint8" else math.inf

    def exporters(self) -> dict[str, Exporter]:
        """What a checkpoint holds besides its state, in the formats users load elsewhere: the adapter, for diffusers
        and for PEFT, with the weights that the run evaluates (the average, where it has one). A fully trained network
        has none, and one that is split over processes writes none while it trains; their checkpoints hold the state
        alone, and ``flowrl export`` makes the others from it."""
        if self.policy.is_split:
            return {}
        folders = {"diffusers": "lora", "peft": "peft"}
        return {folders[to]: partial(self._export, to) for to in export_formats(self.policy) if to in folders}

    def _export(self, to: str, path: Path) -> None:
        with self.policy.using(evaluation_weights(self.config)):
            export_policy(self.policy, path, to)

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        try:
            self.policy.weights.load(below(tensors, "weights/"))
        except ValueError as error:
            raise UserError(f"the checkpoint does not fit the model of the config: {error}") from error
        try:
            restore_optimizer(self.optimizer, below(tensors, "optimizer/"), values.get("optimizer", {}))
            restore_optimizers(self.companions, below(tensors, "companions/"), values.get("companions", {}))
            if self.scaler.is_enabled() and values.get("scaler"):  # runs of before loss scaling have none
                self.scaler.load_state_dict(values["scaler"])
            self.memory = dict(values["memory"])
            self.progress = Progress(**values["progress"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"the checkpoint's state is not one of this flowrl ({type(error).__name__}: {error}); use the version"
                " that wrote it"
            ) from error


def as_samples(prompts: Sequence[Prompt], decoded: Tensor | list[str], feedback: Tensor | None = None) -> Samples:
    """What rewards may see of decoded images [N, 3, H, W] or texts."""
    if isinstance(decoded, Tensor):
        return Samples(prompts, images=decoded, feedback=feedback)
    return Samples(prompts, completions=decoded, feedback=feedback)


def open_session(run: CheckedRun, say: Callable[[str], None] = lambda text: None) -> Session:
    """Load rewards and model of a checked run, the cheaper first; ``say`` is told what comes next.

    Raises:
        UserError: a reward or the model cannot be loaded, or the model does not fit the config.
    """
    config, algorithm = run.config, run.algorithm
    say("loading the rewards" if len(config.rewards) > 1 else f"loading the reward {config.rewards[0].use}")
    rewards = load_rewards(config.rewards, on_nan=config.on_nan, given=run.given)
    rewards.check(run.train.prompts)
    if algorithm.judged:
        check_loaded_gradients(rewards)
    say(f"loading the model {config.model.path}")
    policy = open_policy(config, shard=True)
    train, test, notes = run.train, run.test, []
    if isinstance(policy, DiffusionPolicy):
        guidance = _check_guidance(run, policy)
        notes = [*check_time_grid(algorithm, policy), *guidance]
        _check_rounds(run, policy)
    elif not isinstance(policy, ControlPolicy):
        if config.model.router_loss:
            check_routers(policy)
        train, test, notes = _fit_prompts(run, policy)
    taught = open_weight_sets(config, policy, algorithm)
    return Session(
        config,
        policy,
        algorithm,
        train,
        test,
        rewards,
        _build_optimizer(config, policy),
        GradScaler(policy.device.type, init_scale=config.optimizer.loss_scale, enabled=config.model.dtype == "float16"),
        companions=build_optimizers(config, policy, algorithm),
        inputs=fingerprint_inputs(config, run.train, run.test, run.given),  # now that the hub's files are here
        notes=[
            policy.adaptation.describe(),
            *taught,
            *([] if config.model.quantize is None else [describe_quantized(trained_network(policy))]),
            *notes,
            *describe_shares(processes(), config.data.prompts, config.data.group, rewards.grouped),
            *rewards.remarks,
        ],
    )


def trained_network(policy: LoadedPolicy) -> nn.Module:
    """The network that is trained."""
    return policy.network if isinstance(policy, DiffusionPolicy | ControlPolicy) else policy.network.model


def _build_optimizer(config: Config, policy: LoadedPolicy) -> torch.optim.Optimizer:
    """The optimiser of the policy's parameters and, as its second group, the critic's."""
    critic = policy.critic_parameters() if isinstance(policy, CausalPolicy | ControlPolicy) else []
    policy_alone = policy.parameters()[: len(policy.parameters()) - len(critic)]
    return build_optimizer(config.optimizer, [policy_alone, critic], derive(config.train.seed, "optimizer"))


def _check_guidance(run: CheckedRun, policy: DiffusionPolicy) -> list[str]:
    """Raise `UserError` for a guidance that the pipeline cannot follow; a sentence where it takes another's place."""
    algorithm, evaluation = run.algorithm, run.config.eval
    heldout = algorithm.sampler.heldout(evaluation.sampling_steps, evaluation.guidance, None)
    policy.check_guidance(vars(algorithm.estimator).get("guidance"))
    notes = []
    for key, sampler in (("algorithm.sampler.guidance", algorithm.sampler), ("the evaluation's guidance", heldout)):
        scale = vars(sampler).get("guidance")
        given = policy.check_guidance(scale)
        if given is not None:
            notes.append(f"{key} {scale:g} takes the place of the scale {given:g} in model.call")
    return notes


def _check_rounds(run: CheckedRun, policy: DiffusionPolicy) -> None:
    """Raise `UserError` where samples of several rounds could not be trained together."""
    if run.algorithm.selection.rounds > 1 and policy.encoder.ragged:
        raise UserError(
            "algorithm.selection replaces groups, but this pipeline pads a prompt to the longest of its batch, so "
            "samples of several rounds cannot be trained together; set algorithm.selection=drop_flat_groups"
        )


def _fit_prompts(run: CheckedRun, policy: TextPolicy) -> tuple[PromptSet, PromptSet | None, list[str]]:
    """The prompts for training and testing that leave room for a completion, as ``data.overlong`` says, and what was
    done to the others."""
    sampler: Any = run.algorithm.sampler  # of any class that makes texts
    overlong, prefill = run.config.data.overlong, run.config.eval.prefill
    train, notes = _fit("train", run.train, policy, sampler.length, overlong)
    train, further = fit_completions(run.algorithm, policy, train, overlong)
    test, notes = None, [*notes, *further]
    if run.test is not None:
        with nullcontext() if prefill is None else policy.prefilled(prefill):
            test, further = _fit("test", run.test, policy, sampler.length, overlong)
        test, more = fit_completions(run.algorithm, policy, test, overlong, "test")
        notes += further + more
    return train, test, [*notes, *([] if getattr(sampler, "engine", None) else policy.remarks(sampler.length))]


def _fit(
    name: str, prompts: PromptSet, policy: TextPolicy, length: int, overlong: Overlong
) -> tuple[PromptSet, list[str]]:
    """Prompts with room for a completion, and what was done to the others."""
    fitting = PromptSet(tuple(policy.fit_prompts(prompts.prompts, length, overlong)))
    dropped = len(prompts) - len(fitting)
    cut = 0 if dropped else sum(a is not b for a, b in zip(prompts.prompts, fitting.prompts, strict=True))
    if not dropped and not cut:
        return fitting, []
    what = "left out" if dropped else "shortened"
    return fitting, [f"data.{name}: {dropped or cut} of {len(prompts)} prompts are too long and were {what}"]

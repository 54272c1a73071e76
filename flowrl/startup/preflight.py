"""Everything that can be found wrong with a run before its model is loaded."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from flowrl.clients.ray import check_placement
from flowrl.composition import build
from flowrl.config import Config
from flowrl.config.model import VLLMConfig
from flowrl.data import PromptFormat, PromptSet, load_prompts, with_pictures
from flowrl.environments import check_environment
from flowrl.errors import UserError, missing_package
from flowrl.files import check_writable
from flowrl.launcher import is_first
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.regularizers import RouterBalance
from flowrl.parts.token_advantages import TruncatedImportance
from flowrl.runtime.optimizers import check_optimizer
from flowrl.runtime.trackers import check_trackers
from flowrl.samplers.causal import CausalSampler
from flowrl.score.given import Given, is_given
from flowrl.score.gradients import check_gradients
from flowrl.score.registry import check_reward
from flowrl.startup.model_checks import check_model
from flowrl.startup.records import fit_records, prepared_records, reads_tests
from flowrl.startup.teachers import check_teachers
from flowrl.startup.workload import Workload, workload


@dataclass(frozen=True)
class CheckedRun:
    """A checked run."""

    config: Config
    algorithm: Algorithm
    workload: Workload
    train: PromptSet
    test: PromptSet | None
    given: Given = field(default_factory=dict)
    """Rewards that are functions of this process."""


def check_run(config: Config, given: Given | None = None) -> CheckedRun:
    """Check a run before anything of it is loaded, what is cheap first. ``given``: rewards that are functions of this
    process.

    Raises:
        UserError: an unknown algorithm or part, keys that mean nothing here, an impossible batch, or a missing folder,
            tracker, engine, model, reward or prompt file.
    """
    if is_first():
        check_writable(config.directory, "out")
    algorithm = build(config.algorithm)
    config = fit_records(config, algorithm)
    counts = workload(config, algorithm)
    _check_unused(config, algorithm)
    _check_critic(config, algorithm)
    _check_shard(config, algorithm)
    _check_staleness(config, algorithm)
    _check_replay(algorithm)
    _check_workers(config, algorithm)
    check_optimizer(
        config.optimizer,
        critic=config.model.critic_for(algorithm.valued) is not None or algorithm.judges,
        half=config.model.trained_dtype == "bfloat16",
    )
    if config.model.router_loss:
        balanced = RouterBalance(config.model.router_loss)
        algorithm = replace(algorithm, regularizers=(*algorithm.regularizers, balanced))
    _check_evaluation(config, algorithm)
    if is_first():
        check_trackers(config.log.trackers)
    _check_engine(config, algorithm)
    config = check_model(config, algorithm.family)
    for reward in config.rewards:
        check_reward(reward.use, given)
        if is_given(reward.use) and reward.process:
            raise UserError(
                f"rewards: {reward.use} is a function of this process, and process=true is for code in a file; write it"
                " into one and name it path.py:function, or remove process"
            )
    if algorithm.judged:
        _check_judged(config)
        check_gradients(config.rewards, given)
    train = prepared_records(algorithm, read_prompts(config, config.data.train), f"data.train {config.data.train}")
    check_teachers(config, algorithm, train)
    test = None if config.data.test is None else read_prompts(config, config.data.test)
    if test is not None and reads_tests(algorithm):
        test = prepared_records(algorithm, test, f"data.test {config.data.test}")
    if algorithm.family == "diffusion":
        _check_texts((train, test))
    return CheckedRun(config, algorithm, counts, train, test, dict(given or {}))


def _check_unused(config: Config, algorithm: Algorithm) -> None:
    unused = config.model.unused_keys(algorithm.family)
    if unused:
        raise UserError(
            f"model.{unused[0]} means nothing for {algorithm.family} models, which this algorithm trains; remove it"
        )
    if config.train.micro_tokens is not None and algorithm.family in ("diffusion", "control"):
        raise UserError(
            f"train.micro_tokens counts tokens, and this algorithm trains a {algorithm.family} model; set"
            " train.micro_batch"
        )


def _check_judged(config: Config) -> None:
    """Raise `UserError` for what a gradient through decoding cannot go through."""
    model = config.model
    why = "this algorithm follows the gradient of its rewards through decoding"
    if model.offload != "none":
        raise UserError(f"model.offload={model.offload} sends the decoder away, and {why}; set model.offload=none")
    if model.shard != "none":
        raise UserError(f"model.shard={model.shard} needs equal work of all processes, and {why}; set model.shard=none")


def _check_evaluation(config: Config, algorithm: Algorithm) -> None:
    try:
        algorithm.sampler.heldout(config.eval.sampling_steps, config.eval.guidance, config.eval.temperature)
    except ValueError as error:
        raise UserError(f"eval: {error}") from error
    if config.eval.prefill is not None and algorithm.family in ("diffusion", "control"):
        raise UserError(
            f"eval.prefill means nothing for {algorithm.family} models, which this algorithm trains; remove it"
        )
    environment = getattr(algorithm.sampler, "environment", None)
    if environment is not None:
        check_environment(environment)


def _check_critic(config: Config, algorithm: Algorithm) -> None:
    """Raise `UserError` for values without a critic, or settings of one that is not there."""
    critic, options = config.model.critic_for(algorithm.valued), config.optimizer
    if algorithm.valued and critic is None:
        raise UserError("this algorithm learns a critic, which the model does not have; set model.critic=network")
    for name, given in (("critic_lr", options.critic_lr is not None), ("critic_warmup", options.critic_warmup > 0)):
        if given and critic is None and not algorithm.judges:
            raise UserError(f"optimizer.{name} is a critic's, which this algorithm does not learn; remove it")
    if options.critic_warmup >= config.train.iterations:
        raise UserError(
            f"optimizer.critic_warmup={options.critic_warmup} leaves no iteration of {config.train.iterations} in which"
            " the policy learns; lower it"
        )


def _check_shard(config: Config, algorithm: Algorithm) -> None:
    """Raise `UserError` for what a network that is split over the processes cannot do."""
    model, sampler = config.model, algorithm.sampler
    if model.shard == "none":
        return
    engine = isinstance(sampler, CausalSampler) and sampler.engine is not None
    conflicts = {
        "cannot exchange the weights of algorithm.companions while they learn": bool(algorithm.companions),
        "has no critic that is a network of its own; set model.critic=head": model.critic_for(algorithm.valued)
        == "network",
        "cannot be compiled as well; set model.compile=false": model.compile,
        "cannot hold frozen weights in few bits; remove model.quantize": model.quantize is not None,
        "with model.full=true keeps trained weights in float32; set model.trained_dtype=float32": model.full
        and model.trained_dtype != "float32",
        "with model.full=true is updated by AdamW; set optimizer.use=AdamW": model.full
        and config.optimizer.use != "AdamW",
        "cannot adapt model.lora.parameters, which are no layers; remove them": bool(model.lora.parameters),
        "with model.full=true computes in bfloat16 or float32; change model.dtype": model.full
        and model.dtype == "float16",
        "with model.full=true cannot combine the gradients of several channels; use model.lora": model.full
        and algorithm.combination is not None,
        "with model.full=true cannot hand its weights to an engine; leave algorithm.sampler.engine out": model.full
        and engine,
    }
    for problem, wrong in conflicts.items():
        if wrong:
            raise UserError(f"model.shard={model.shard} {problem}, or set model.shard=none")


def _check_workers(config: Config, algorithm: Algorithm) -> None:
    """Raise `UserError` for rollout workers that cannot be, or options of ones that are not there."""
    rollouts = config.rollouts
    if not rollouts.workers:
        if rollouts.ray:
            raise UserError("rollouts.ray places workers, and rollouts.workers is 0; set it, or remove rollouts.ray")
        return
    check_placement(rollouts.ray, "rollouts.ray")
    if config.model.shard != "none":
        raise UserError(
            f"model.shard={config.model.shard} splits the weights, which rollouts.workers need whole; set"
            " model.shard=none, or rollouts.workers=0"
        )
    if asked := getattr(algorithm.sampler, "weight_sets", ()):
        raise UserError(
            f"rollouts.workers={rollouts.workers}: workers have the weights that sample alone, and"
            f" algorithm.sampler asks {', '.join(asked)} as well; set it to 0"
        )
    if importlib.util.find_spec("ray") is None:
        raise missing_package(f"rollouts.workers={rollouts.workers}", "ray", "ray", "set it to 0")


def _check_staleness(config: Config, algorithm: Algorithm) -> None:
    """Raise `UserError` where samples of older weights would be taken for those of the present ones.

    They are corrected for by a ratio to the sampler's own likelihood, or by importance weights of the tokens. A token
    advantage has the old likelihood measured anew, so that the ratio is no longer one to the sampler.
    """
    if not config.train.staleness:
        return
    weighted = any(isinstance(part, TruncatedImportance) for part in algorithm.token_advantage)
    if (algorithm.family == "causal" and weighted) or _knows_old_policies(algorithm):
        return
    fix = "set train.staleness=0"
    if algorithm.family == "causal":
        fix = f"add algorithm.token_advantage: [truncated_importance], or {fix}"
    raise UserError(
        f"train.staleness={config.train.staleness} samples with older weights, and nothing in this algorithm corrects"
        " for them: that needs a ratio to the likelihood that the sampler records, or importance weights of tokens; "
        f"{fix}"
    )


def _knows_old_policies(algorithm: Algorithm) -> bool:
    """Whether it learns from decisions whoever made them, or its ratio is to the likelihood that the sampler recorded,
    whatever weights sampled."""
    if getattr(algorithm.objective, "off_policy", False):
        return True
    recorded = algorithm.estimator.has_recorded_logp and not algorithm.token_advantage
    return recorded and algorithm.objective.needs_old_logp and algorithm.behaviour == "live"


def _check_replay(algorithm: Algorithm) -> None:
    """Raise `UserError` where samples of earlier iterations could not be learned from as what they are."""
    if algorithm.replay is None:
        return
    if not _knows_old_policies(algorithm):
        trusting = hasattr(algorithm.estimator, "trust_rollout")
        fix = "set algorithm.estimator.trust_rollout=true, or " if trusting else ""
        raise UserError(
            "algorithm.replay brings back samples of older weights, and nothing in this algorithm corrects for them: "
            "that needs a ratio to the likelihood that the sampler recorded, and no token_advantage; "
            f"{fix}remove algorithm.replay"
        )
    sampler = algorithm.sampler
    shared = getattr(sampler, "tree", 1) > 1
    moved = next((c.sets for c in algorithm.coefficients if c.sets.startswith("sampler.")), None)
    problems = {
        "algorithm.sampler takes its samples from the data set, which has them already": hasattr(sampler, "group"),
        "samples of a tree share parts, and come back one by one": shared,
        "algorithm.sampler.greedy_first makes one sample of a group another kind": getattr(
            sampler, "greedy_first", False
        ),
        f"a coefficient moves {moved}, and samples that it made differently are not alike": moved is not None,
        "its rewards' gradient is asked for, which is that of present samples": algorithm.judged,
    }
    for problem, wrong in problems.items():
        if wrong:
            raise UserError(f"algorithm.replay: {problem}; remove one of them")


def read_prompts(config: Config, spec: str) -> PromptSet:
    """Prompts in the form that the config gives them, with the whole paths of their pictures. Raises `UserError`."""
    found = load_prompts(spec, PromptFormat(config.data.columns, config.data.template))
    return with_pictures(found, config.model.inputs.values(), f"prompts {spec}")


def _check_texts(sets: Sequence[PromptSet | None]) -> None:
    for prompt in (prompt for found in sets if found is not None for prompt in found.prompts):
        if prompt.chat is not None:
            raise UserError(f"data: prompt {prompt.id + 1} is a conversation, and image models take a text; rewrite it")


def _check_engine(config: Config, algorithm: Algorithm) -> None:
    sampler = algorithm.sampler
    engine = sampler.engine if isinstance(sampler, CausalSampler) else None
    if engine is not None and config.model.dtype == "float32":
        raise UserError(
            f"algorithm.sampler.engine={engine} computes adapters in half precision alone, and model.dtype is float32;"
            " set model.dtype=bfloat16 or float16, or leave engine out"
        )
    if engine is not None and config.model.quantize is not None:
        raise UserError(
            f"algorithm.sampler.engine={engine} would sample from the base in full precision, and"
            f" model.quantize={config.model.quantize} trains on a rounded one; leave one of them out"
        )
    if engine is None and config.model.vllm != VLLMConfig():
        raise UserError("model.vllm holds options of an engine that is not used; set algorithm.sampler.engine=vllm")
    if engine is not None and importlib.util.find_spec(engine) is None:
        raise missing_package(f"algorithm.sampler.engine={engine}", engine, "vllm", "leave engine out")

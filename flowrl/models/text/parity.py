"""Start-up checks on random tokens: how the model can be read, whether it looks ahead, whether batches agree."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from flowrl.errors import UserError, first_line, is_out_of_memory
from flowrl.models.deviation import TOLERANCE, deviation
from flowrl.models.text.condition import TextCondition
from flowrl.models.text.network import Head, Network
from flowrl.models.text.policy import TextPolicy

LENGTHS, COMPLETION = (5, 9), 6
"""Prompt lengths and completion length of the probe."""
NOTHING = 1e-6
"""Largest deviation that still counts as no influence."""
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError, NotImplementedError)
"""What foreign model code raises for inputs that it does not take."""
DEVICE_FAULTS = ("CUDA error", "HIP error", "cuDNN error", "CUDNN_STATUS_", "CUBLAS_STATUS_", "NCCL error")
"""In RuntimeErrors that are no matter of the inputs' form."""

Probe = tuple[TextCondition, Tensor, Tensor]
"""``(condition, tokens [N, T], targets [N, T])``."""


def make_probe(policy: TextPolicy) -> Probe:
    """Two prompts of unequal length and completions of random ordinary tokens; every position is asked for."""
    prompts = [_random(policy, length, 1 + i) for i, length in enumerate(LENGTHS)]
    tokens = random_completions(policy, len(LENGTHS), COMPLETION)
    return TextCondition.of(prompts), tokens, torch.ones_like(tokens, dtype=torch.bool)


def random_completions(policy: TextPolicy, count: int, length: int) -> Tensor:
    """[count, length] ordinary tokens; every row the same at each call."""
    return torch.tensor([_random(policy, length, 11 + i) for i in range(count)])


def _random(policy: TextPolicy, count: int, seed: int) -> list[int]:
    special = set(policy.codec.tokenizer.all_special_ids) | set(policy.excluded)
    words = min(len(policy.codec.tokenizer), policy.codec.embedded or 1000, 1000)
    usable = [i for i in range(words) if i not in special]
    if not usable:
        raise UserError(
            f"the tokenizer of {policy.codec.tokenizer.name_or_path} knows special tokens alone; a file is missing"
        )
    draw = torch.randint(len(usable), (count,), generator=torch.Generator().manual_seed(seed))
    return [usable[i] for i in draw.tolist()]


@torch.no_grad()
def choose_reading(policy: TextPolicy) -> None:
    """Find the cheapest way to read the model, and how many rows and blocks may share a call."""
    network, probe = policy.network, make_probe(policy)
    reference = single_row_logits(policy, probe)
    policy.vocabulary = reference.shape[-1]
    layouts = [policy.layout, *policy.layout.fallbacks()]
    policy.layout = layouts[-1]
    failure: Exception | None = None
    for head in network.routes():
        network.head = head
        failure = _misfit(policy, probe, reference)
        if failure is None:
            break
    else:
        raise UserError(f"{network.name} cannot be trained: {failure}") from failure
    for policy.layout in layouts:
        if _misfit(policy, probe, reference) is None:
            return


@torch.no_grad()
def check(policy: TextPolicy) -> float:
    """Largest deviation of batched predictions from the model's own on single rows.

    Raises:
        UserError: where that is more than rounding, or where a part of the model is computed without gradients.
    """
    blind = layers_without_gradient(policy)
    if blind:
        raise UserError(
            f"{policy.network.name} computes {len(blind)} of its layers without gradients ({blind[0]}, ...), so its"
            " training would be wrong; unsupported"
        )
    probe = make_probe(policy)
    found = policy.logits(*probe)
    reference = single_row_logits(policy, probe)
    possible = ~found.isinf()
    worst = deviation(found[possible], reference[possible])
    if not worst <= TOLERANCE[policy.dtype]:
        raise UserError(
            f"predictions of {policy.network.name} in a batch deviate by {worst:.2g} from those on single rows;"
            " unsupported"
        )
    return worst


@torch.no_grad()
def check_routers(policy: TextPolicy) -> None:
    """Raise `UserError` where there is no load-balancing loss to train."""
    condition, tokens, targets = make_probe(policy)
    if policy.score(condition, tokens, targets, tokens).balance is None:
        raise UserError(
            f"model.router_loss needs a mixture of experts whose forward shows the scores of softmax routers"
            f" (output_router_logits of transformers), and {policy.network.name} is none; remove it"
        )


@torch.no_grad()
def predictions(policy: TextPolicy) -> Tensor:
    """Probabilities [K, V] on random tokens, the same at each call."""
    return policy.logits(*make_probe(policy)).softmax(dim=1)


def layers_without_gradient(policy: TextPolicy) -> list[str]:
    """Names of modules with weights that the model runs with gradients switched off, whatever is asked of it."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        return lambda *_: None if torch.is_grad_enabled() else found.append(name)

    holders = [
        (n, m) for n, m in policy.network.model.named_modules() if next(m.parameters(recurse=False), None) is not None
    ]
    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in holders]
    try:
        with torch.enable_grad(), policy.network.eager():
            policy.logits(*make_probe(policy))
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(found))


def single_row_logits(policy: TextPolicy, probe: Probe) -> Tensor:
    """[K, V] logits of the probe as the model itself gives them, every row by itself and nothing left out."""
    plain = copy.copy(policy)
    plain.network, plain.layout = copy.copy(policy.network), [policy.layout, *policy.layout.fallbacks()][-1]
    plain.network.head = Head("whole")
    condition, tokens, targets = probe
    rows = torch.arange(len(tokens)).split(1)
    return torch.cat([plain.logits(condition.take(row), tokens[row], targets[row]) for row in rows])


def _misfit(policy: TextPolicy, probe: Probe, reference: Tensor) -> Exception | None:
    """Why the probe's logits are not had in the policy's way of reading; ``None`` where they are."""
    try:
        found = policy.logits(*probe)
    except FAILURES as error:
        raise_fault(error)
        return error
    return None if agrees(policy, found, reference) else ValueError("it does not give the same logits twice")


def raise_fault(error: Exception) -> None:
    """Raise an error again that is no misfit of the model's code and the way it is called: memory that ran out, a
    fault of the device, a sentence of our own. Otherwise a way that would work is passed over for a slower one."""
    fault = isinstance(error, UserError) or type(error).__name__ == "AcceleratorError"
    if fault or is_out_of_memory(error) or any(sign in str(error) for sign in DEVICE_FAULTS):
        raise error


def agrees(policy: TextPolicy, found: Tensor, reference: Tensor) -> bool:
    """Whether logits are the same up to rounding, impossible tokens aside."""
    possible = ~reference.isinf()
    return found.shape == reference.shape and deviation(found[possible], reference[possible]) <= TOLERANCE[policy.dtype]


def accepts_layout(policy: TextPolicy) -> bool:
    """Whether the model can be called in the policy's layout at all."""
    try:
        single_row_logits(policy, make_probe(policy))
    except FAILURES as error:
        raise_fault(error)
        return False
    return True


@torch.no_grad()
def lookahead(policy: TextPolicy) -> float:
    """By how much, relative to the largest logit, the last of 12 tokens changes the logits of those before it."""
    ids = torch.tensor([_random(policy, 12, 21)])
    other = ids.clone()
    other[0, -1] = _different(policy, int(ids[0, -1]))
    first, second = (_logits_of(policy.network, tokens)[0, :-1] for tokens in (ids, other))
    return deviation(first, second)


def _different(policy: TextPolicy, token: int) -> int:
    return next(t for t in _random(policy, 50, 22) if t != token)


def _logits_of(network: Network, ids: Tensor) -> Tensor:
    try:
        return network.run({"input_ids": ids}).logits.float()
    except FAILURES as error:
        raise_fault(error)
        raise UserError(
            f"{network.name} gives no logits for input_ids alone ({first_line(error)}); unsupported"
        ) from error

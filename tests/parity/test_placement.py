"""What is trained is what the network computes with, also where placing a network replaces its parameters."""

from __future__ import annotations

import pytest
import torch

from flowrl.models import load_policy
from flowrl.models.weights import REFERENCE
from flowrl.types import prompts_of
from tests import pipelines
from tests.parity.conftest import PROMPTS, points


@pytest.fixture
def replacing():
    """``.to`` makes new parameters, as on XLA and on devices of other tensor types."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def look_at(policy):
    """Predictions of a policy of any family: velocities, or probabilities of tokens."""
    with torch.no_grad():
        if policy.family == "diffusion":
            x, t = points(policy)
            return policy.velocity(x, t, policy.condition(prompts_of(PROMPTS)))
        condition = policy.condition(prompts_of(["1", "2"]))
        tokens = torch.arange(8).view(2, 4) % policy.vocabulary
        return policy.logits(condition, tokens, torch.ones_like(tokens, dtype=torch.bool)).softmax(dim=1)


def owned(policy):
    """Identities of the parameters of the network and of the critic, if there is one."""
    if policy.family == "diffusion":
        return {id(p) for p in policy.network.parameters()}
    critic = getattr(policy, "critic", None)
    own = [] if critic is None else critic.parameters().values()
    return {id(p) for p in (*policy.network.model.parameters(), *own)}


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize(
    ("family", "options"), [("diffusion", {}), ("masked", {}), ("causal", {}), ("causal", {"critic": "network"})]
)
def test_parameters_are_those_of_the_placed_network(replacing, folder, family, options, full):
    if family == "diffusion":
        policy = load_policy(folder("sd3"), call=pipelines.CALLS["sd3"], full=full)
    else:
        policy = load_policy("sudoku", family=family, full=full, **options)
    assert policy.parameters() and {id(p) for p in policy.parameters()} <= owned(policy)
    start = look_at(policy)
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(0.05 * noise)
    assert float((look_at(policy) - start).abs().max()) > 1e-3
    with policy.using(REFERENCE):
        assert torch.equal(look_at(policy), start)

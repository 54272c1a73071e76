"""Mixtures of experts: the load-balancing loss against its formula, its gradients, and what the log says of routers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from flowrl.composition import build
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.tokens import BALANCE
from flowrl.estimators.views import RandomCount
from flowrl.models.causal.load import load_causal
from flowrl.models.text.parity import check_routers
from flowrl.parts.regularizers import RouterBalance
from flowrl.startup.preflight import check_run
from flowrl.step import UpdateSettings, improve
from flowrl.types import Rollout, Scores, TokenScores, TokenTrace, prompts_of
from tests import components_text
from tests.components_text import SIZES, character_tokenizer
from tests.contract.toys import rollout_of

PROMPTS = ["3+4=", "12*(5-1)=", "7="]
EXPERTS, CHOSEN, LENGTH = 4, 2, 6
MIXTURES = {
    "mixtral": (transformers.MixtralConfig, {"num_local_experts": EXPERTS}),
    "qwen3_moe": (
        transformers.Qwen3MoeConfig,
        {"num_experts": EXPERTS, "moe_intermediate_size": 16, "head_dim": 8, "decoder_sparse_step": 1},
    ),
}


@pytest.fixture(scope="module", params=MIXTURES)
def place(request, tmp_path_factory):
    kind, extra = MIXTURES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    config = kind(
        vocab_size=len(tokenizer), num_key_value_heads=2, num_experts_per_tok=CHOSEN, pad_token_id=0, eos_token_id=1,
        bos_token_id=None, **SIZES, **extra,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    components_text.sharpen(model, 4.0)
    for name, parameter in model.named_parameters():
        if name.endswith("gate.weight"):
            torch.nn.init.normal_(parameter, std=1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def completed(policy) -> Rollout:
    """Completions of unequal length."""
    tokens = torch.randint(4, len(policy.codec.tokenizer), (3, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(LENGTH) < torch.tensor([[6], [2], [4]])
    return rollout_of(policy.condition(prompts_of(PROMPTS)), tokens, TokenTrace(tokens, mask, 1.0))


def by_hand(policy, rollout: Rollout) -> torch.Tensor:
    """``E sum_e f_e P_e`` of every row by itself, from the bare model's own router logits."""
    found = []
    for row, mask in enumerate(rollout.trace.mask):
        u = rollout.condition.index[row]
        prompt = rollout.condition.prompts[u, : rollout.condition.lengths[u]]
        used = rollout.final[row, : int(mask.sum()) - 1]  # before the last token that is asked for
        ids = torch.cat([prompt, used])[None]
        layers = []
        for logits in policy.network.model(ids, output_router_logits=True).router_logits:
            probability = logits.double().softmax(-1)
            share = torch.zeros(EXPERTS, dtype=torch.double)
            for token in probability:
                for expert in token.argsort(descending=True)[:CHOSEN].tolist():
                    share[expert] += 1 / (CHOSEN * ids.shape[1])
            layers.append(EXPERTS * (share * probability.mean(dim=0)).sum())
        found.append(torch.stack(layers).mean())
    return torch.stack(found)


def test_the_loss_of_a_row_is_the_formulas(place):
    policy = load_causal(place, full=True)
    rollout = completed(policy)
    trace = rollout.trace
    score = policy.score(rollout.condition, trace.tokens, trace.mask, trace.tokens)
    expected = by_hand(policy, rollout)
    torch.testing.assert_close(score.balance.double(), expected, atol=1e-5, rtol=1e-5)
    assert (expected > 1.01).all() and expected.std() > 1e-3
    routers = [p for name, p in policy.network.model.named_parameters() if name.endswith("gate.weight")]
    assert len(routers) == SIZES["num_hidden_layers"]
    ours = torch.autograd.grad(score.balance.sum(), routers)
    theirs = torch.autograd.grad(expected.sum(), routers)
    for mine, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 1e-4
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def gradient(policy, algorithm, micro_batch: int, advantage: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of one pass, through an optimizer that only looks."""
    kept = {}

    class Look(torch.optim.SGD):
        def step(self, closure=None):
            names = {id(p): name for name, p in policy.network.model.named_parameters()}
            kept.update({names[id(p)]: p.grad.clone() for p in policy.parameters() if p.grad is not None})

    rollout, n = completed(policy), len(PROMPTS)
    scores = Scores(
        torch.randn(n, 1), torch.ones(1), ("r",), rollout.group, torch.zeros(n, dtype=torch.long),
        torch.ones(n, dtype=torch.bool),
    )  # fmt: skip
    settings = UpdateSettings(micro_batch=micro_batch, max_grad_norm=1e9)
    kept["metrics"] = improve(
        policy, Look(policy.parameters(), lr=1.0), algorithm, rollout, scores, advantage, settings
    )
    return kept


@pytest.mark.parametrize("name", ["grpo", "gspo"])  # gspo couples the decisions of a row
def test_router_gradients_only_where_asked_whatever_the_micro_batch(place, name):
    policy, nothing = load_causal(place, full=True), torch.zeros(len(PROMPTS))
    plain = replace(build(name), regularizers=())
    balanced = replace(plain, regularizers=(RouterBalance(0.5),))
    off = gradient(policy, plain, 1, nothing)
    assert not any(bool(value.any()) for key, value in off.items() if key != "metrics")
    found = [gradient(policy, balanced, size, nothing) for size in (1, 2, 3)]
    gates = [key for key in found[0] if key.endswith("gate.weight")]
    assert len(gates) == SIZES["num_hidden_layers"]
    for key in (key for key in found[0] if key != "metrics"):
        for other in found[1:]:
            torch.testing.assert_close(found[0][key], other[key], atol=1e-6, rtol=1e-4)
    assert all(found[0][key].abs().max() > 1e-4 for key in gates)
    assert found[0]["metrics"]["router/balance"] > 1.01
    rollout = completed(policy)
    rows = by_hand(policy, rollout)
    weight = plain.aggregation(rollout.trace.mask, LENGTH).sum(dim=1)
    torch.testing.assert_close(found[0]["metrics"]["loss"], float(0.5 * (weight * rows).sum()), atol=1e-5, rtol=1e-4)


def test_watching_routers_changes_nothing(place, monkeypatch):
    """Off is bit for bit what it was before routers were watched."""
    advantage = torch.tensor([1.0, -1.0, 0.5])
    watched = gradient(load_causal(place, full=True), build("grpo"), 2, advantage)
    blind = load_causal(place, full=True)
    monkeypatch.setattr(blind.network, "routers", None)
    plain = gradient(blind, build("grpo"), 2, advantage)
    assert watched.pop("metrics") == plain.pop("metrics") and watched.keys() == plain.keys()
    assert all(watched[key].equal(plain[key]) for key in plain)


def test_the_log_says_how_the_load_is_spread(place):
    policy = load_causal(place, full=True)
    assert policy.metrics() == {}
    rollout = completed(policy)
    trace = rollout.trace
    with torch.no_grad():
        policy.score(rollout.condition, trace.tokens, trace.mask, trace.tokens)
    assert policy.metrics() == {}, "only what is trained counts"
    for row in range(3):  # whatever the batches
        one = torch.tensor([row])
        policy.score(rollout.condition.take(one), trace.tokens[one], trace.mask[one], trace.tokens[one])
    found = policy.metrics()
    counts = torch.zeros(SIZES["num_hidden_layers"], EXPERTS, dtype=torch.double)
    for row, mask in enumerate(trace.mask):
        u = rollout.condition.index[row]
        prompt = rollout.condition.prompts[u, : rollout.condition.lengths[u]]
        ids = torch.cat([prompt, trace.tokens[row, : int(mask.sum()) - 1]])[None]
        for layer, logits in enumerate(policy.network.model(ids, output_router_logits=True).router_logits):
            counts[layer] += torch.bincount(logits.topk(CHOSEN).indices.flatten(), minlength=EXPERTS)
    share = counts / counts.sum(dim=1, keepdim=True)
    entropy = -(share * share.clamp(min=1e-30).log()).sum(dim=1) / torch.tensor(EXPERTS).log()
    assert found["router/busiest_share"] == pytest.approx(float(share.max(dim=1).values.mean()))
    assert found["router/load_entropy"] == pytest.approx(float(entropy.mean()), rel=1e-5)
    assert found["router/unused_share"] == float((counts == 0).double().mean())
    assert policy.metrics() == {}, "every iteration starts anew"


@pytest.mark.parametrize("per", ["view", "cell", "token"])
def test_decisions_of_masked_models_have_the_balance_of_their_views(per):
    """Against a policy that says 1, 2, ... of the rows it is asked for."""

    class Told:
        mask_token = 3

        def score(self, condition, inputs, targets, labels, **_):
            rows = torch.arange(1.0, len(inputs) + 1)
            return TokenScores(torch.zeros(inputs.shape), None, None, rows)

    tokens = torch.full((2, 4), 5)
    condition = load_causal(components_text.folder("llama")).condition(prompts_of(["3=", "4="]))
    trace = TokenTrace(tokens, torch.ones(2, 4, dtype=torch.bool), 1.0)
    estimator = MaskedViews(views=RandomCount(draws=3), per=per, entropy=False)
    rows = estimator.probe(rollout_of(condition, tokens, trace), Told(), torch.arange(2))
    views = torch.arange(1.0, 7).view(2, 3)
    assert bool(rows.targets.any(dim=2).all())
    expected = {"view": views, "cell": views.repeat_interleave(4, 1), "token": views.mean(1)[:, None].expand(2, 4)}
    torch.testing.assert_close(estimator(Told(), rows, condition).need(BALANCE), expected[per])


def test_checkpointed_layers_have_the_same_gradients(place):
    plain, saved = (load_causal(place, full=True, gradient_checkpointing=on) for on in (False, True))
    balanced = replace(build("grpo"), regularizers=(RouterBalance(0.5),))
    a, b = (gradient(policy, balanced, 3, torch.tensor([1.0, -1.0, 0.5])) for policy in (plain, saved))
    assert a["metrics"]["router/balance"] == pytest.approx(b["metrics"]["router/balance"])
    for key in (key for key in a if key != "metrics"):
        torch.testing.assert_close(a[key], b[key], atol=1e-6, rtol=1e-4)


def test_the_config_adds_the_loss_and_refuses_models_without(place):
    values = {
        "name": "mixture",
        "model": {"path": str(place), "router_loss": 0.02},
        "algorithm": "grpo",
        "data": {"train": "countdown:train", "test": None},
        "rewards": ["countdown"],
        "train": {"iterations": 1},
        "eval": {"every": 0},
    }
    assert check_run(Config.of(values)).algorithm.regularizers[-1] == RouterBalance(0.02)
    values["model"] = {"path": str(place)}
    assert RouterBalance not in map(type, check_run(Config.of(values)).algorithm.regularizers)
    check_routers(load_causal(place))
    with pytest.raises(UserError, match=r"model\.router_loss needs a mixture of experts"):
        check_routers(load_causal(components_text.folder("llama")))
    values |= {"algorithm": "flow_grpo", "data": {}, "rewards": ["shapes"]}
    values["model"] = {"path": "shapes", "router_loss": 0.02}
    with pytest.raises(UserError, match=r"model\.router_loss means nothing for diffusion models"):
        check_run(Config.of(values))

"""Weight sets, LoRA and full fine-tuning, and what a user's mistakes say."""

from __future__ import annotations

import json

import pytest
import torch

from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.models import export_formats, export_policy, load_adapter
from flowrl.models.deviation import deviation
from flowrl.models.diffusion import LoRAOptions, load_policy
from flowrl.models.diffusion.recorder import Recorder
from flowrl.session import open_session
from flowrl.startup.preflight import check_run
from flowrl.types import prompts_of
from tests import pipelines
from tests.parity.conftest import PROMPTS, move, points


@pytest.fixture(params=["lora", "full"])
def policy(request, folder):
    return load_policy(folder("sd3"), call=pipelines.CALLS["sd3"], full=request.param == "full", parity="skip")


def look(policy):
    x, t = points(policy)
    with torch.no_grad():
        return policy.velocity(x, t, policy.condition(prompts_of(PROMPTS)))


def test_weight_sets(policy):
    start = look(policy)
    identities = [p.data_ptr() for p in policy.parameters()]
    fingerprint = policy.weights.sha256("reference")
    move(policy)
    moved = look(policy)
    assert float((moved - start).abs().max()) > 1e-3
    policy.update_ema("old", 0.5)  # created as a copy of live
    move(policy)
    live = look(policy)
    with policy.using("reference"):
        torch.testing.assert_close(look(policy), start, atol=0, rtol=0)
        assert not torch.is_grad_enabled()
        with policy.using("old"):
            torch.testing.assert_close(look(policy), moved, atol=0, rtol=0)
            with policy.using("old"), policy.using("live"):
                torch.testing.assert_close(look(policy), live, atol=0, rtol=0)
        torch.testing.assert_close(look(policy), start, atol=0, rtol=0)
    with policy.using("live"):
        assert torch.is_grad_enabled()
    assert [p.data_ptr() for p in policy.parameters()] == identities
    assert policy.weights.sha256("reference") == fingerprint != policy.weights.sha256("live")


def held(policy) -> int:
    """Bytes of all weight sets but live."""
    sets = policy.weights._sets.values()
    return sum(tensor.untyped_storage().nbytes() for kept in sets for tensor in kept.values())


def test_a_dropped_reference_holds_nothing_and_is_still_known(policy):
    size = sum(p.numel() * p.element_size() for p in policy.parameters())
    fingerprint = policy.weights.sha256("reference")
    assert held(policy) == size
    policy.weights.drop_reference()
    policy.weights.drop_reference()
    assert held(policy) == 0 and policy.weights.names() == ["live"]
    move(policy)
    assert policy.weights.sha256("reference") == fingerprint != policy.weights.sha256("live")
    assert {key.split("/")[0] for key in policy.weights.state()} == {"live"}
    with pytest.raises(UserError, match="reference weights were freed, because no part"), policy.using("reference"):
        pass
    policy.update_ema("reference", 0.0)  # one that is renewed: a set like any other from here on
    assert held(policy) == size and policy.weights.sha256("reference") == policy.weights.sha256("live")


@pytest.mark.parametrize(
    ("algorithm", "kept"),
    [
        ({"use": "flow_grpo", "kl": 0.0}, False),
        ({"use": "flow_grpo", "kl": 0.01}, True),
        ({"use": "diffusion_nft", "reference": 0.0}, False),
        ({"use": "diffusion_nft", "reference": 0.0, "estimator": {"to": "reference"}}, True),
    ],
)
def test_a_run_keeps_the_reference_where_something_compares_with_it(algorithm, kept, tmp_path):
    config = Config.load("configs/quickstart.yaml", [f"out={tmp_path / 'run'}", "eval.every=0", "data.test=null"])
    session = open_session(check_run(config.model_copy(update={"algorithm": algorithm})))
    assert ("reference" in session.policy.weights.names()) == kept
    assert len(session.policy.weights.sha256("reference")) == 64


def test_restores_after_an_error(policy):
    move(policy)
    before = look(policy)
    with pytest.raises(ZeroDivisionError), policy.using("reference"):
        raise ZeroDivisionError
    torch.testing.assert_close(look(policy), before, atol=0, rtol=0)
    with (
        pytest.raises(UserError, match="no weights called 'refrence'; did you mean 'reference'"),
        policy.using("refrence"),
    ):
        pass


def test_follow_is_the_moving_average(policy):
    policy.update_ema("ema", 0.9)
    first = [p.detach().clone() for p in policy.parameters()]
    move(policy)
    policy.update_ema("ema", 0.9)
    with policy.using("ema"):
        kept = [p.detach().clone() for p in policy.parameters()]
    for old, new, average in zip(first, policy.parameters(), kept, strict=True):
        torch.testing.assert_close(average, 0.9 * old + 0.1 * new.detach())


def test_state_round_trip(policy, folder):
    move(policy)
    policy.update_ema("old", 0.0)
    move(policy)
    state = {key: value.clone() for key, value in policy.weights.state().items()}
    assert {key.split("/")[0] for key in state} == {"live", "old"}
    other = load_policy(folder("sd3"), call=pipelines.CALLS["sd3"], full=policy.adaptation.lora is None, parity="skip")
    assert other.weights.sha256("reference") == policy.weights.sha256("reference")
    other.weights.load(state)
    for name in ("live", "old", "reference"):
        assert other.weights.sha256(name) == policy.weights.sha256(name)


def test_weights_of_another_model_are_refused(folder):
    policy = load_policy(folder("sd3"), call=pipelines.CALLS["sd3"], parity="skip")
    other = load_policy(folder("sd3"), call=pipelines.CALLS["sd3"], lora=LoRAOptions(rank=4), parity="skip")
    with pytest.raises(UserError, match="do not fit this model"):
        other.weights.load(policy.weights.state())


def test_gradient_checkpointing_gives_the_same_gradient(folder):
    found = []
    for on in (False, True):
        policy = load_policy(folder("sd3"), call=pipelines.CALLS["sd3"], parity="skip", gradient_checkpointing=on)
        move(policy)
        x, t = points(policy)
        policy.velocity(x, t, policy.condition(prompts_of(PROMPTS))).square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("to", ["diffusers", "peft", "merged"])
def test_export_reloads_exactly(to, folder, tmp_path):
    """Both adapter formats give back the very same velocities in a new policy; the merged folder in a plain one."""
    source = folder("sd3")
    policy = load_policy(source, call=pipelines.CALLS["sd3"], lora=LoRAOptions(rank=4, alpha=16), parity="skip")
    move(policy, 0.2)
    # merging adds the update to the weights in float32, which rounds; by how much depends on the number of threads
    bound = 1e-4 if to == "merged" else 1e-5
    assert export_policy(policy, tmp_path / "out", to) < bound
    if to == "merged":
        again = load_policy(tmp_path / "out", call=pipelines.CALLS["sd3"])
    else:
        again = load_policy(source, call=pipelines.CALLS["sd3"], lora=LoRAOptions(rank=4, alpha=16), parity="skip")
        load_adapter(again, tmp_path / "out")
        torch.testing.assert_close(look(again), look(policy), atol=0, rtol=0)
        doubled = load_policy(source, call=pipelines.CALLS["sd3"], lora=LoRAOptions(rank=4, alpha=8), parity="skip")
        load_adapter(doubled, tmp_path / "out")  # another alpha is folded into the weights
        torch.testing.assert_close(look(doubled), look(policy), atol=1e-5, rtol=1e-5)
    assert deviation(look(again), look(policy)) < bound
    assert not [p for p in (tmp_path / "out").rglob("*") if p.suffix in (".bin", ".pt", ".pkl", ".pth")]


def test_export_traps(folder, tmp_path):
    """Why two formats and metadata: diffusers silently ignores PEFT's file, and loses alpha without metadata."""
    from diffusers import StableDiffusion3Pipeline
    from safetensors.torch import load_file, save_file

    policy = load_policy(folder("sd3"), call=pipelines.CALLS["sd3"], lora=LoRAOptions(rank=4, alpha=16), parity="skip")

    def outputs(pipeline):
        return Recorder(pipeline, pipelines.CALLS["sd3"]).record(PROMPTS, 1).steps[0].model_output

    base = outputs(policy.pipeline)
    move(policy, 0.2)
    trained = outputs(policy.pipeline)
    assert export_formats(policy) == ("diffusers", "peft", "kohya", "merged")
    export_policy(policy, tmp_path / "diffusers", "diffusers")
    export_policy(policy, tmp_path / "peft", "peft")
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(tmp_path / "diffusers" / "pytorch_lora_weights.safetensors"), bare)  # loses the header

    def with_adapter(file):
        fresh = StableDiffusion3Pipeline.from_pretrained(folder("sd3"))
        fresh.load_lora_weights(str(file.parent), weight_name=file.name)
        return outputs(fresh)

    good = with_adapter(tmp_path / "diffusers" / "pytorch_lora_weights.safetensors")
    assert deviation(good, trained) == 0
    assert deviation(with_adapter(tmp_path / "peft" / "adapter_model.safetensors"), base) == 0  # a silent no-op
    assert deviation(with_adapter(bare), trained) > 1e-3  # alpha taken for the rank
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["lora_alpha"] == 16


def test_full_fine_tuning_exports_merged_only(folder, tmp_path):
    policy = load_policy(folder("sd3"), call=pipelines.CALLS["sd3"], full=True, parity="skip")
    move(policy, 0.01)
    assert export_formats(policy) == ("merged",)
    with pytest.raises(UserError, match="use merged"):
        export_policy(policy, tmp_path / "out", "diffusers")
    assert export_policy(policy, tmp_path / "out", "merged") < 1e-4
    with pytest.raises(UserError, match="not empty"):
        export_policy(policy, tmp_path / "out", "merged")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_mistakes_are_explained(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    sd3, call = folder("sd3"), pipelines.CALLS["sd3"]
    cases = [
        (tmp_path / "missing", {}, "neither a folder nor a name"),
        (tmp_path / "empty", {}, "no model_index.json"),
        (sd3, {"dtype": "fp32"}, "model.dtype must be one of"),
        (sd3, {"device": "gpu"}, "not a torch device"),
        (sd3, {"full": True, "lora": LoRAOptions()}, "exclude each other"),
        (sd3, {"lora": LoRAOptions(targets=("to_qq",))}, "to_qq matches no layer .* attn.to_q"),
        (sd3, {"call": {"guidance": 4.5}}, "takes no argument 'guidance'.*did you mean 'guidance_scale'"),
        (sd3, {"attention": "nonsense"}, "attention backend 'nonsense' is not available"),
        (42, {}, "got int"),
    ]
    for source, options, message in cases:
        with pytest.raises(UserError, match=message):
            load_policy(source, **{"call": call, "parity": "skip", **options})
    with pytest.raises(UserError, match="rank must be at least 1"):
        LoRAOptions(rank=0)


def test_a_pipeline_object_is_taken(folder):
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(folder("sd3"))
    policy = load_policy(pipeline, call=pipelines.CALLS["sd3"])
    assert policy.network is pipeline.transformer

"""Reward models: the loss, training on recorded pairs, evaluation on held-out ones, and what comes of the export."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl.commands.export import export
from flowrl.config import Config
from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.evaluation.decoding import Decoding
from flowrl.evaluation.targets import find_target
from flowrl.evaluation.targets.request import Request
from flowrl.heldout import evaluate_heldout
from flowrl.models import load_policy
from flowrl.models.reward.policy import RewardPolicy
from flowrl.parts.preferences import BradleyTerry
from flowrl.rounds import sample_and_score
from flowrl.runtime.display import Display
from flowrl.runtime.timing import PhaseTimer
from flowrl.samplers.recorded import MakesNothing
from flowrl.session import open_session
from flowrl.startup.preflight import check_run
from flowrl.train import train
from flowrl.types import Batch, Draw, IncompatibleError, Likelihood, Rows, prompts_of
from flowrl.worlds.countdown.prompts import prompts as tasks
from flowrl.worlds.countdown.verifier import verify
from rewards.reward_model import reward_model

CHAT = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}{% if add_generation_prompt %}a{% endif %}"


def batch(advantage: list[float], group: list[int], said: list[float] | None = None) -> Batch:
    n = len(advantage)
    feedback = None if said is None else torch.tensor(said, dtype=torch.float64)
    weight = torch.full((n, 1), 1 / n).double()
    shape = torch.tensor(advantage).double()[:, None]
    return Batch(shape, Likelihood(shape), weight, torch.tensor(group), Rows(), feedback=feedback)


def loss(part: BradleyTerry, rating: Tensor, b: Batch) -> Tensor:
    return (b.weight * part(Likelihood(rating[:, None]), b)).sum()


def test_the_loss_is_the_likelihood_of_the_preferences() -> None:
    rating = torch.tensor([0.3, -0.5, 1.1, 1.4], dtype=torch.float64, requires_grad=True)
    b = batch([1, -1, -1, 1], [0, 0, 1, 1], [0.5, 0.0, 2.0, 0.25])
    gaps = (0.8, 0.3)
    plain = sum(math.log1p(math.exp(-gap)) for gap in gaps) / 2
    assert loss(BradleyTerry(), rating, b).item() == pytest.approx(plain, abs=1e-12)
    held = sum(math.log1p(math.exp(-z)) for z in (0.8 - 0.5, 0.3 + 1.75)) / 2  # the second's is rated below the other
    centred = held + 0.1 * ((0.3 - 0.5) ** 2 + 2.5**2) / 2
    found = loss(BradleyTerry(margin=1.0, centre=0.1), rating, b)
    assert found.item() == pytest.approx(centred, abs=1e-12)
    (slope,) = torch.autograd.grad(found, rating)
    first = -1 / (1 + math.exp(0.3))
    pull = 2 * 0.1 * (0.3 - 0.5)
    assert slope[:2].tolist() == pytest.approx([(first + pull) / 2, (-first + pull) / 2], abs=1e-12)
    told = BradleyTerry().measures(Likelihood(rating[:, None].detach()), b)
    assert float(told["preference/accuracy"].nanmean()) == 1.0
    assert float(told["preference/margin"].nanmean()) == pytest.approx(0.55)
    with pytest.raises(ValueError, match=r"centre=-1.* give 0 \(off\) or more"):
        BradleyTerry(centre=-1)
    with pytest.raises(IncompatibleError, match=r"margin reads what a data set says"):
        loss(BradleyTerry(margin=1.0), rating, batch([1, -1], [0, 0]))


def test_pairs_of_the_world_are_right_and_wrong() -> None:
    held = tasks("pairs_test")
    tested = {(tuple(row["numbers"]), row["target"]) for row in tasks("test")}
    for row in held:
        assert (tuple(row["numbers"]), row["target"]) in tested and len(row["rejected"]) <= 11
        assert verify(row["chosen"], row["numbers"], row["target"]).strict
        assert not verify(row["rejected"], row["numbers"], row["target"]).strict
    with pytest.raises(UserError, match=r"there is no split 'pair'.*did you mean 'pairs'"):
        load_prompts("countdown:pair")


def config(tmp_path: Path, algorithm: dict[str, Any] | None = None, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "name": "rating",
        "out": str(tmp_path / "run"),
        "model": {"path": "countdown", "full": True},
        "algorithm": {"use": "reward_model", "length": 24, **(algorithm or {})},
        "data": {"train": "countdown:pairs_test[:200]", "test": "countdown:pairs_test[200:]", "prompts": 8},
        "optimizer": {"lr": 1e-3},
        "train": {"iterations": 2, "micro_batch": 6, "sample_batch": 16, "threads": 1},
        "eval": {"every": 2, "prompts": 20, "batch": 16},
        "log": {"samples": 2, "samples_every": 1},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values.setdefault(section, {})[name] = value
    return Config.of(values)


@pytest.mark.parametrize("adapted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_leaves_the_folder_that_the_reward_loads(adapted: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    changes = {"model__full": False, "model__lora": {"rank": 4, "alpha": 8}} if adapted else {}
    run = train(config(tmp_path, **changes), display=Display("", silent=True))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = lines[-1]
    for name in ("accuracy", "margin", "mean"):
        assert f"eval/preference/{name}" in last and f"preference/{name}" in last
    assert last["eval/reward/mean"] == last["eval/preference/accuracy"] and last["eval/loss"] > 0
    assert lines[0]["eval/loss"] != last["eval/loss"]
    with pytest.raises(UserError, match=r"cannot export to 'peft'; choose one of merged"):
        export(run, "peft", tmp_path / "adapter", Display("", silent=True))
    out = tmp_path / "rated"
    assert export(run, None, out, Display("", silent=True)).difference < 1e-5
    with pytest.raises(UserError, match=r"a reward model makes no samples: export it"):
        find_target(str(run), Request("best", {"": Decoding()}))
    with pytest.raises(UserError, match=r"a reward model makes no samples: export it"):
        find_target(str(out), Request("best", {"": Decoding()}))
    policy = load_policy(out)
    assert isinstance(policy, RewardPolicy) and policy.check_parity() < 1e-5
    rows = tasks("pairs_test")[::50]
    texts, asked = [row["chosen"] for row in rows], [row["prompt"] for row in rows]
    ours = policy.rate(None, *policy.read(prompts_of(asked), texts, 24)).detach()
    scored = reward_model(path=str(out), device="cpu", batch_size=3)(texts, asked)
    assert torch.allclose(ours.double(), scored, atol=1e-5) and float(scored.std()) > 0
    model: Any = AutoModelForSequenceClassification.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    for prompt, text, score in zip(asked, texts, scored, strict=True):
        ids = torch.tensor([tokenizer(prompt + text)["input_ids"]])
        assert float(model.eval()(ids).logits.detach()) == pytest.approx(float(score), abs=1e-5)
    with pytest.raises(UserError, match=r"is a reward model .* family causal needs"):
        load_policy(out, family="causal")


def test_a_margin_is_a_column_of_the_data(tmp_path: Path) -> None:
    rows = [
        {"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"], "better": better}
        for row, better in zip(tasks("pairs_test"), (0.0, 2.5, 1.0), strict=False)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    made = config(
        tmp_path, {"margin": "better"}, data__train=str(file), data__test=None, data__prompts=3, eval__every=0
    )
    session = open_session(check_run(made))
    scored = sample_and_score(session, PhaseTimer())
    said = scored.scores.feedback
    assert said is not None and sorted(said[0::2].tolist()) == [0.0, 1.0, 2.5] and not said[1::2].any()
    advantage = session.algorithm.advantage(scored.scores, {})
    assert advantage.tolist() == [1, -1] * 3  # also where nothing is said to be better
    shown = zip(scored.samples.completions or (), scored.prompts, strict=True)
    assert [text == prompt.columns["chosen"] for text, prompt in shown] == [True, False] * 3
    with pytest.raises(UserError, match=r"the column 'bettr' is missing"):
        check_run(config(tmp_path, {"margin": "bettr"}, data__train=str(file), data__test=None, eval__every=0))
    with pytest.raises(UserError, match=r"margin='better' and ratings=.* both rate samples"):
        check_run(config(tmp_path, {"margin": "better", "ratings": ["a", "b"]}))


def test_what_a_reward_model_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prompts have a conversation of more than 18 tokens"):
        open_session(check_run(config(tmp_path, {"length": 18})))
    with pytest.raises(UserError, match=r"quantize=int8: a reward model is trained and exported whole"):
        load_policy("countdown", family="reward", quantize="int8")
    with pytest.raises(UserError, match=r"model.critic means nothing for reward"):
        check_run(config(tmp_path, model__critic="head"))
    with pytest.raises(IncompatibleError, match=r"rates samples and makes none"):
        MakesNothing()(None, None, Draw.of(torch.zeros(1, dtype=torch.int64), torch.zeros(1), 0, 0))
    from transformers import AutoModelForSequenceClassification

    from flowrl.worlds.countdown import BASES

    two: Any = AutoModelForSequenceClassification.from_pretrained(BASES["causal"], num_labels=2)
    two.save_pretrained(tmp_path / "two")
    with pytest.raises(UserError, match=r"is a classifier with 2 outputs, and a reward model has one"):
        load_policy(tmp_path / "two", family="reward")


def test_conversations_are_read_as_the_reward_reads_them(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from flowrl.worlds.countdown import BASES

    folder = tmp_path / "chatty"
    base: Any = load_policy("countdown", family="reward", full=True)
    base.network.model.save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(BASES["causal"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}={% endfor %}"
    tokenizer.save_pretrained(folder)
    policy: Any = load_policy(folder, family="reward", system="1+1")
    tokens, mask = policy.read(prompts_of(["2 3"]), ["6"], 24)
    assert tokenizer.decode(tokens[0][mask[0]]).replace(" ", "") == "1+1=23=6="
    shown = reward_model(path=str(folder), device="cpu", system="1+1")(["6"], ["2 3"])
    assert policy.rate(None, tokens, mask).item() == pytest.approx(float(shown), abs=1e-5)
    short, kept = policy.read(prompts_of(["2 3"]), ["6"], 4)
    assert tokenizer.decode(short[0][kept[0]]).replace(" ", "") == "3=6="
    plain: Any = load_policy(folder, family="reward", chat=False)
    tokens, mask = plain.read(prompts_of(["2 3"]), ["6"], 24)
    assert tokenizer.decode(tokens[0][mask[0]]).replace(" ", "") == "236"


def test_other_pairs_are_measured_on_held_out_records_too(tmp_path: Path) -> None:
    made = config(tmp_path)
    values = made.model_dump(exclude_unset=True)
    values["algorithm"] = {"use": "dpo", "length": 12, "sampler": {"test": "recorded"}}
    session = open_session(check_run(Config.of(values)))
    found = evaluate_heldout(session, PhaseTimer()).metrics
    assert found["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)  # the reference, against itself
    assert found["eval/reward/mean"] == found["eval/preference/accuracy"] == 0
    assert found["eval/preference/chosen_logp"] < 0

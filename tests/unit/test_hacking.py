"""Parts against reward hacking: gates of penalties, renewed references, novelty in a group."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.config import Config
from flowrl.parts.controllers import Renewal
from flowrl.parts.ema import AtAge
from flowrl.parts.novelty import NoveltyScaled, WithNovelty
from flowrl.parts.penalty_weights import STATE, Doubted
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import open_session
from flowrl.startup.doubts import doubts
from flowrl.startup.preflight import check_run
from flowrl.train import iterate
from flowrl.types import IncompatibleError, Scores
from rewards.diversity import clusters, novelty, rarity
from tests.contract.toys import disturb, roll, small, start


def scores_of(rewards: list[list[float]], names: tuple[str, ...], group: list[int] | None = None) -> Scores:
    """The first reward is trained, the others are watched."""
    table = torch.tensor(rewards, dtype=torch.float64)
    weights = torch.tensor([1.0] + [0.0] * (len(names) - 1), dtype=torch.float64)
    of = torch.tensor(group or [0] * len(table))
    return Scores(table, weights, names, of, of, torch.ones(len(table)).bool())


def test_doubt_is_the_difference_of_ranks() -> None:
    scores = scores_of([[4, 1], [3, 2], [2, 3], [1, 4]], ("r", "judge"))
    doubt = Doubted().doubt(scores, (1,))
    assert doubt.tolist() == [3.0, 1.0, -1.0, -3.0]
    assert Doubted(rated="below").doubt(scores, (1,)).tolist() == [-3.0, -1.0, 1.0, 3.0]
    ties = scores_of([[1, 2], [1, 1], [0, 0]], ("r", "judge"))
    assert Doubted().doubt(ties, (1,)).tolist() == [-0.5, 0.5, 0.0]  # equals share the mean of their places


def test_what_cannot_be_judged_is_not_held() -> None:
    scores = scores_of([[4, float("nan")], [3, 1], [2, 2], [1, 3]], ("r", "judge"))
    weight = Doubted(share=0.2)(scores, {})
    assert weight.tolist() == [0.0, 4.0, 0.0, 0.0]
    scores = replace(scores, source=torch.tensor([0, 1, 0, 0]))  # nor what the policy did not make
    assert Doubted(share=0.2)(scores, {})[1] == 0


def test_judges_are_the_watched_rewards_unless_they_are_named() -> None:
    scores = scores_of([[4, 1, 4], [3, 2, 3], [2, 3, 2], [1, 4, 1]], ("r", "judge", "novelty"))
    assert torch.equal(Doubted()(scores, {}), Doubted(("judge",))(scores, {}))
    with pytest.raises(IncompatibleError, match=r"judges: no reward is called 'other'; the rewards are r, judge"):
        Doubted(("other",))(scores, {})
    alone = scores_of([[1.0], [2.0]], ("r",))
    assert Doubted()(alone, {}).tolist() == [1.0, 1.0]


def test_the_state_of_a_gate_is_plain() -> None:
    memory: dict = {}
    scores = scores_of([[4, 1], [3, 2], [2, 3], [1, 4]], ("r", "judge"))
    Doubted()(scores, memory)
    assert memory == {STATE: {"share": 0.1, "seen": [2.0]}}


def test_a_gate_refuses_shares_out_of_order() -> None:
    with pytest.raises(ValueError, match=r"least=0.3, share=0.1"):
        Doubted(least=0.3)


def test_a_reference_is_renewed_when_it_is_far_or_old() -> None:
    rule = Renewal(above=0.1, every=2)
    assert rule(0, {"kl/anchor": 0.05}, 1) == 1 and rule(1, {"kl/anchor": 0.05}, 2) == 2
    assert rule(2, {"kl/anchor": 0.05}, 3) == 0 and rule(0, {"kl/anchor": 0.2}, 1) == 0
    with pytest.raises(IncompatibleError, match="kl/anchor"):
        rule(0, {}, 1)
    assert [AtAge(age)(10) for age in (0, 1, 2)] == [0.0, 1.0, 1.0]


def test_novelty_counts_for_what_is_good() -> None:
    scores = scores_of([[1, 0.1], [1, 0.3], [0, 9.0]], ("r", "novelty"))
    mean = (0.1 + 0.3 + 9.0) / 3
    expected = [0.1 / mean / 3, 0.3 / mean / 3, -2 / 3]
    assert torch.allclose(NoveltyScaled()(scores, {}), torch.tensor(expected).double())
    plain = scores_of([[1], [1], [0]], ("r",))
    assert torch.allclose(NoveltyScaled()(plain, {}), torch.tensor([1 / 3, 1 / 3, -2 / 3]).double())
    alike = scores_of([[1, 0.0], [1, 0.0], [0, 0.0]], ("r", "novelty"))
    assert torch.allclose(NoveltyScaled()(alike, {}), NoveltyScaled()(plain, {}))


def test_a_bonus_is_added_before_the_group_is_centred() -> None:
    scores = scores_of([[1, 1.0], [1, 0.5], [0, 0.5]], ("r", "rarity"))
    found = WithNovelty(scale="none", bonus=0.2)(scores, {})
    total = torch.tensor([1.2, 1.1, 0.1]).double()
    assert torch.allclose(found, total - total.mean())
    flat = scores_of([[1, 1.0], [1, 0.5], [1, 0.5]], ("r", "rarity"))  # equal rewards: the rare one is preferred
    assert WithNovelty()(flat, {})[0] > 0 > WithNovelty()(flat, {})[1]


def pictures(*angles: float) -> Tensor:
    """[N, 3, 16, 16] stripes of these angles."""
    x = torch.linspace(0, 3, 16)
    waves = [(0.5 + 0.5 * torch.sin(3 * (x[None] * angle + x[:, None] * (1 - angle)))) for angle in angles]
    return torch.stack(waves)[:, None].expand(-1, 3, -1, -1).contiguous()


def test_novelty_is_the_distance_to_the_nearest_of_the_same_prompt() -> None:
    images, group = pictures(0.0, 0.02, 1.0, 0.5, 1.0), [0, 0, 0, 1, 1]
    reward = novelty("pixels", batch_size=2)
    found = reward(images, ["a"] * 5, group=group)
    features = reward.features(images)
    cosines = features @ features.T
    assert float(found[0]) == pytest.approx(float(1 - cosines[0, 1]), abs=1e-12) and found[0] == found[1]
    assert found[2] == pytest.approx(float(1 - cosines[2, :2].max())) and found[3] == found[4] > 0
    images[3] = torch.nan
    assert reward(images, ["a"] * 5, group=group)[3:].isnan().all()  # one that is finite has nothing to be unlike


def test_rarity_is_one_over_the_size_of_the_cluster() -> None:
    images = pictures(0.0, 0.01, 0.02, 1.0, 0.99, 0.5)
    found = rarity("pixels")(images, ["a"] * 6, group=[0] * 6)
    assert torch.allclose(found, torch.tensor([1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2, 1]).double())
    same = rarity("pixels")(pictures(*[0.3] * 4), ["a"] * 4, group=[0] * 4)
    assert torch.allclose(same, torch.full((4,), 0.25).double())


def test_clusters_are_the_blocks_of_an_affinity() -> None:
    affinity = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2), torch.ones(3, 3)).double() + 0.01
    label = clusters(affinity)
    assert torch.equal(label[:, None] == label[None], affinity > 0.5)


CONFIG = {
    "name": "x",
    "model": {"path": "shapes", "call": {"guidance_scale": 1.0}, "full": True},
    "data": {"train": "shapes:train", "test": None, "prompts": 2, "group": 4},
    "rewards": [
        {"use": "shapes"},
        {"use": "shapes", "name": "judge", "weight": 0.0, "options": {"mode": "strict"}},
        {"use": "novelty", "weight": 0.0, "options": {"path": "pixels"}},
        {"use": "rarity", "weight": 0.0, "options": {"path": "pixels"}},
    ],
    "train": {"iterations": 3, "threads": None},
    "eval": {"every": 0},
}


@pytest.mark.parametrize("name", ["gardo", "diverse_grpo"])
def test_whole_iterations(name: str, tmp_path: Path) -> None:
    spec = {"use": name, "steps": 3, "clip": 0.01} | ({"every": 1, "above": 1e9} if name == "gardo" else {})
    session, timer = (
        open_session(check_run(Config.of(CONFIG | {"algorithm": spec, "out": str(tmp_path)}))),
        PhaseTimer(),
    )
    found = [iterate(session, timer)[0] for _ in range(3)]
    session.rewards.close()
    assert all(line["grad_norm"] > 0 for line in found)
    if name == "diverse_grpo":
        return
    assert [line["coefficient/ema_weights.0.decay.age"] for line in found] == [0, 1, 0]  # renewed after the second
    live, anchor = (session.policy.weights.sha256(name) for name in ("live", "anchor"))
    assert live != anchor and composition.build(spec).weight_sets == ("anchor",)
    assert session.memory[STATE]["seen"]


def test_a_replay_measures_how_much_longer_velocities_are() -> None:
    algorithm = small("draft", steps=4, regularizers=[{"use": "norm_guard", "weight": 2.0}])
    policy = start(algorithm)
    it = roll(algorithm, policy)
    disturb(policy, 0.1)
    rows = algorithm.estimator.probe(it.rollout, policy, it.rollout.seeds)
    found = algorithm.estimator(policy, rows, it.rollout.condition, ("reference",))
    x, t = it.rollout.trace.states[:, -2], rows.t[:, 0]  # K = 1: the last step's state is the recorded one
    live = policy.velocity(x, t, it.rollout.condition)
    with policy.using("reference") as asked:
        frozen = asked.velocity(x, t, it.rollout.condition)
    growth = live.norm(dim=1) / frozen.norm(dim=1) - 1
    assert torch.allclose(found.extra["norm_growth/reference"][:, 0], growth.double(), atol=1e-5)
    assert found.extra["norm_growth/reference"].requires_grad and bool((growth > 0).any())


def test_the_doctor_says_what_a_guard_looks_for_in_vain() -> None:
    values = CONFIG | {"algorithm": {"use": "gardo", "steps": 3}}
    assert not [said for said in doubts(check_run(Config.of(values))) if "algorithm." in said]
    said = doubts(check_run(Config.of(values | {"rewards": ["shapes"]})))
    assert any("{use: novelty, train: false}" in sentence for sentence in said)
    assert any("the KL holds all samples" in sentence for sentence in said)

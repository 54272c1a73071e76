"""Presets that learn again from earlier samples, against the release's code written out here."""

from __future__ import annotations

from pathlib import Path

import torch

from flowrl import composition
from flowrl.replay import with_old_samples
from flowrl.rounds import sample_and_score
from flowrl.runtime.timing import PhaseTimer
from flowrl.samplers.replayed import SamePrompt
from flowrl.types import REPLAY, PastSamples, Scores
from tests.fidelity import cell, release
from tests.unit.test_replay import run, session_of

release("repo", "SihengLi99/RePO 119fef6, 12 Jun 2025")


@cell("repo", "loss, gradient", "equal", "GRPO's loss of all rows, old ones with the ratio to their own policy, no KL")
def test_repo_loss(tmp_path: Path) -> None:
    session = session_of("causal", tmp_path, train={"iterations": 9, "ema": None})
    run(session, 3)
    learned = with_old_samples(session, sample_and_score(session, PhaseTimer()))
    advantage = learned.advantage(session.algorithm, {})
    online = learned.rollout.source != REPLAY
    r = learned.scores.total.double()
    for rows, width in ((online, 4), (~online, 3)):  # adv_norm_mode=split: views of num_generations and of R
        blocks = r[rows].view(-1, width)
        wanted = (blocks - blocks.mean(dim=1, keepdim=True)) / (blocks.std(dim=1, keepdim=True) + 1e-4)
        assert torch.allclose(advantage[rows].view(-1, width), wanted, atol=1e-9)
    # on_loss + off_policy_loss_coef off_loss, each a mean of masked sequence means over all rows of the batch
    mask = torch.rand(len(r), 5, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[:, 0] = True
    per_token = torch.randn(len(r), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def aggregate(inside: torch.Tensor) -> torch.Tensor:
        return ((per_token * inside).sum(-1) / inside.sum(-1).clamp(min=1.0)).mean()

    released = aggregate(mask & online[:, None]) + 1.0 * aggregate(mask & ~online[:, None])
    assert torch.allclose((session.algorithm.aggregation(mask) * per_token).sum(), released)


@cell(
    "repo", "defaults", "equal", "highest_k, 8 of a prompt's latest 16 once there are 16, split, clip .2, coefficient 1"
)
@cell(
    "repo",
    "loss",
    "option",
    "its other choices: `choose: latest` or `random`; `mixed` is `alone: false` with AllSources",
)
@cell("repo", "data", "deviation", "max_variance_k and `all` are left out", reason="`highest_k` is what its script has")
def test_repo_settings() -> None:
    made = composition.build("repo")
    part = made.replay
    assert isinstance(part, SamePrompt) and (part.samples, part.kept, part.least, part.choose) == (8, 16, 16, "best")
    assert part.alone and made.objective.clip_range == (0.2, 0.2) and made.regularizers == ()
    assert made.advantage.eps == 1e-4 and made.advantage.ddof == 1
    rewards = [0.0, 1.0, 0.5, 1.0, 0.2, 0.9] * 3
    n = len(rewards)
    known = PastSamples(torch.arange(n), torch.zeros(n).long(), torch.full((n,), 4), torch.tensor(rewards).double())
    now = Scores(torch.zeros(1, 1), torch.ones(1), ("r",), torch.tensor([0]), torch.tensor([4]), torch.tensor([True]))
    buffer = list(enumerate(rewards))[-16:]  # a deque of max_cache_size
    highest_k = sorted(buffer, key=lambda record: record[1], reverse=True)[:8]
    assert part(known, now, 0)[0].tolist() == [number for number, _ in highest_k]

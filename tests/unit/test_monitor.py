"""The monitor: every statistic against a value worked out by hand, alarms on hacks, silence on honest samples."""

import json
import math
import random
import time
from types import SimpleNamespace

import pytest
import torch

from flowrl.config.schema import MonitorConfig
from flowrl.errors import UserError
from flowrl.monitor import check_heldout, check_training, images, new_alarms
from flowrl.monitor.alarms import check_rewards, check_statistics, paired, sentence, shift, summary
from flowrl.monitor.statistics import STATISTICS, measure, subsample
from flowrl.monitor.texts import distinct, measure_texts
from flowrl.records.directory import RunDirectory
from flowrl.types import Prompt, Samples, Scores
from flowrl.worlds.shapes.prompts import prompts
from flowrl.worlds.shapes.scenes import random_scene, render
from tests.contract.toys import rollout_of

OPTIONS = MonitorConfig()
SIDE = 32


def scenes(count, seed):
    """Rendered scenes of the test prompts, in turn."""
    rng, rows = random.Random(seed), prompts("test")
    return render([random_scene(rows[i * len(rows) // count % len(rows)], rng) for i in range(count)])


def samples_of(pictures):
    return Samples([Prompt("", i) for i in range(len(pictures))], images=pictures)


def raised(pictures, memory, group=None):
    group = torch.arange(len(pictures)) if group is None else group
    checks = check_statistics("heldout", measure(samples_of(pictures), group), group, memory, OPTIONS)
    return {check.name.removeprefix("heldout/") for check in checks if check.raised}


@pytest.fixture(scope="module")
def baseline():
    memory = {}
    assert raised(scenes(200, seed=0), memory) == set()
    return memory


# -- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_of_half_red_half_black():
    picture = torch.zeros(1, 3, SIDE, SIDE)
    picture[:, 0, :, :16] = 1.0
    found = images.measure_images(picture, torch.zeros(1))
    assert found["contrast"].item() == pytest.approx(0.299 / 2, abs=1e-6)
    assert found["chroma"].item() == pytest.approx(0.5)
    assert found["clipped"].item() == 1.0
    assert found["colors"].item() == pytest.approx(1.0)  # two colours, equally often: one bit
    assert found["edges"].item() == pytest.approx(2 / 30)  # central differences see the edge from both of its sides
    # 2 of the 30 inner columns: the 3x3 mean is 1/3 or 2/3 of the step, which is 0.299 high
    assert found["detail"].item() == pytest.approx(0.299 / 3 * math.sqrt(2 / 30), rel=1e-5)
    assert found["noise"].item() == 0.0
    assert math.isnan(found["diversity"].item()) and math.isnan(found["nearest"].item())


def test_noise_level_is_the_standard_deviation_of_the_noise_whatever_the_picture():
    torch.manual_seed(0)
    picture = scenes(1, 3)[0].mean(0)
    big = picture.repeat_interleave(8, 0).repeat_interleave(8, 1)
    level = images.noise_level((big + 0.05 * torch.randn_like(big))[None])
    assert level.item() == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("period", [2, 4, 8])
def test_a_grid_of_amplitude_a_twentieth_sticks_out_of_the_spectrum(period):
    before = images.periodicity(scenes(40, 1).mean(1)).median()
    pictures = scenes(40, 1)
    pictures[..., ::period, :] += 0.1
    pictures[..., :, ::period] += 0.1
    assert images.periodicity(pictures.mean(1)).median() > before + 0.2
    assert images.periodicity(torch.full((1, SIDE, SIDE), 0.5)).item() < 1e-3


def test_distances_in_and_between_groups():
    levels = torch.tensor([0.0, 0.1, 0.4, 0.9])
    pictures = levels[:, None, None, None].expand(4, 3, SIDE, SIDE)
    nearest, within = images.distances(pictures, torch.tensor([0, 0, 0, 1]))
    assert nearest.tolist() == pytest.approx([0.1, 0.1, 0.3, 0.5])
    assert within[:3].tolist() == pytest.approx([0.25, 0.2, 0.35])
    assert math.isnan(within[3].item())


def test_videos_and_large_images_are_measured_too():
    video = scenes(4, 0)[:, None].expand(4, 5, 3, SIDE, SIDE)
    group = torch.arange(4)
    still, moving = images.measure_images(scenes(4, 0), group), images.measure_images(video, group)
    assert all(torch.equal(still[name].nan_to_num(9), moving[name].nan_to_num(9)) for name in still)
    wide = torch.nn.functional.interpolate(scenes(4, 0), (150, 400), mode="nearest")
    assert torch.allclose(images.measure_images(wide, group)["chroma"], still["chroma"], atol=0.02)


def test_texts():
    found = measure_texts(["abcd", "abcd ", "xyz", "abcd", "w"], torch.tensor([0, 0, 0, 1, 2]))
    assert found["length"].tolist() == [4, 5, 3, 4, 1]
    assert found["duplicates"].tolist() == [1, 1, 0, 0, 0]
    assert found["shared"].tolist() == [0.5, 0.5, 0, 0.5, 0]
    assert distinct("abababab") == pytest.approx(2 / 5)  # abab, baba, abab, baba, abab
    assert distinct("abc") == 1.0


def test_some_samples_of_every_group():
    group = torch.arange(18).repeat_interleave(12)
    rows = subsample(group, 200)
    assert len(rows) == 18 * 11 and torch.equal(group[rows].bincount(), torch.full((18,), 11))
    rows = subsample(torch.arange(1000).repeat_interleave(4), 200)
    assert len(rows) == 200 and len((rows // 4).unique()) == 100 and int(rows.max()) >= 3950
    assert torch.equal(subsample(torch.arange(50), 200), torch.arange(50))
    assert torch.equal(subsample(torch.zeros(500, dtype=torch.long), 200), torch.arange(200))


def test_summary_and_shift_by_hand():
    statistic = STATISTICS["contrast"]
    values = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.9])
    centre, spread, error = summary(values, torch.arange(5), statistic)
    assert (centre, spread) == pytest.approx((0.3, 0.14826))
    assert error == pytest.approx(1.2533 * 0.14826 / math.sqrt(5), rel=1e-4)
    assert summary(values, torch.zeros(5), statistic)[2] == pytest.approx(
        error * math.sqrt(5)
    )  # one prompt, one sample
    base, now = [0.3, 0.15, 0.03], [0.9, 0.1, 0.04]
    assert shift(now, base, statistic) == pytest.approx((0.6 - 3 * 0.05) / 0.15)
    assert shift([0.2, 0.1, 0.04], base, statistic) == 0.0  # within three standard errors
    assert shift([0.6, 0.0, 0.0], [0.5, 0.0, 0.0], statistic) == pytest.approx(0.1 / 0.05)  # a tenth of the median
    share = STATISTICS["full"]
    assert summary(torch.tensor([0.0, 1.0, 1.0, 1.0]), torch.arange(4), share) == pytest.approx([0.75, 0, 0.2165], 1e-3)


# -- alarms on hacks, silence on honest samples --------------------------------------------------------------------


def saturate(pictures):
    grey = pictures.mean(dim=1, keepdim=True)
    return (grey + 4 * (pictures - grey)).clamp(0, 1)


def with_grid(pictures):
    pictures = pictures.clone()
    pictures[..., ::4, :] += 0.1
    pictures[..., :, ::4] += 0.1
    return pictures.clamp(0, 1)


def adversarial(pictures):
    """The largest change of 8/255 per value: the sign of a gradient looks like noise."""
    signs = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0)).sign()
    return (pictures + 8 / 255 * signs).clamp(0, 1)


def copies(pictures):
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    return (pictures[:1] + noise / 255).clamp(0, 1)


HACKS = {
    "blank": (lambda p: torch.full_like(p, 0.5), {"contrast", "chroma", "colors", "nearest"}),
    "grid": (with_grid, {"grid", "detail"}),
    "saturation": (saturate, {"clipped"}),
    "copies": (copies, {"nearest"}),
    "noise": (adversarial, {"noise", "colors"}),
    "checkerboard": (lambda p: (p + 0.04 * checkers()).clamp(0, 1), {"grid", "noise"}),
    "vivid": (lambda p: p * torch.tensor([1.0, 0.1, 0.1])[:, None, None], {"chroma"}),
}


def checkers():
    place = torch.arange(SIDE)
    return ((place[:, None] + place) % 2) * 2.0 - 1


@pytest.mark.parametrize("hack", HACKS)
def test_alarm_on_a_hack(baseline, hack):
    change, expected = HACKS[hack]
    assert expected <= raised(change(scenes(200, seed=1)), baseline)


def test_copies_within_groups_while_prompts_still_differ():
    group, memory = torch.arange(18).repeat_interleave(11), {}
    first = scenes(18 * 11, seed=2)
    assert raised(first, memory, group) == set()
    assert "diversity" in raised(first[::11].repeat_interleave(11, 0), memory, group)


@pytest.mark.parametrize("share", [0.6, 1.0])
def test_a_hack_of_most_samples_is_enough(baseline, share):
    pictures = scenes(200, seed=3)
    hacked = (torch.arange(200) % 10 < 10 * share)[:, None, None, None]
    assert raised(torch.where(hacked, adversarial(pictures), pictures), baseline)


def test_silent_on_honest_scenes_in_batches_of_many_sizes():
    false_alarms, batches = 0, 0
    honest = scenes(800, seed=4)[torch.randperm(800, generator=torch.Generator().manual_seed(0))]
    for size in (24, 72, 200):
        parts = honest[: 800 // size * size].split(size)
        memory = {}
        raised(parts[0], memory)
        for part in parts[1:]:
            batches += 1
            false_alarms += bool(raised(part, memory))
    assert batches >= 40 and false_alarms == 0


def test_hundreds_of_images_take_milliseconds():
    pictures, group = scenes(200, 5), torch.arange(200)
    measure(samples_of(pictures), group)
    best = min(_seconds(lambda: measure(samples_of(pictures), group)) for _ in range(5))
    assert best < 0.5  # about 0.03 on an idle core


def _seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def test_text_hacks():
    rng = random.Random(0)
    honest = ["".join(rng.choice("abcdefghij klmnop") for _ in range(rng.randint(80, 120))) for _ in range(96)]
    again = ["".join(rng.choice("abcdefghij klmnop") for _ in range(rng.randint(80, 120))) for _ in range(96)]
    group, memory = torch.arange(24).repeat_interleave(4), {}

    def names(texts, full):
        sample = Samples([Prompt("", 0)] * 96, completions=texts)
        measured = measure(sample, group, full=torch.tensor(full))
        return {c.name for c in check_statistics("train", measured, group, memory, OPTIONS) if c.raised}

    assert names(honest, [False] * 96) == set()
    assert names(again, [False] * 96) == set()
    assert "train/length" in names(["yes"] * 96, [False] * 96)
    assert "train/shared" in names([honest[0]] * 96, [False] * 96)
    assert "train/distinct" in names(["ha " * 33 + str(i) for i in range(96)], [False] * 96)
    assert names(again, [True] * 96) == {"train/full"}
    # the same answer for a prompt every time may be right, and so may one for two prompts
    assert names([honest[i // 4 * 4] for i in range(96)], [False] * 96) == set()
    assert names([honest[i // 4 % 12] for i in range(96)], [False] * 96) == set()
    assert names([honest[i // 4 % 12] for i in range(96)], [False] * 96) == set()  # and two prompts may share theirs


# -- rewards, KL, state --------------------------------------------------------------------------------------------


def scores(total, watched, seed=0):
    """72 noisy binary-like scores around two means; the same noise every time, as with fixed seeds."""
    noise = torch.randn(72, 2, generator=torch.Generator().manual_seed(0)).double() * 0.4
    drift = torch.randn(72, 2, generator=torch.Generator().manual_seed(seed)).double() * 0.05
    rewards = torch.tensor([total, watched], dtype=torch.float64) + noise + drift
    index = torch.arange(72)
    return Scores(rewards, torch.tensor([1.0, 0.0]), ("easy", "gold"), index, index, torch.ones(72, dtype=torch.bool))


def stories(*pairs):
    memory = {}
    return [check_rewards(scores(*pair, seed=i), memory, OPTIONS) for i, pair in enumerate(pairs, start=1)]


def test_a_watched_reward_that_falls_while_the_trained_one_rises():
    told = stories((0.1, 0.5), (0.2, 0.6), (0.3, 0.55), (0.4, 0.5), (0.5, 0.4))
    assert told[:3] == [[], [], []]  # four evaluations make a span of three
    assert not told[3][0].raised  # 0.5 -> 0.5
    assert told[4][0].raised and told[4][0].value == pytest.approx(-0.2, abs=0.03)
    assert "watched reward gold fell by 0.2" in sentence(told[4][0], OPTIONS)
    flat = [(0.5, 0.4)] * 5
    told = stories((0.1, 0.5), (0.2, 0.6), (0.3, 0.55), (0.4, 0.5), *flat, (0.5, 0.6), (0.5, 0.6))
    assert all(checks[0].raised for checks in told[4:9])  # it has not recovered, only stopped falling
    assert not any(checks[0].raised for checks in told[9:])


def test_no_alarm_where_both_rise_both_fall_or_nothing_moves():
    assert not stories((0.1, 0.5), (0.2, 0.6), (0.3, 0.7), (0.4, 0.8))[-1][0].raised
    assert not stories((0.4, 0.8), (0.3, 0.7), (0.2, 0.6), (0.1, 0.5))[-1][0].raised
    assert not any(checks and checks[0].raised for checks in stories(*[(0.4, 0.5)] * 40))


def test_paired_differences():
    after = [float(i % 2) for i in range(10)]
    mean, z = paired([0.0] * 10, after)
    assert (mean, z) == pytest.approx((0.5, 0.5 / (math.sqrt(10 / 9 * 0.25) / math.sqrt(10))))
    assert paired([0.0] * 10, [math.nan, *after[1:]])[0] == pytest.approx(5 / 9)
    assert paired([0.0] * 5, [-1.0] * 5) == (0.0, 0.0)


def session(**options):
    config = SimpleNamespace(monitor=MonitorConfig(**options))
    algorithm, progress = SimpleNamespace(family="diffusion"), SimpleNamespace(iteration=0)
    return SimpleNamespace(algorithm=algorithm, config=config, memory={}, progress=progress)


def rollout(count):
    return rollout_of(None, torch.randn(count, 4, 2, 2), group=torch.arange(count))


def test_kl_beyond_its_limit():
    watched = session(kl=0.5, samples=0)
    metrics = check_training(watched, rollout(8), samples_of(scenes(8, 0)), {"kl/reference": 0.4})
    assert metrics["alarm/kl"] == 0.0 and new_alarms(watched, metrics) == []
    metrics = check_training(watched, rollout(8), samples_of(scenes(8, 0)), {"kl/reference": math.nan})
    assert metrics["alarm/kl"] == 1.0
    assert new_alarms(watched, metrics) == ["alarm: the KL to the reference is nan, beyond monitor.kl=0.5"]
    with pytest.raises(UserError, match="needs a KL to the reference"):
        check_training(watched, rollout(8), samples_of(scenes(8, 0)), {})


def heldout(watched, pictures):
    index = torch.arange(len(pictures))
    known = torch.ones(len(pictures), dtype=torch.bool)
    judged = Scores(torch.zeros(len(pictures), 1), torch.ones(1), ("r",), index, index, known)
    return check_heldout(watched, samples_of(pictures), judged)


def test_an_alarm_is_told_once_and_again_after_it_was_over():
    watched = session()
    assert new_alarms(watched, heldout(watched, scenes(100, 0))) == []
    watched.progress.iteration = 5
    blank = heldout(watched, torch.full((100, 3, SIDE, SIDE), 0.5))
    told = new_alarms(watched, blank)
    assert len(told) == sum(value for key, value in blank.items() if key.startswith("alarm/")) >= 4
    assert any(line.startswith("alarm: contrast of held-out samples is 0, below the base model's 0.0") for line in told)
    watched.progress.iteration = 6
    assert new_alarms(watched, blank) == [] and watched.memory["monitor"]["since"] == 5
    assert new_alarms(watched, {"alarm/kl": 0.0}) == [] and watched.memory["monitor"]["since"] == 5  # not an evaluation
    assert new_alarms(watched, heldout(watched, scenes(100, 1))) == [] and watched.memory["monitor"]["since"] is None
    assert len(new_alarms(watched, blank)) == len(told)


def test_the_state_survives_a_checkpoint_bit_for_bit():
    first = session()
    heldout(first, scenes(60, 0))
    resumed = session()
    resumed.memory = json.loads(json.dumps(first.memory))
    assert resumed.memory == first.memory
    assert heldout(resumed, scenes(60, 1)) == heldout(first, scenes(60, 1))


def test_metrics_are_plain_finite_numbers(tmp_path):
    watched = session()
    metrics = check_training(watched, rollout(60), samples_of(scenes(60, 0)), {}) | heldout(watched, scenes(60, 0))
    assert {"monitor/train/latent", "monitor/train/latent/z", "alarm/train/latent", "alarm/heldout/grid"} <= set(
        metrics
    )
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    RunDirectory(tmp_path).log({"step": 1, **metrics})


def test_images_that_are_not_finite_are_left_out():
    watched = session()
    heldout(watched, scenes(60, 0))
    pictures = scenes(60, 1)
    pictures[::2] = math.nan
    found = images.measure_images(pictures, torch.arange(60))
    alone = images.measure_images(scenes(60, 1)[1::2], torch.arange(30))
    assert all(torch.equal(found[name][1::2].nan_to_num(9), alone[name].nan_to_num(9)) for name in alone)
    assert all(bool(values[::2].isnan().all()) for values in found.values())
    assert not any(value for key, value in heldout(watched, pictures).items() if key.startswith("alarm/"))
    assert heldout(watched, torch.full_like(pictures, math.nan)) == {}

"""The report: right numbers, images inside the file, nothing loaded from elsewhere, and no trust in what it shows."""

import base64
import hashlib
import json
import math
import re

import numpy as np
import pytest

from flowrl.checks import CHECKS
from flowrl.errors import UserError
from flowrl.evaluation.results import VariantScores, summarise
from flowrl.records.sample_files import sample_path, write_image, write_text
from flowrl.report import write
from flowrl.report.curves import diagnostic_figures, reward_figures, time_figures, time_shares
from flowrl.report.gallery import spaced
from flowrl.report.numbers import number
from flowrl.report.record import Metrics, read_metrics
from flowrl.report.summary import flat
from flowrl.worlds.images.scenes import Scene, Thing
from flowrl.worlds.shapes.scenes import render

EVIL = '"><script>alert(1)</script><img src=x onerror="alert(2)">'
CONFIG = "name: a run\nmodel: {path: shapes}\nalgorithm: {use: flow_grpo, kl: 0.0}\nrewards:\n- {use: shapes}\n"


def answers(page: str) -> dict:
    """What a saved page tells, by address."""
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[0])


def parted(page: str) -> tuple[str, list[str]]:
    """A page without its scripts, of which the tags stay, and their content."""
    pattern = r"(<(script|style)[^>]*>)(.*?)(</\2>)"
    return re.sub(pattern, r"\1\4", page, flags=re.S), [part[2] for part in re.findall(pattern, page, re.S)]


def picture(color="red"):
    return render([Scene((Thing("circle", color, 8.0, 8.0, 5.0),))])[0]


def new_run(path, lines=(), config=CONFIG):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(config)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def metrics(step):
    return {
        "step": step,
        "samples": 96 * step,
        "time": 2.5 * step,
        "reward/mean": 0.25 + 0.01 * step,
        "reward/shapes/mean": 0.25 + 0.01 * step,
        "reward/shapes/std": 0.1,
        "ratio/first_max_deviation": 3e-7,
        "kl/reference": 0.001,
        "time/sample": 1.5,
        "time/update": 0.5,
    }


def add_samples(run, step, prompt="a red circle"):
    folder = run / "samples" / f"step_{step:06d}"
    write_image(folder / "0000.png", picture())
    row = {"file": "0000.png", "prompt": prompt, "rewards": {"shapes": 0.625}, "total": 0.625, "advantage": -1.25}
    write_text(folder / "samples.jsonl", json.dumps(row) + "\n")


def add_heldout(run, step, prompt="a red circle"):
    folder = run / "heldout" / f"step_{step:06d}"
    write_image(folder / "0000.png", picture("green"))
    row = {"file": "0000.png", "prompt": prompt, "prompt_id": 3, "seed": 9, "rewards": {"shapes": 0.5}, "total": 0.5}
    write_text(folder / "samples.jsonl", json.dumps(row) + "\n")


def add_evaluation(run, prompt="a red circle"):
    arms = {}
    for arm, correct in (("base", [[0.0], [0.0]]), ("tuned", [[1.0], [0.0]])):
        lines = []
        for index in range(2):
            write_image(sample_path(run / "eval" / arm / "shapes-test", index, 0), picture())
            lines.append(
                {
                    "filename": f"shapes-test/{index:05d}/samples/0000.png",
                    "tag": "colors",
                    "prompt": prompt,
                    "correct": bool(correct[index][0]),
                    "reason": "found 0 of 1 circle",
                    "measures": {"correct": correct[index][0]},
                }
            )
        write_text(run / "eval" / arm / "geneval" / "results.jsonl", "\n".join(map(json.dumps, lines)) + "\n")
        arms[arm] = VariantScores({"correct": np.array(correct)}, np.ones((2, 1)), ["found 0 of 1 circle"])
    suite = {
        "title": "geneval[shapes]",
        "primary": "correct",
        "partial": False,
        "prompts": 2,
        "prompts_available": 2,
        "samples_per_prompt": 1,
        "medium": "images",
        **summarise(arms, ["colors", "colors"], ["colors"], 200, 0),
    }
    write_text(run / "eval/results.json", json.dumps({"suites": {"geneval": suite}, "manifest": {"seed": 42}}))


def test_full_report_holds_numbers_and_images(tmp_path):
    run = new_run(tmp_path / "run", [metrics(step) for step in range(1, 6)])
    add_samples(run, 1)
    add_samples(run, 5)
    add_evaluation(run)
    path = write(run)
    assert path == run / "report.html"
    page = path.read_text()
    told = answers(page)
    overview = told["runs/0/overview"]
    assert overview["name"] == "a run" and overview["method"]["paper"] == "arXiv:2505.05470"
    tiles = {tile["label"]: tile for tile in overview["tiles"]}
    assert tiles["training reward"]["value"] == "0.3" and tiles["ratio off 1 before an update"]["value"] == "3e-07"
    assert tiles["geneval[shapes]"]["value"] == "0.000 → 0.500"
    assert overview["time"] == [["sampling", 7.5, 0.75], ["update", 2.5, 0.25]]
    assert overview["tables"][0]["reasons"] == [["found 0 of 1 circle", [1, 1]]]
    assert told["runs/0/metrics"]["columns"]["reward/mean"] == [0.26, 0.27, 0.28, 0.29, 0.3]
    (card,) = told["runs/0/samples/samples/5"]
    assert (card["total"], card["advantage"], card["prompt"]) == (0.625, -1.25, "a red circle")
    pairs = told["runs/0/pairs"]["evaluation"]["pairs"]
    assert [(pair["before"]["correct"], pair["after"]["correct"]) for pair in pairs] == [(False, True), (False, False)]
    embedded = {base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)}
    assert len(embedded) == 1 and embedded.pop().startswith(b"\x89PNG")
    assert page.count("data:image/png") == 2 + 4  # two snapshots, two pairs
    assert len(page) > 60_000 and "uPlot" in page  # what draws it is inside


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    run = new_run(tmp_path / "run", [metrics(1), metrics(2)])
    add_samples(run, 1)
    text = write(run).read_text()
    frame, scripts = parted(text)
    loads = re.findall(r"""(?:src|href|@import|srcset)\s*[=(]\s*["']?([^"')\s>]+)""", frame)
    assert loads and all(load.startswith(("data:", "#")) for load in loads)
    assert (
        '<link rel="stylesheet' not in frame and "url(" not in frame and "http" not in frame.replace("http-equiv", "")
    )
    # The vendored library names its homepage in a comment; our own script knows no address but those it asks when live.
    assert set(re.findall(r"https?://[^\s\"']+", " ".join(scripts))) == {"https://github.com/leeoniya/uPlot"}


def test_the_policy_of_a_saved_page_names_what_it_runs(tmp_path):
    text = write(new_run(tmp_path / "run", [metrics(1)])).read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy.startswith("default-src &#39;none&#39;;") and "unsafe" not in policy
    (script,), (style,) = (
        re.findall(r"<script>(.*?)</script>", text, re.S),
        re.findall(r"<style>(.*?)</style>", text, re.S),
    )
    for part in (script, style):
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"&#39;sha256-{digest}&#39;" in policy


def test_text_from_outside_is_data(tmp_path):
    config = "name: " + json.dumps(EVIL) + "\nmodel: " + json.dumps(EVIL) + "\nalgorithm: " + json.dumps(EVIL) + "\n"
    lines = [{**metrics(1), f"reward/{EVIL}/mean": 1.0, f"kl/{EVIL}": 0.0, f"time/{EVIL}": 1.0, EVIL: 2.0}]
    run = new_run(tmp_path / "run", lines, config)
    add_samples(run, 1, EVIL)
    add_heldout(run, 0, EVIL)
    add_heldout(run, 5, EVIL)
    add_evaluation(run, EVIL)
    (run / "log.jsonl").write_text(json.dumps({"time": "now", "text": EVIL}) + "\n")
    text = write(run).read_text()
    told = answers(text)
    assert told["runs/0/overview"]["name"] == EVIL == told["runs/0/said"]["rows"][0]["text"]
    assert told["runs/0/samples/heldout/5"][0]["prompt"] == EVIL
    assert EVIL not in text and "<img src=x" not in text
    assert len(re.findall("<script", parted(text)[0])) == 2  # our own, and the data
    assert all(f"<{sign}" not in re.findall(r'id="data">(.*?)</script>', text, re.S)[0] for sign in ("", "/", "!"))


def test_held_out_prompts_are_followed_by_prompt_and_seed(tmp_path):
    run = new_run(tmp_path / "run", [metrics(1)])
    add_heldout(run, 0)
    assert answers(write(run).read_text())["runs/0/pairs"]["heldout"] is None  # one moment shows no change
    add_heldout(run, 10)
    found = answers(write(run).read_text())["runs/0/pairs"]["heldout"]
    assert (found["first"], found["last"]) == (0, 10)
    (pair,) = found["pairs"]
    assert pair["before"]["seed"] == pair["after"]["seed"] == "9" and pair["after"]["image"].startswith(
        "data:image/png"
    )


def test_seeds_keep_their_digits(tmp_path):
    run = new_run(tmp_path / "run", [metrics(1)])
    write_text(run / "samples/step_000001/samples.jsonl", json.dumps({"completion": "x", "seed": 2**63 - 1}) + "\n")
    assert answers(write(run).read_text())["runs/0/samples/samples/1"][0]["seed"] == str(2**63 - 1)


def test_files_outside_the_run_are_not_shown(tmp_path):
    run = new_run(tmp_path / "run", [metrics(1)])
    write_image(tmp_path / "secret.png", picture("blue"))
    rows = [{"file": name, "prompt": "x"} for name in ("../../../secret.png", str(tmp_path / "secret.png"), "a\0.png")]
    write_text(run / "samples/step_000001/samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert "data:image/png" not in write(run).read_text()


@pytest.mark.parametrize("lines", [[], [metrics(1)], [{"step": 1, "reward/mean": math.nan}], [{"step": 3}]])
def test_short_runs_have_a_report(tmp_path, lines):
    page = write(new_run(tmp_path / "run", lines)).read_text()
    assert answers(page)["runs/0/overview"]["iterations"] == len(lines)


def test_config_alone_is_enough(tmp_path):
    run = new_run(tmp_path / "run", config="{}")
    (run / "metrics.jsonl").unlink()
    told = answers(write(run).read_text())["runs/0/overview"]
    assert told["name"] == "run" and told["tiles"] == []


def test_damaged_picture_costs_only_itself(tmp_path):
    run = new_run(tmp_path / "run", [metrics(1)])
    add_samples(run, 1)
    (run / "samples/step_000001/0000.png").write_bytes(b"junk")
    told = answers(write(run).read_text())
    assert told["runs/0/steps"]["samples"] == [1] and told["runs/0/samples/samples/1"] == []


def test_a_saved_page_holds_evenly_spaced_samples(tmp_path):
    run = new_run(tmp_path / "run", [metrics(1)])
    for step in range(1, 31):
        add_samples(run, step)
    told = answers(write(run).read_text())
    assert told["runs/0/steps"]["samples"] == [1, 5, 9, 13, 18, 22, 26, 30]
    assert {f"runs/0/samples/samples/{step}" for step in (1, 30)} <= told.keys()


def test_not_a_run(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        write(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        write(tmp_path / "missing")
    with pytest.raises(UserError, match="line 1 is not JSON"):
        run = new_run(tmp_path / "run")
        (run / "metrics.jsonl").write_text("oops\n{}\n")
        write(run)


def test_metrics_of_a_resumed_and_unfinished_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": 1}\n{"step": 2, "loss": NaN}\n{"step": 2, "loss": 3, "new": null}\n{"step": 3, "lo'
    )
    found = read_metrics(path)
    assert found["step"].tolist() == [1, 2] and found["loss"].tolist() == [1, 3]
    assert np.isnan(found["new"]).all() and np.isnan(found["absent"]).all()
    assert found.last("loss") == 3 and found.first("loss") == 1 and math.isnan(found.last("new"))


def test_a_mean_has_the_band_that_was_logged():
    def band(**more):
        columns = {"reward/a/mean": [1.0], "step": [1.0]} | {f"reward/a/{key}": [value] for key, value in more.items()}
        (figure,) = reward_figures(Metrics({key: np.array(values) for key, values in columns.items()}))
        curve = figure.curves[0]
        return curve.low, curve.high, curve.spread

    assert band() == ("", "", "")
    assert band(std=0.5) == ("", "", "reward/a/std")
    assert band(std=0.5, min=0.0, max=2.0) == ("reward/a/min", "reward/a/max", "")
    assert band(std=0.5, min=0.0, max=2.0, p10=0.1, p90=1.9) == ("reward/a/p10", "reward/a/p90", "")


def test_time_is_named_as_in_the_terminal_and_is_a_share_of_the_iteration():
    columns = {"time/update": [5.0], "time/reward": [1.0], "time/iteration": [8.0], "step": [1.0], "entropy": [0.5]}
    metrics = Metrics({key: np.array(values) for key, values in columns.items()})
    assert time_shares(metrics) == [("update", 5.0, 5 / 8), ("waiting for rewards", 1.0, 1 / 8)]
    (figure,) = time_figures(metrics)
    assert [curve.key for curve in figure.curves] == ["time/update", "time/reward"] and figure.stacked
    assert [figure.title for figure in diagnostic_figures(metrics)] == ["Entropy"]


def test_self_checks_are_told_with_what_outside_means(tmp_path):
    run = new_run(tmp_path / "run", [metrics(1), metrics(2)])
    check = CHECKS[0]
    facts = {"metric": check.metric, "low": 0.5, "high": None}
    lines = [
        {"step": 1, "check": "of the future", "value": 1.0, "low": 0.0, "high": 2.0, "healthy": True},
        {"step": 1, "check": check.name, "value": 0.25, "healthy": False, **facts},
        {"step": 2, "check": check.name, "value": 3.0, "healthy": True, **facts},
    ]
    assert answers(write(run).read_text())["runs/0/overview"]["checks"] == []
    (run / "checks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = answers(write(run).read_text())["runs/0/overview"]["checks"]
    assert (first["name"], first["value"], first["outside"], first["state"]) == (check.name, "3", 1, "unclear")
    assert first["healthy"] == "0.5 or more" and first["meaning"] == f"{check.outside}; {check.fix}"
    assert (second["name"], second["healthy"], second["state"]) == ("of the future", "0 to 2", "good")


def test_nested_settings_are_one_line_each():
    config = {"a": {"b": None, "c": 1}, "rewards": [{"use": "x", "options": {"mode": "m"}}, "y"], "betas": [0.9, 0.99]}
    assert list(flat(config)) == [
        ("a.c", "1"),
        ("rewards.0.use", "x"),
        ("rewards.0.options.mode", "m"),
        ("rewards.1", "y"),
        ("betas", "[0.9, 0.99]"),
    ]


def test_numbers_read_well():
    assert [number(v) for v in (0.12345, 1.234e-7, 12345, 4.56e6, 0.0, math.nan)] == [
        "0.123",
        "1.23e-07",
        "12.3k",
        "4.56M",
        "0",
        "–",
    ]


def test_spaced_keeps_both_ends():
    assert spaced(3, 8) == [0, 1, 2]
    assert spaced(101, 5) == [0, 25, 50, 75, 100]

"""The report: right numbers, images inside the file, nothing loaded from elsewhere, and no trust in what it shows."""

import base64
import html
import json
import math
import re

import numpy as np
import pytest

from flowrl.errors import UserError
from flowrl.evaluation.results import VariantScores, summarise
from flowrl.records.sample_files import sample_path, write_image, write_text
from flowrl.report import write
from flowrl.report.charts import BINS, Line, line_chart, number, stacked_chart, ticks
from flowrl.report.curves import diagnostic_figures, time_figure
from flowrl.report.gallery import spaced
from flowrl.report.record import Metrics, read_metrics
from flowrl.worlds.shapes.scenes import Scene, Thing, render

EVIL = '"><script>alert(1)</script><img src=x onerror="alert(2)">'
CONFIG = "name: a run\nmodel: {path: shapes}\nalgorithm: {use: flow_grpo, kl: 0.0}\nrewards:\n- {use: shapes}\n"


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
    text = html.unescape(path.read_text())
    for expected in (
        "a run",
        "flow_grpo",
        "arXiv:2505.05470",
        "0.3",
        "3e-07",
        "0.625",
        "-1.25",
        "✓ correct",
        "✗ wrong",
    ):
        assert expected in text, expected
    assert "0.000 → 0.500" in text and "found 0 of 1 circle" in text
    assert "sampling 75%" in text and "update 25%" in text  # 1.5 s and 0.5 s
    embedded = {base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", text)}
    assert len(embedded) == 1 and embedded.pop().startswith(b"\x89PNG")
    assert text.count("data:image/png") == 2 + 4  # two snapshots, two pairs


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    run = new_run(tmp_path / "run", [metrics(1), metrics(2)])
    add_samples(run, 1)
    text = write(run).read_text()
    loads = re.findall(r"""(?:src|href|url|@import|srcset)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert loads and all(load.startswith("data:image/") for load in loads)
    assert "<script" not in text and "<link" not in text


def test_text_from_outside_is_escaped(tmp_path):
    config = "name: " + json.dumps(EVIL) + "\nmodel: " + json.dumps(EVIL) + "\nalgorithm: " + json.dumps(EVIL) + "\n"
    lines = [{**metrics(1), f"reward/{EVIL}/mean": 1.0, f"kl/{EVIL}": 0.0, f"time/{EVIL}": 1.0, EVIL: 2.0}]
    run = new_run(tmp_path / "run", lines, config)
    add_samples(run, 1, EVIL)
    add_heldout(run, 0, EVIL)
    add_heldout(run, 5, EVIL)
    add_evaluation(run, EVIL)
    text = write(run).read_text()
    assert "alert(1)" in text
    assert "<script" not in text and "<img src=x" not in text
    assert set(re.findall(r"<img src=\"(.{5})", text)) == {"data:"}


def test_held_out_prompts_are_followed_by_prompt_and_seed(tmp_path):
    run = new_run(tmp_path / "run", [metrics(1)])
    add_heldout(run, 0)
    assert "Held-out prompts over time" not in write(run).read_text()  # one moment shows no change
    add_heldout(run, 10)
    text = write(run).read_text()
    assert "iteration 0</p>" in text and "iteration 10</p>" in text and text.count("data:image/png") == 2


def test_files_outside_the_run_are_not_shown(tmp_path):
    run = new_run(tmp_path / "run", [metrics(1)])
    write_image(tmp_path / "secret.png", picture("blue"))
    row = {"file": "../../../secret.png", "prompt": "x"}
    write_text(run / "samples/step_000001/samples.jsonl", json.dumps(row) + "\n")
    assert "data:image" not in write(run).read_text()


@pytest.mark.parametrize("lines", [[], [metrics(1)], [{"step": 1, "reward/mean": math.nan}], [{"step": 3}]])
def test_short_runs_have_a_report(tmp_path, lines):
    assert "a run" in write(new_run(tmp_path / "run", lines)).read_text()


def test_config_alone_is_enough(tmp_path):
    run = new_run(tmp_path / "run", config="{}")
    (run / "metrics.jsonl").unlink()
    assert "Nothing logged yet" in write(run).read_text()


def test_damaged_picture_costs_only_itself(tmp_path):
    run = new_run(tmp_path / "run", [metrics(1)])
    add_samples(run, 1)
    (run / "samples/step_000001/0000.png").write_bytes(b"junk")
    assert "Training samples" not in write(run).read_text()


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


def points(svg, style="curve"):
    return [line.split() for line in re.findall(rf'class="{style} [^"]*" points="([^"]+)"', svg)]


def test_curve_goes_through_its_values():
    svg = line_chart([Line("y", np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 0.5]))])
    (curve,) = points(svg)
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, point.split(","))) for point in curve)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert (y0 - y2) / (y0 - y1) == pytest.approx(0.5, abs=0.01)  # svg's y axis points down


def test_nan_breaks_a_curve():
    y = np.array([1.0, 2.0, math.nan, 3.0, 4.0])
    assert [len(part) for part in points(line_chart([Line("y", np.arange(5.0), y)]))] == [2, 2]
    assert "no finite values" in line_chart([Line("y", np.arange(5.0), np.full(5, math.nan))])
    assert "no finite values" in line_chart([])


def test_long_curves_are_averaged_with_their_range():
    y = np.where(np.arange(30_000) % 100 == 50, 1.0, 0.0)
    svg = line_chart([Line("y", np.arange(30_000.0), y)])
    (curve,) = points(svg)
    (band,) = points(svg, "band")
    assert len(curve) == BINS and len(band) == 2 * BINS
    heights = [float(point.split(",")[1]) for point in band[:BINS]]
    assert max(heights) - min(heights) < 0.2  # every bin shows its spike


def test_stack_adds_up():
    x = np.arange(3.0)
    svg = stacked_chart([Line("a", x, np.full(3, 1.0)), Line("b", x, np.full(3, 3.0))])
    lower, upper = ([float(p.split(",")[1]) for p in area] for area in points(svg, "area"))
    base, first, second = max(lower), min(lower), min(upper)
    assert (base - first) / (base - second) == pytest.approx(0.25, abs=0.01)


def test_time_is_named_as_in_the_terminal_and_is_a_share_of_the_iteration():
    columns = {"time/update": [5.0], "time/reward": [1.0], "time/iteration": [8.0], "step": [1.0], "entropy": [0.5]}
    metrics = Metrics({key: np.array(values) for key, values in columns.items()})
    figure = time_figure(metrics)
    assert figure is not None
    assert [label for label, _ in figure.legend] == ["update 62%", "waiting for rewards 12%"]
    assert [figure.title for figure in diagnostic_figures(metrics)] == ["Entropy"]


def test_rounding_is_no_slope():
    """Two float32 numbers side by side are a flat line with ticks that differ."""
    svg = line_chart([Line("a", np.array([1.0, 2.0]), np.array([2.3841858e-7, 2.3841855e-7]))])
    assert "2.4e-7</text>" in svg and svg.count("2.38e-") == 0


def test_ticks_are_round():
    few = line_chart([Line("a", np.array([0.0, 1.0, 2.0]), np.array([0.0, 0.5, 1.0]))])
    assert ">1</text>" in few and ">0.5</text>" in few and ">1.5</text>" not in few  # iterations are whole
    assert ticks(0.0, 1.0, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0.13, 0.27, 4) == pytest.approx([0.15, 0.2, 0.25])
    assert ticks(-3e-7, 3e-7, 3) == pytest.approx([-2e-7, 0, 2e-7])


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

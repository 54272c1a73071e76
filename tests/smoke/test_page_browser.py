"""The live page in a browser: clicked through while a run goes on. Needs playwright and a chromium."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flowrl.records.directory import RunDirectory
from flowrl.report import write
from tests.launching import PATHS
from tests.unit.test_report import EVIL, add_evaluation, add_heldout, add_samples, metrics, new_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium")]
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytest.importorskip("fastapi", reason="needs the extra `server`")
ROOT = Path(__file__).parents[2]
WIDTHS = (400, 1280, 2560)
OVERFLOW = "document.documentElement.scrollWidth - window.innerWidth"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """A page; what its scripts complain of fails the test."""
    faults: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    yield opened
    context.close()
    assert not faults, faults


def add_completions(run: Path, step: int) -> None:
    folder = run / "samples" / f"step_{step:06d}"
    folder.mkdir(parents=True)
    rows = [
        {
            "prompt": EVIL,
            "completion": f"{EVIL} {number}",
            "rewards": {"sudoku": number / 4},
            "total": number / 4,
            "advantage": number - 1.5,
            "seed": 2**60 + number,
            "tokens": {"text": [EVIL, f" {number}"], "logp": [-0.1, -2.0 * number]},
        }
        for number in range(4)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def image_run(path: Path) -> Path:
    lines = [metrics(step) | {"eval/reward/mean": 0.3} for step in range(1, 21)]
    run = new_run(path, lines)
    for step in range(1, 15):
        add_samples(run, step, EVIL if step == 14 else "a red circle")
    add_heldout(run, 0)
    add_heldout(run, 20)
    add_evaluation(run)
    spread = {"low": 0.0, "high": 1.0, "counts": [3, 1, 0, 2]}
    rows = [{"step": step, "reward": spread, "advantage": spread | {"counts": [2]}} for step in range(1, 21)]
    (run / "histograms.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "memory.jsonl").write_text(json.dumps({"step": 1, "phase": "update", "devices": {}, "host": 2**30}) + "\n")
    RunDirectory(run).say(f"alarm: {EVIL}")
    return run


@pytest.fixture
def served(tmp_path, page):
    """Two runs on a page of their own server; the first, and the page."""
    runs = [image_run(tmp_path / "one"), new_run(tmp_path / "two", [metrics(1), metrics(2)])]
    add_completions(runs[1], 2)
    (runs[1] / "config.yaml").write_text("name: texts\ntrain: {iterations: 7}\n")
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "flowrl", "watch", *map(str, runs)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": PATHS},
    )
    assert server.stdout is not None
    page.goto(server.stdout.readline().strip())
    page.wait_for_selector("#rewards .plot canvas")
    yield runs, page
    page.goto("about:blank")
    server.send_signal(signal.SIGINT)
    assert server.wait(20) in (0, 130)
    server.stdout.close()


def test_a_run_is_followed_and_clicked_through(served):
    (one, _), page = served
    assert "token" not in page.url
    assert page.locator("#tiles").inner_text().count("20") >= 1
    assert page.locator("#said").inner_text().strip().endswith(EVIL)  # words, not markup
    assert page.evaluate("document.querySelectorAll('img[src=x]').length") == 0

    RunDirectory(one).log(metrics(21) | {"reward/mean": 0.875, "reward/shapes/mean": 0.875})
    shown = "() => document.querySelector('#rewards .legend').innerText.includes('0.875')"
    page.wait_for_function(shown, timeout=15_000)
    page.focus("#rewards .plot")
    page.keyboard.press("ArrowLeft")
    assert "iteration 20" in page.locator("#announce").inner_text()
    page.locator("#smoothing").fill("0.9")
    assert page.locator("#smoothing-value").inner_text() == "0.90"
    page.select_option("#axis", "samples")

    first = page.locator("#samples .shot button").first
    first.click()
    assert page.locator("#viewer").is_visible() and page.locator("#viewer-title").inner_text() == EVIL
    size = "document.querySelector('#viewer-image').naturalWidth"
    page.wait_for_function(f"() => {size} > 0")
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()
    assert page.evaluate("document.activeElement === document.querySelector('#samples .shot button')")

    page.select_option("#pairs-of", "heldout")
    assert "iteration 0" in page.locator("#pairs-lead").inner_text()
    page.locator(".pair input[type=range]").first.fill("20")
    assert page.evaluate("document.querySelector('.compare').style.getPropertyValue('--cut')") == "20%"
    page.locator("#spread-at").fill("3")
    assert page.locator("#spread-step").inner_text() == "4"
    page.locator("#spread .plot").first.scroll_into_view_if_needed()
    page.wait_for_selector("#spread .plot canvas")


def test_completions_and_differences_of_another_run(served):
    _, page = served
    assert "train.iterations" in page.locator("#differences").inner_text()
    page.select_option("#focus", "1")
    page.wait_for_selector(".completions")
    cells = "[...document.querySelectorAll('.completions tbody [data-label=completion]')]"
    column = f"{cells}.map(cell => cell.innerText.slice(-1))"
    assert page.evaluate(column) == ["0", "1", "2", "3"]
    page.get_by_role("button", name="sudoku").click()
    assert page.evaluate(column) == ["3", "2", "1", "0"]
    tokens = page.locator(".completions .token")
    assert tokens.count() == 8 and tokens.first.inner_text() == EVIL
    page.select_option("#samples-color", "")
    assert page.locator(".completions .token").count() == 0
    assert not page.locator("#stop").is_visible()  # nobody trains here


def test_stop_and_save_asks_the_process_that_trains(served):
    (one, _), page = served
    code = (
        "import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "from pathlib import Path; from flowrl.records.directory import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])):\n"
        "    signal.sigwait({signal.SIGTERM}); print('asked', flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": PATHS}
    command = [sys.executable, "-c", code, str(one)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout is not None
        page.wait_for_selector("#stop", state="visible", timeout=60_000)
        assert "training" in page.locator("#status").inner_text()
        page.click("#stop")
        page.get_by_role("button", name="Go on training").click()
        assert holder.poll() is None
        page.click("#stop")
        page.locator("#asking").get_by_role("button", name="Stop and save").click()
        assert holder.stdout.readline() == "asked\n"
    page.wait_for_selector("#stop", state="hidden", timeout=20_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_saved_page_fits_every_width_in_both_themes(tmp_path, page, scheme):
    run = image_run(tmp_path / "run")
    add_completions(run, 21)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.emulate_media(color_scheme=scheme)
    page.goto(write(run).as_uri())
    page.wait_for_selector("#rewards .plot canvas")
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(300)
        assert page.evaluate(OVERFLOW) <= 0, width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = float(np.mean([int(part) for part in ground[4:-1].split(",")])) > 128
    assert light == (scheme == "light")
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []

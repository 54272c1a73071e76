"""`flowrl judge` in a browser: pairs are shown, keys vote, back changes a vote, and the end says what was preferred."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flowrl.records.sample_files import write_text
from tests.unit.test_judging import add_evaluation
from tests.unit.test_report import EVIL, new_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium")]
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytest.importorskip("fastapi", reason="needs the extra `server`")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def page():
    """A page; what its scripts complain of fails the test."""
    faults: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        opened.on("pageerror", lambda error: faults.append(str(error)))
        opened.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        yield opened
        browser.close()
    assert not faults, faults


def add_texts(run: Path) -> None:
    """Completions of base and tuned for one prompt."""
    folder = run / "heldout"
    for step, text in ((0, f"{EVIL} base"), (4, f"{EVIL} tuned")):
        line = {"prompt": EVIL, "prompt_id": 1, "seed": 5, "completion": text, "total": step / 4}
        write_text(folder / f"step_{step:06d}" / "samples.jsonl", json.dumps(line) + "\n")


def judge(run: Path) -> tuple[subprocess.Popen[str], str]:
    """The command, and the address that it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flowrl", "judge", str(run), "--name", "ada"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    return process, next(line.strip() for line in lines if line.startswith("http"))


def test_pairs_are_judged_by_keys(tmp_path, page):
    run = new_run(tmp_path / "run")
    add_evaluation(run / "eval", {"base": "red", "tuned": "green"})
    process, address = judge(run)
    try:
        page.goto(address)
        page.wait_for_selector("#pair:not([hidden]) #right img.tiny")
        assert page.inner_text("#progress") == "0 of 3 judged" and "token" not in page.url
        page.screenshot(path=str(tmp_path / "pair.png"))
        for done, key in enumerate(("ArrowLeft", "ArrowDown"), start=1):
            page.keyboard.press(key)
            page.wait_for_selector(f"#progress:text-is('{done} of 3 judged')")
        page.keyboard.press("b")
        page.wait_for_selector("#before:text-is('your vote: equal')")
        page.click("[data-vote=skip]")
        page.wait_for_selector("#before:text-is('')", state="attached")
        page.keyboard.press("ArrowRight")
        page.wait_for_selector("#results:not([hidden]) table")
        assert "tuned (step_000040) against base" in page.inner_text("#tables")
        assert "3 of 1 judge" in page.inner_text("#tables")
        page.screenshot(path=str(tmp_path / "results.png"))
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    votes = [json.loads(line) for line in (run / "judgements.jsonl").read_text().splitlines()]
    assert [vote["vote"] for vote in votes] == ["left", "tie", "skip", "right"]
    assert {vote["judge"] for vote in votes} == {"ada"} and votes[1]["pair"] == votes[2]["pair"]


def test_texts_are_shown_as_they_are(tmp_path, page):
    run = new_run(tmp_path / "run")
    add_texts(run)
    process, address = judge(run)
    try:
        page.set_viewport_size({"width": 400, "height": 800})
        page.goto(address)
        page.wait_for_selector("#left pre")
        shown = {page.inner_text(f"#{side} pre") for side in ("left", "right")}
        assert shown == {f"{EVIL} base", f"{EVIL} tuned"} and page.inner_text("#prompt") == EVIL
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0

"""The page of a run: as one HTML file that opens anywhere, offline, or as the frame that a server fills."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flowrl.errors import UserError, describe_exception, printable
from flowrl.records.sample_files import write_text
from flowrl.report.feed import Feed, as_json
from flowrl.report.numbers import spaced
from flowrl.report.pictures import embed

SCRIPTS = ("uPlot.iife.min.js", "page.js")
STYLES = ("uPlot.min.css", "page.css")
ITERATIONS = 8
"""Whose samples a saved page holds, of each kind, first and last included."""
IMAGES = 8
"""Of each of them."""


def write(run: Path) -> Path:
    """Write ``RUN/report.html`` and return its path. Raises UserError when ``run`` is not a run directory."""
    path = Path(run) / "report.html"
    write_text(path, saved_page(Feed(Path(run))))
    return path


def try_write(run: Path, say: Callable[[str], None]) -> list[str]:
    """As `write`, for the end of a run, which a report that fails must not fail: what went wrong, as a sentence."""
    say("writing the report")
    try:
        write(run)
    except Exception as error:  # whatever it is, the run and its checkpoints are whole
        cause = str(error) if isinstance(error, UserError) else describe_exception(error)
        return [f"the report was not written ({cause}); the run is whole, try `flowrl report {run}`"]
    return []


def saved_page(feed: Feed) -> str:
    """The whole page with everything it needs inside."""
    overview = feed.overview()
    scripts, styles = (Markup("\n".join(map(static, names))) for names in (SCRIPTS, STYLES))
    values = {
        "title": overview["name"],
        "policy": f"default-src 'none'; script-src '{_digest(scripts)}'; style-src '{_digest(styles)}'; img-src data:",
        "scripts": scripts,
        "styles": styles,
        "data": Markup(as_json(answers(feed, overview))),
    }
    return _render(values)


def live_page() -> str:
    """The frame, which asks its server for the rest."""
    return _render({"title": "flowrl", "policy": None, "scripts": "", "styles": "", "data": Markup("null")})


def answers(feed: Feed, overview: dict[str, Any]) -> dict[str, Any]:
    """What a server would answer, by address; of samples evenly spaced iterations and rows, with images inside."""
    found: dict[str, Any] = {
        "runs": [{"id": 0, "name": overview["name"], "path": str(feed.path)}],
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "runs/0/overview": overview,
        "runs/0/metrics": feed.metrics(),
        "runs/0/memory": feed.memory(),
        "runs/0/histograms": feed.histograms(),
        "runs/0/said": feed.said(),
        "runs/0/pairs": feed.pairs(embed),
    }
    steps: dict[str, list[int]] = {}
    for kind, every in feed.steps().items():
        steps[kind] = [every[index] for index in spaced(len(every), ITERATIONS)]
        for step in steps[kind]:
            cards = feed.samples(kind, step, embed)
            found[f"runs/0/samples/{kind}/{step}"] = [cards[index] for index in spaced(len(cards), IMAGES)]
    found["runs/0/steps"] = steps
    return found


def static(name: str) -> str:
    """A file of ours that the page loads."""
    return (resources.files("flowrl.report") / "static" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """As a content security policy names what may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _render(values: dict[str, Any]) -> str:
    return _environment().get_template("page.html.jinja").render(values)


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("flowrl.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _visible(value: object) -> object:
    """Users' words without control characters, which HTML does not allow; our own markup as it is."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

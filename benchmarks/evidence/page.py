"""The tables and the picture of a page, from its data."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.evidence.runs import DATA, PACKAGES, Page, read

BEGIN, END = "<!-- measured: written by `python -m benchmarks.evidence write` -->", "<!-- end of measured -->"
SCORE, SAMPLES, FORWARDS, SECONDS = range(4)
Curves = dict[str, dict[str, list[list[float]]]]
"""Points by arm and seed."""


def curves_of(page: Page, data: dict[str, Any]) -> Curves:
    """The curves of all runs. One that ended early (say, a loss that is not finite) scores 0 from there on."""
    length = max(len(run["points"]) for arm in data["arms"].values() for run in arm["runs"].values())
    found: Curves = {}
    for arm in (arm for arm in page.arms if arm in data["arms"]):
        runs = data["arms"][arm]["runs"]
        found[arm] = {
            seed: run["points"] + [[0.0, *run["points"][-1][1:]]] * (length - len(run["points"]))
            for seed, run in sorted(runs.items(), key=lambda item: int(item[0]))
        }
    return found


def measured(page: Page, data: dict[str, Any]) -> str:
    """Everything on the page that comes from the data, in Markdown."""
    curves = curves_of(page, data)
    seeds = sorted({int(seed) for runs in curves.values() for seed in runs})
    records = [run for arm in data["arms"].values() for run in arm["runs"].values()]
    machines, *versions, commits = (
        " and ".join(sorted({run[key] for run in records})) for key in ("processor", *PACKAGES, "commit")
    )
    packages = ", ".join(f"{name} {found}" for name, found in zip(PACKAGES, versions, strict=True))
    parts = [
        f"`{page.command()}`",
        *(["All arms: " + " ".join(f"`{each}`" for each in page.shared) + "."] if page.shared else []),
        f"Seeds {', '.join(map(str, seeds))}; {machines}, one thread a run; {packages}; flowrl at {commits}.",
        f"![Held-out score of every arm: mean and range of the seeds](data/{page.name}.svg)",
        *([_pilot(page, data["pilot"])] if page.rates else []),
        _scores(curves, page.unit),
        *([_also(page, data)] if page.also else []),
        _costs(curves, page.mark, page.unit),
        *([_norms(data)] if any("norm_growth" in run for run in records) else []),
        _pairs(page, curves),
        "What each arm sets:\n\n" + "\n".join(f"- `{arm}`: {_said(page, arm, data)}" for arm in curves),
    ]
    return "\n\n".join(parts)


def _said(page: Page, arm: str, data: dict[str, Any]) -> str:
    started = [f"{page.processes[arm]} processes (seconds are those of the first)"] if arm in page.processes else []
    return " ".join([*started, *(f"`{each}`" for each in data["arms"][arm]["overrides"])])


def _pilot(page: Page, scores: dict[str, dict[str, float]]) -> str:
    rows = [
        f"Learning rates: mean held-out score of {page.pilot_iterations} iterations on seed {page.pilot_seed}.\n",
        f"| arm | {' | '.join(f'{rate:g}' for rate in page.rates)} |",
        "|---" * (1 + len(page.rates)) + "|",
    ]
    for arm, tried in scores.items():
        best = max(tried, key=lambda rate: tried[rate])
        cells = [f"**{tried[f'{r:g}']:.3f}**" if f"{r:g}" == best else f"{tried[f'{r:g}']:.3f}" for r in page.rates]
        rows.append(f"| `{arm}` | {' | '.join(cells)} |")
    borrowed = [f"`{arm}` takes that of `{other}`." for arm, other in page.borrows.items()]
    return "\n".join(rows) + ("\n\n" + " ".join(borrowed) if borrowed else "")


def _scores(curves: Curves, unit: str) -> str:
    points = next(iter(next(iter(curves.values())).values()))
    rows = [
        f"Held-out score after {', '.join(f'{point[SAMPLES]:g}' for point in points)} {unit}, mean of the seeds; the"
        " end with its range over the seeds; the mean of the whole curve.\n",
        "| arm | curve | end | each seed | mean of the curve |",
        "|---|---|---|---|---|",
    ]
    for arm, runs in curves.items():
        means = [statistics.fmean(column) for column in zip(*_column(runs, SCORE), strict=True)]
        ends = [points[-1][SCORE] for points in runs.values()]
        cells = [_spaced(means), written_range(ends, 3), _spaced(ends), f"{statistics.fmean(means[1:]):.3f}"]
        rows.append(f"| `{arm}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def _also(page: Page, data: dict[str, Any]) -> str:
    rows = ["Other rewards at the end, mean and range of the seeds.\n"]
    rows += [f"| arm | {' | '.join(f'`{key}`' for key in page.also)} |", "|---" * (1 + len(page.also)) + "|"]
    for arm, kept in data["arms"].items():
        found = [[run["also"][key] for run in kept["runs"].values() if key in run["also"]] for key in page.also]
        cells = [written_range(values, 3) if values else "-" for values in found]
        rows.append(f"| `{arm}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def _norms(data: dict[str, Any]) -> str:
    rows = [
        "Length of the velocities of the last live weights over the base's, less 1, on noised samples of the base: mean"
        " and range of the seeds.\n",
        "| arm | growth |",
        "|---|---|",
    ]
    for arm, kept in data["arms"].items():
        found = [run["norm_growth"] for run in kept["runs"].values() if "norm_growth" in run]
        rows.append(f"| `{arm}` | {written_range(found, 3) if found else 'no checkpoint'} |")
    return "\n".join(rows)


def _costs(curves: Curves, mark: float, unit: str) -> str:
    rows = [
        f"What it took to score {mark:g} (the first evaluation at or above it), each seed, and what the whole run took,"
        " mean of the seeds.\n",
        f"| arm | {unit} | thousand network evaluations | CPU s | whole run: {unit} | network evaluations | CPU s |",
        "|---" * 7 + "|",
    ]
    for arm, runs in curves.items():
        reached = [reach(points, mark) for points in runs.values()]
        cells = [
            " ".join("never" if point is None else f"{point[column] / divisor:.{digits}f}" for point in reached)
            for column, divisor, digits in ((SAMPLES, 1, 0), (FORWARDS, 1000, 1), (SECONDS, 1, 0))
        ]
        whole = [statistics.fmean(points[-1][c] for points in runs.values()) for c in (SAMPLES, FORWARDS, SECONDS)]
        rows.append(f"| `{arm}` | {' | '.join(cells)} | {whole[0]:.0f} | {whole[1] / 1000:.1f}k | {whole[2]:.0f} |")
    return "\n".join(rows)


def reach(points: list[list[float]], mark: float) -> list[float] | None:
    """The first evaluation that is at the mark; ``None`` if none is."""
    return next((point for point in points if point[SCORE] >= mark), None)


def _pairs(page: Page, curves: Curves) -> str:
    rows = [
        "Paired by seed: difference of the mean of the curve and of its end, with its 95 % interval (t over the seeds),"
        f" and how many times the {page.unit}, network evaluations and CPU seconds the second needs to score"
        f" {page.mark:g} (mean and range of the seeds in which both do).\n",
        f"| first | second | curve | end | {page.unit} | network evaluations | CPU s |",
        "|---" * 7 + "|",
    ]
    for first, second in page.pairs:
        if first not in curves or second not in curves:
            continue
        both = [(curves[first][seed], curves[second][seed]) for seed in curves[first] if seed in curves[second]]
        area = [_area(a) - _area(b) for a, b in both]
        end = [a[-1][SCORE] - b[-1][SCORE] for a, b in both]
        reached = [(reach(a, page.mark), reach(b, page.mark)) for a, b in both]
        ratios = [
            _ratio([b[column] / a[column] for a, b in reached if a is not None and b is not None])
            for column in (SAMPLES, FORWARDS, SECONDS)
        ]
        rows.append(f"| `{first}` | `{second}` | {interval(area)} | {interval(end)} | {' | '.join(ratios)} |")
    return "\n".join(rows)


def interval(differences: list[float]) -> str:
    """Mean of paired differences with the 95 % interval of Student's t."""
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return f"{mean:+.3f}"
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def written_range(values: list[float], digits: int) -> str:
    """Mean, least and largest."""
    return f"{statistics.fmean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def _spaced(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _ratio(values: list[float]) -> str:
    return f"{written_range(values, 1)}, {len(values)} seeds" if values else "-"


def _area(points: list[list[float]]) -> float:
    return statistics.fmean(point[SCORE] for point in points[1:])


def _column(runs: dict[str, list[list[float]]], column: int) -> list[list[float]]:
    return [[point[column] for point in points] for points in runs.values()]


def draw(page: Page, curves: Curves, path: Path) -> None:
    """Scores over samples, network evaluations and CPU seconds: mean of the seeds, and their range as a band."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    columns = ((SAMPLES, page.unit), (FORWARDS, "network evaluations"), (SECONDS, "CPU s"))
    with mpl.rc_context({"svg.hashsalt": page.name, "font.size": 9}):
        figure = Figure(figsize=(13, 4.4), layout="constrained")
        axes = figure.subplots(1, len(columns), sharey=True)
        for axis, (column, name) in zip(axes, columns, strict=True):
            for number, (arm, runs) in enumerate(curves.items()):
                scores, x = np.array(_column(runs, SCORE)), np.array(_column(runs, column)).mean(0)
                style = ("-", "--", ":")[number // 10]
                axis.plot(x, scores.mean(0), style, label=arm, color=f"C{number % 10}")
                axis.fill_between(x, scores.min(0), scores.max(0), alpha=0.12, color=f"C{number % 10}", linewidth=0)
            axis.set_xlabel(name)
            axis.axhline(page.mark, color="0.6", linewidth=0.8, linestyle=":")
            axis.grid(alpha=0.2)
        axes[0].set_ylabel("held-out score")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
        figure.savefig(path, metadata={"Date": None})


def put(name: str, title: str, block: str) -> None:
    """Put what is measured in its place on ``docs/evidence/NAME.md``; a new page has it under its title."""
    path = DATA.parent / f"{name}.md"
    text = path.read_text() if path.exists() else f"# {title}\n\n{BEGIN}\n{END}\n"
    between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    if not between.search(text):
        raise SystemExit(f"{path} has no place for what is measured: the lines\n{BEGIN}\n{END}")
    path.write_text(between.sub(lambda _: f"{BEGIN}\n{block}\n{END}", text))


def write_page(name: str) -> None:
    """Bring ``docs/evidence/NAME.md`` and its picture up to the data."""
    page, data = Page.load(name), read(name)
    draw(page, curves_of(page, data), DATA / f"{name}.svg")
    put(name, page.title, measured(page, data))

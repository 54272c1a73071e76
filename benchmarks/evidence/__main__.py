"""``python -m benchmarks.evidence run|norms|write``."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.evidence import control, draws
from benchmarks.evidence.page import write_page
from benchmarks.evidence.runs import DATA, Page, pilot, run

OWN = {module.NAME: module for module in (control, draws)}
"""Pages with a command and tables of their own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="run what is missing of a page")
    runs.add_argument("page")
    runs.add_argument("--out", type=Path, required=True, help="where the runs go")
    runs.add_argument("--arms", nargs="*")
    runs.add_argument("--seeds", nargs="*", type=int, help="default: the page's")
    runs.add_argument("--jobs", type=int, default=1)
    runs.add_argument("--pilot", action="store_true", help="choose learning rates, and no more")
    norms = commands.add_parser("norms", help="measure the length of the velocities of a page's finished runs")
    norms.add_argument("page")
    norms.add_argument("--out", type=Path, required=True, help="where the runs are")
    pages = commands.add_parser("write", help="bring pages up to their data")
    pages.add_argument("pages", nargs="*")
    given = parser.parse_args()
    if given.command == "write":
        for name in given.pages or sorted(path.stem for path in DATA.glob("*.json")):
            OWN[name].write_page() if name in OWN else write_page(name)
        return
    page = Page.load(given.page)
    if given.command == "norms":
        from benchmarks.evidence.norms import measure  # diffusers: seconds that no other command needs

        measure(page, given.out.resolve())
        write_page(page.name)
        return
    arms = given.arms or list(page.arms)
    if given.pilot:
        pilot(page, given.out.resolve(), arms, given.jobs)
    else:
        run(page, given.out.resolve(), arms, given.seeds or list(range(page.seeds)), given.jobs)
        write_page(page.name)


if __name__ == "__main__":
    main()

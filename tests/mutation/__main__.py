"""The job: ``python -m tests.mutation``; `.ci/mutate` says what it is for."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tests.mutation import equivalent
from tests.mutation.coverage import Coverage, measure, places
from tests.mutation.mutants import Mutant, compiles, find, python_files, shuffled
from tests.mutation.trial import Outcome, attempt, forked, preload

ROOT = Path(__file__).parents[2]
PATHS = ["flowrl/parts", "flowrl/math", "flowrl/estimators", "flowrl/samplers", "flowrl/step.py", "flowrl/coupling.py"]


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog=".ci/mutate", description="Do the quick tests notice wrong mathematics?")
    parser.add_argument("--sample", type=int, default=200, metavar="N", help="how many mutants (0: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which ones")
    parser.add_argument("--minutes", type=float, default=60, metavar="M", help="stop after this long")
    parser.add_argument("--paths", nargs="+", default=[p for p in PATHS if (ROOT / p).exists()], help="what is mutated")
    parser.add_argument(
        "--only", action="append", metavar="FILE:LINE", help="all mutants of a line instead of a sample"
    )
    parser.add_argument("--again", type=Path, metavar="JSON", help="the survivors of an earlier report instead")
    parser.add_argument("--tests", type=float, default=20, metavar="SECONDS", help="of tests for one mutant, at most")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "flowrl-mutation", help="folder")
    parser.add_argument("--fresh", action="store_true", help="measure again which test runs which line")
    parser.add_argument("--list", action="store_true", help="print the mutants, run nothing")
    return parser.parse_args()


def chosen(settings: argparse.Namespace) -> list[Mutant]:
    """The mutants of this call."""
    if settings.only:
        places = [place.rpartition(":") for place in settings.only]
        found = find(ROOT, sorted({path for path, _, _ in places}))
        return [m for m in found if any(m.path == p and m.line == int(line) for p, _, line in places)]
    every = find(ROOT, settings.paths)
    if settings.again:
        alive = {tuple(entry["content"]) for entry in json.loads(settings.again.read_text())["survivors"]}
        return [m for m in every if m.content in alive]
    valid = (m for m in shuffled(every, settings.seed) if compiles(m, (ROOT / m.path).read_bytes()))
    return list(islice(valid, settings.sample or None))


def coverage(out: Path, fresh: bool) -> Coverage:
    """The map from lines to tests, measured where it is not at hand."""
    (out / "coverage").mkdir(parents=True, exist_ok=True)
    files = sorted({file for path in PATHS for file in python_files(ROOT / path)})
    paths = [str(file.relative_to(ROOT)) for file in files]
    kept = places(ROOT, out / "coverage")
    missing = {name: file for name, file in kept.items() if fresh or not file.exists()}
    if missing:
        print(f"looking which lines {len(missing)} test files run", flush=True)
        if forked(lambda: measure(ROOT, missing, paths), out / "coverage.txt", 3600) != 0:
            sys.exit(f"the tests could not be run: {out / 'coverage.txt'}")
    return Coverage.read(ROOT, kept)


@dataclass
class Report:
    """What was tried, written after every mutant."""

    out: Path
    head: dict[str, Any]
    start: float = field(default_factory=time.monotonic)
    tried: list[tuple[Mutant, Outcome, int]] = field(default_factory=list)
    equivalents: list[tuple[Mutant, str]] = field(default_factory=list)

    @property
    def survivors(self) -> list[tuple[Mutant, Outcome, int]]:
        """Mutants that no test noticed."""
        return [entry for entry in self.tried if entry[1].verdict in ("survived", "error")]

    @property
    def score(self) -> float:
        """Share of the mutants tried, without equivalents, that a test noticed."""
        return 1 - len(self.survivors) / max(1, len(self.tried))

    def write(self) -> None:
        """``report.json`` and ``report.txt``."""
        self.head["seconds"] = round(time.monotonic() - self.start)
        entries = [self._entry(*e) for e in self.tried]
        found = {
            **self.head,
            "score": round(self.score, 4),
            "tried": len(self.tried),
            "killed": len(self.tried) - len(self.survivors),
            "survivors": [e for e in entries if e["verdict"] in ("survived", "error")],
            "equivalent": [{"content": m.content, "reason": reason} for m, reason in self.equivalents],
            "mutants": entries,
        }
        (self.out / "report.json").write_text(json.dumps(found, indent=1))
        (self.out / "report.txt").write_text(self.text())

    def _entry(self, mutant: Mutant, outcome: Outcome, left_out: int) -> dict[str, Any]:
        return {
            "at": f"{mutant.path}:{mutant.line}",
            "kind": mutant.kind,
            "content": mutant.content,
            "verdict": outcome.verdict,
            "by": outcome.by,
            "seconds": round(outcome.seconds, 2),
            "tests_left_out": left_out,
        }

    def text(self) -> str:
        """For people."""
        killed = len(self.tried) - len(self.survivors)
        lines = [
            f"{killed} of {len(self.tried)} mutants noticed: {self.score:.1%} (seed {self.head['seed']}, "
            f"{self.head['mutants_in_all']} mutants in all, {time.monotonic() - self.start:.0f} s); "
            f"{len(self.equivalents)} of the sample cannot change behaviour",
        ]
        for mutant, outcome, left_out in self.survivors:
            error = " (tests ended with an error)" if outcome.verdict == "error" else ""
            short = f" ({left_out} slower tests not run)" if left_out else ""
            lines += [f"\n{mutant.path}:{mutant.line} in {mutant.name}: {mutant.kind}{short}{error}"]
            lines += [f"  - {mutant.before}", f"  + {mutant.after}"]
        return "\n".join(lines) + "\n"


def main() -> int:
    """Try the mutants one after the other. 0 if at least 95 % of them were noticed."""
    settings = options()
    os.chdir(ROOT)
    mutants = chosen(settings)
    if settings.list:
        print("\n".join(f"{m.path}:{m.line} {m.kind}\n  - {m.before}\n  + {m.after}" for m in mutants))
        return 0
    seen = coverage(settings.out, settings.fresh)
    preload(seen.modules)
    known = equivalent.read(ROOT)
    head = {"seed": settings.seed, "sample": settings.sample, "mutants_in_all": len(find(ROOT, settings.paths))}
    report = Report(settings.out, head)
    for mutant in mutants:
        if time.monotonic() - report.start > 60 * settings.minutes:
            print(f"{settings.minutes:g} minutes are over: {len(report.tried)} of {len(mutants)} tried")
            break
        if mutant.content in known:
            report.equivalents.append((mutant, known[mutant.content]))
            continue
        tests, left_out = seen.likely(mutant, settings.tests)
        limit = 20 + 4 * sum(seen.tests[name].seconds for name in tests)
        outcome = attempt(ROOT, mutant, tests, settings.out, limit)
        report.tried.append((mutant, outcome, left_out))
        report.write()
        if outcome.verdict in ("survived", "error"):
            print(f"{len(report.tried)}: alive {mutant.path}:{mutant.line} ({len(tests)} tests)", flush=True)
            print(f"  - {mutant.before}\n  + {mutant.after}", flush=True)
    report.write()
    print(report.text(), f"{settings.out}/report.json", sep="")
    return int(report.score < 0.95)


if __name__ == "__main__":
    sys.exit(main())

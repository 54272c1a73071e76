"""``python -m tests.standards [--renew] [PRESET ...]``: compare with the committed standards, or write them anew."""

from __future__ import annotations

import argparse
import sys

import torch

from tests import standards


def main() -> int:
    """1 where something differs that must not."""
    parser = argparse.ArgumentParser(prog="python -m tests.standards", description=__doc__)
    parser.add_argument("--renew", action="store_true", help="write what is reported here, and say what it changes")
    parser.add_argument("presets", nargs="*", metavar="PRESET", default=list(standards.CASES))
    settings = parser.parse_args()
    unknown = set(settings.presets) - standards.CASES.keys()
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}; cases: {', '.join(standards.CASES)}")
    torch.set_num_threads(1)
    here, found, exact = standards.kind(), {}, []
    for preset in settings.presets:
        new, kept = standards.run(preset), standards.KEPT / f"{preset}.json"
        if kept.is_file():
            old = standards.read(preset)
            found[preset] = standards.differences(old.metrics, new)
            exact += [preset] if old.kind == here else []
            if found[preset]:
                print(standards.explain(preset, found[preset]), flush=True)
        if settings.renew:
            standards.write(preset, new)
    if settings.renew:
        return 0
    bad = standards.wrong(found, exact)
    print(f"{len(found)} cases, {len(exact)} of them from a machine like this; {len(bad)} differ more than they may")
    return 1 if bad else 0


sys.exit(main())

"""Self-checks with healthy values: whether a run trains what it means to, seen in its first iterations and then now
and then."""

from flowrl.checks.measures import measure
from flowrl.checks.registry import CHECKS, Facts, SelfCheck, Verdict, explain, find, verdicts
from flowrl.checks.said import Spoken, judge

__all__ = ["CHECKS", "Facts", "SelfCheck", "Spoken", "Verdict", "explain", "find", "judge", "measure", "verdicts"]

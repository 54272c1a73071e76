"""The metrics that a person watches while a run trains: which are shown, by what name, and how they changed."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from flowrl.errors import printable

SHOWN = (
    ("reward", "reward/mean"),
    ("held-out", "eval/reward/mean"),
    ("rounds", "sampling/rounds"),
    ("ratio off by", "ratio/first_max_deviation"),
    ("steps skipped", "scaler/skipped_steps"),
    ("KL", "kl/reference"),
    ("clipped", "clip_fraction"),
    ("loss", "loss"),
    ("gradient", "grad_norm"),
    ("entropy", "entropy"),
)
"""What is shown, if it was measured: label and metric."""
ONLY_ABOVE = {"ratio/first_max_deviation": 1e-3}
"""Metrics that are shown only where they are larger: self-checks, which say nothing while all is well."""
COMPARED = ("reward/mean", "eval/reward/mean")
"""Metrics shown with their change since the first time."""
PHASES = {
    "sample": "sampling",
    "decode": "decoding",
    "reward": "waiting for rewards",
    "advantage": "advantages",
    "update": "update",
    "monitor": "monitor",
    "eval": "evaluation",
}
"""What the phases of an iteration are called."""
MOST_REWARDS = 4
"""Rewards whose means are shown one by one, at most, beside the total."""


class MetricRows:
    """The latest value of every metric, and its change since the first."""

    def __init__(self) -> None:
        self._first: dict[str, float] = {}
        self._latest: dict[str, float] = {}

    def update(self, metrics: Mapping[str, float]) -> None:
        """The metrics of an iteration; earlier ones stay where this one has none."""
        kept = {key: value for key, value in self._latest.items() if not key.startswith("time/")}
        self._latest = {**kept, **metrics}
        for key in COMPARED:
            if key in metrics:
                self._first.setdefault(key, metrics[key])

    def parts(self, metrics: Mapping[str, float]) -> list[str]:
        """``label value`` of those of an iteration's metrics that are shown."""
        parts = [f"{label} {self._value(key)}" for label, key in SHOWN if _is_shown(key, metrics)]
        spent = metrics.get("time/iteration")
        return parts if spent is None else [*parts, f"{spent:.1f} s"]

    def table(self, *, times: bool) -> Table:
        """The latest values, and with ``times`` where the seconds went."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for label, key in SHOWN:
            if _is_shown(key, self._latest):
                table.add_row(label, self._value(key))
                if key == "reward/mean":
                    for name, mean in self._rewards():
                        table.add_row(Text(f"  {printable(name)}"), mean)
        if times and "time/iteration" in self._latest:
            table.add_row("time", self._times())
        return table

    def _rewards(self) -> list[tuple[str, str]]:
        """Name and mean of the rewards one by one, where there are several."""
        keys = [
            key for key in self._latest if key.startswith("reward/") and key.endswith("/mean") and key.count("/") > 1
        ]
        named = [(key.removeprefix("reward/").removesuffix("/mean"), f"{self._latest[key]:.4g}") for key in keys]
        return named[:MOST_REWARDS] if len(named) > 1 else []

    def _times(self) -> str:
        """Where the last iteration's seconds went, the longest first; what is less than 1 % is left out."""
        whole = self._latest["time/iteration"]
        spent = {name: self._latest.get(f"time/{key}", 0.0) for key, name in PHASES.items()}
        parts = sorted((-seconds, name) for name, seconds in spent.items() if seconds >= 0.01 * whole)
        return f"{whole:.1f} s: " + ", ".join(f"{name} {-seconds / whole:.0%}" for seconds, name in parts)

    def _value(self, key: str) -> str:
        value = self._latest[key]
        if key not in self._first or self._first[key] == value:
            return f"{value:.4g}"
        change = value - self._first[key]
        return f"{value:.4g} ({'↑' if change > 0 else '↓'} {change:+.3g})"


def _is_shown(key: str, metrics: Mapping[str, float]) -> bool:
    return key in metrics and not metrics[key] <= ONLY_ABOVE.get(key, -math.inf)

"""Variance of likelihood estimates at equal forwards, and how often SPG's upper bound fails, by enumeration.

Usage: python benchmarks/bounds.py
"""

from __future__ import annotations

from flowrl.estimators.views import Coupled, Quadrature, RandomCount, RandomTime
from tests.unit.test_masked_bounds import variance, violations

PLANS = {
    "times, iid on [.02, 1]": RandomTime(draws=2, low=0.02),
    "counts, iid": RandomCount(draws=2, systematic=False),
    "counts, stratified": RandomCount(draws=2),
    "quadrature, 2 nodes": Quadrature(nodes=2),
    "complementary masks": Coupled(full=False, low=0.02, high=0.98),
}


def main() -> None:
    """Print both tables."""
    found = {name: variance(plan) for name, plan in PLANS.items()}
    plain = next(iter(found.values()))
    print("variance of the bound at two forwards, 4 tokens of 3 (ratio to plain Monte Carlo)")
    for name, value in found.items():
        print(f"  {name:24} {value:7.2f}  {value / plain:.2f}")
    print("strings whose likelihood exceeds the upper bound (constant left out), random networks")
    for length in (2, 3, 4):
        for power in sorted({1.0, 1.5, 2.0, float(length)}):
            below, total = violations(length, power, networks=3)
            print(f"  length {length}, power {power:3.1f}: {below:3d} of {total} ({below / total:.0%})")


if __name__ == "__main__":
    main()

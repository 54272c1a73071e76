"""Claims of papers tried on the embedded worlds: who runs them (`runs`), and what is written of them (`page`).

    python -m benchmarks.evidence run PAGE --out DIR [--arms ...] [--seeds 0 1 2 3 4] [--jobs 1] [--pilot]
    python -m benchmarks.evidence write [PAGE ...]

``PAGE.yaml`` here says what is compared, ``docs/evidence/data/PAGE.json`` holds what was measured, and
``docs/evidence/PAGE.md`` shows it: its tables and picture are written from the data, the rest by hand.
"""

"""Everything around the mathematics of a run: its directory, checkpoints, ranks, signals, time and display."""

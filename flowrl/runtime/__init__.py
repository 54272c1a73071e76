"""While a run trains: terminal display, signals, streams, timing, running out of memory, trackers, ranks."""

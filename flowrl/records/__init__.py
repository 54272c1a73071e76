"""What a run leaves on disk: its directory, checkpoints, samples, and the machine it ran on."""

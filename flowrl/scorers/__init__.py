"""What reward files import: image encoders, conversion of checkpoints, chat endpoints."""

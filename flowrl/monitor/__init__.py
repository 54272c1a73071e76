"""Alarms for reward hacking: what samples look like, watched rewards and the KL, against the base model."""

from flowrl.monitor.watching import halt, news, watch_heldout, watch_training

__all__ = ["halt", "news", "watch_heldout", "watch_training"]

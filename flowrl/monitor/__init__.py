"""Alarms for reward hacking: what samples look like, watched rewards and the KL, against the base model."""

from flowrl.monitor.watching import new_alarms, should_stop, watch_heldout, watch_training

__all__ = ["new_alarms", "should_stop", "watch_heldout", "watch_training"]

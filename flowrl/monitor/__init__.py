"""Alarms for reward hacking: what samples look like, watched rewards and the KL, against the base model."""

from flowrl.monitor.hooks import check_heldout, check_training, new_alarms, should_stop

__all__ = ["check_heldout", "check_training", "new_alarms", "should_stop"]

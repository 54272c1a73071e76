"""Policies that act: small networks over action chunks."""

from flowrl.models.control.load import load_control, save_control
from flowrl.models.control.policy import ControlPolicy

__all__ = ["ControlPolicy", "load_control", "save_control"]

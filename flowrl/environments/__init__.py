"""Where policies of the family control act: embedded worlds, gymnasium, a user's own."""

from flowrl.environments.checked import CheckedEnvironment, OnError, Step
from flowrl.environments.opening import check_environment, open_environment
from flowrl.environments.protocol import Environment

__all__ = ["CheckedEnvironment", "Environment", "OnError", "Step", "check_environment", "open_environment"]

"""Where policies of the family control act: embedded worlds, gymnasium, a user's own."""

from flowrl.environments.checked import CheckedEnvironment, OnError, Step
from flowrl.environments.opening import check_environment, find_drawing, open_environment, open_rendered
from flowrl.environments.protocol import Draw, Environment, Episode

__all__ = [
    "CheckedEnvironment",
    "Draw",
    "Environment",
    "Episode",
    "OnError",
    "Step",
    "check_environment",
    "find_drawing",
    "open_environment",
    "open_rendered",
]

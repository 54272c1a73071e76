"""Objects in images and GenEval's rules about them: a detector, colours, and a verifier.

The rules and their metadata import nothing heavy; `mask2former` and `colors` load networks.
"""

from flowrl.detection.metadata import check
from flowrl.detection.objects import COLORS, OBJECTS, Detection
from flowrl.detection.rules import OFFICIAL, Rules, Verdict, keep, relations, to_color, verify

__all__ = [
    "COLORS",
    "OBJECTS",
    "OFFICIAL",
    "Detection",
    "Rules",
    "Verdict",
    "check",
    "keep",
    "relations",
    "to_color",
    "verify",
]

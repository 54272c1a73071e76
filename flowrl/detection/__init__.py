"""Objects in images and GenEval's rules about them: a detector, colours, and the judge.

The judge and its metadata import nothing heavy; `mask2former` and `colors` load networks.
"""

from flowrl.detection.judging import OFFICIAL, Rules, Verdict, judge, keep, relations, to_color
from flowrl.detection.metadata import check
from flowrl.detection.objects import COLORS, OBJECTS, Detection

__all__ = [
    "COLORS",
    "OBJECTS",
    "OFFICIAL",
    "Detection",
    "Rules",
    "Verdict",
    "check",
    "judge",
    "keep",
    "relations",
    "to_color",
]

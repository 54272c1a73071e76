"""Rewards: finding them, calling them whatever their signature, and what to do when one could not score."""

from flowrl.clients.results import RewardError
from flowrl.score.background import Scoring
from flowrl.score.kept import KeptSamples
from flowrl.score.registry import list_rewards
from flowrl.score.reward import gather_stats
from flowrl.score.rewards import Rewards, load_rewards
from flowrl.score.samples import gathered, joined
from flowrl.score.steps import score_previews

__all__ = [
    "KeptSamples",
    "RewardError",
    "Rewards",
    "Scoring",
    "gather_stats",
    "gathered",
    "joined",
    "list_rewards",
    "load_rewards",
    "score_previews",
]

"""Rewards: finding them, calling them whatever their signature, and what to do when one could not score."""

from flowrl.score.background import Scoring, joined
from flowrl.score.registry import list_rewards
from flowrl.score.rewards import RewardError, Rewards, load_rewards

__all__ = ["RewardError", "Rewards", "Scoring", "joined", "list_rewards", "load_rewards"]

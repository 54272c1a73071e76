"""People's preferences between two models: pairs of samples, a page that shows them blindly, and votes."""

from flowrl.judging.pairs import Pairs, find_pairs
from flowrl.judging.results import summarise, table
from flowrl.judging.votes import read_votes, votes_path

__all__ = ["Pairs", "find_pairs", "read_votes", "summarise", "table", "votes_path"]

"""Evaluation of models, runs and images: suites, resumable stages, and result files with honest intervals."""

from flowrl.evaluation.runner import evaluate
from flowrl.evaluation.suites import names
from flowrl.evaluation.table import show

__all__ = ["evaluate", "names", "show"]

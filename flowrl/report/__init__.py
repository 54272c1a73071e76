"""A run as one self-contained HTML page."""

from flowrl.report.page import write

__all__ = ["write"]

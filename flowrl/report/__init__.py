"""A run as one self-contained HTML page."""

from flowrl.report.page import write, write_anyway

__all__ = ["write", "write_anyway"]

"""A run as one self-contained HTML page."""

from flowrl.report.page import try_write, write

__all__ = ["try_write", "write"]

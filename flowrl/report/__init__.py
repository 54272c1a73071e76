"""A run as one page: saved as a self-contained file, or served while it trains."""

from flowrl.report.page import try_write, write

__all__ = ["try_write", "write"]

"""The release of flowrl."""

__version__ = "0.1.0"

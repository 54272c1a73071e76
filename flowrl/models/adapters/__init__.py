"""Low-rank adapters of other tools on disk: read, checked, and given the shape that flowrl trains."""

from flowrl.models.adapters.adapter import Adapter
from flowrl.models.adapters.load import load_adapter
from flowrl.models.adapters.read import names_adapter, read

__all__ = ["Adapter", "load_adapter", "names_adapter", "read"]

"""Low-rank adapters of other tools on disk: read, checked, and given the shape that flowrl trains."""

from flowrl.models.adapters.adapter import Adapter
from flowrl.models.adapters.load import load_adapter
from flowrl.models.adapters.read import is_adapter_name, read

__all__ = ["Adapter", "is_adapter_name", "load_adapter", "read"]

"""Low-rank adapters of other tools on disk: read, checked, and given the shape that flowrl trains."""

from flowrl.models.adapters.reading import names_adapter, read
from flowrl.models.adapters.structure import Adapter

__all__ = ["Adapter", "names_adapter", "read"]

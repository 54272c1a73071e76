"""Model families: everything that owns a network."""

from flowrl.models.adapters import load_adapter
from flowrl.models.diffusion import DiffusionPolicy
from flowrl.models.export import export_formats, export_policy
from flowrl.models.family import family_of
from flowrl.models.load import LoadedPolicy, load_policy
from flowrl.models.lora import LoRAOptions
from flowrl.models.parity import check_parity

__all__ = [
    "DiffusionPolicy",
    "LoRAOptions",
    "LoadedPolicy",
    "check_parity",
    "export_formats",
    "export_policy",
    "family_of",
    "load_adapter",
    "load_policy",
]

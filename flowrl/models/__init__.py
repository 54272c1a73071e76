"""Model families: everything that owns a network."""

from flowrl.models.diffusion import DiffusionPolicy
from flowrl.models.load import load_policy
from flowrl.models.lora import LoRAOptions
from flowrl.models.text.opening import family_of

__all__ = ["DiffusionPolicy", "LoRAOptions", "family_of", "load_policy"]

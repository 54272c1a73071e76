"""Model families: everything that owns a network."""

from flowrl.models.diffusion import DiffusionPolicy, LoRAOptions, load_policy

__all__ = ["DiffusionPolicy", "LoRAOptions", "load_policy"]

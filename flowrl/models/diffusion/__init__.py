"""Any diffusers text-to-image or text-to-video pipeline as a policy, without code per model."""

from flowrl.models.diffusion.load import load_policy
from flowrl.models.diffusion.policy import DiffusionPolicy
from flowrl.models.lora import LoRAOptions

__all__ = ["DiffusionPolicy", "LoRAOptions", "load_policy"]

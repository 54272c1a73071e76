"""Any masked-diffusion language model as a policy."""

from flowrl.models.masked.policy import MaskedPolicy

__all__ = ["MaskedPolicy"]

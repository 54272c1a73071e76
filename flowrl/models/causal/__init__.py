"""Any autoregressive language model of transformers as a policy."""

from flowrl.models.causal.policy import CausalPolicy

__all__ = ["CausalPolicy"]

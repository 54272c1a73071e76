"""Names of attention implementations of transformers, checked before a model is loaded."""

from __future__ import annotations

import importlib.util

from flowrl.errors import UserError, did_you_mean

ALIASES = {"flash": "flash_attention_2", "flex": "flex_attention", "native": "sdpa"}
"""What diffusers calls the same: transformers' names by those."""
PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def check_attention(name: str) -> str:
    """transformers' name of an implementation; the name of a kernel on the hub (``owner/name``) is taken as it is.
    Raises `UserError` where there is none of that name, or where the package that it needs is not installed."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    found = ALIASES.get(name.lower(), name)
    known = sorted({"eager", *(key for key in ALL_ATTENTION_FUNCTIONS if not key.startswith("paged")), *ALIASES})
    if "/" not in found and found not in known:
        hint = did_you_mean(found, known)
        raise UserError(f"model.attention: attention {name!r} is not available: there is none of that name{hint}")
    package = PACKAGES.get(found)
    if package and not any(map(importlib.util.find_spec, (package, "kernels"))):  # kernels brings it from the hub
        raise UserError(
            f"model.attention: attention {name!r} is not available: the package {package.replace('_', '-')} is not"
            " installed; install it, or set model.attention: null for torch's own"
        )
    return found

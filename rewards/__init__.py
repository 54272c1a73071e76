"""Rewards: one module per reward, one function `(images, prompts, **columns) -> scores` in each."""

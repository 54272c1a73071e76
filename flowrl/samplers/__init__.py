"""How to generate, and what to record of it."""

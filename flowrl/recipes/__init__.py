"""Recipes that state their result: the level in a config's header, and the curve with its band committed beside it."""

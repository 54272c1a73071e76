"""Mutation testing of the mathematics: do the quick tests notice a wrong sign, bound or index? See `.ci/mutate`."""

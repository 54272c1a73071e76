"""Reward models: a language model's network with one number in the place of the vocabulary, to be trained."""

"""Small self-contained worlds: data, verifier and a base model that need no download."""

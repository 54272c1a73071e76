"""Model families: everything that owns a network."""

"""What algorithms are made of: small pure pieces that see numbers per decision and never a network."""

"""Pure functions on tensors: kernels, densities, group statistics, random numbers."""

"""Numerical kernels: arrays in, arrays out; no parameters and no layers."""

"""Arithmetic on a ModelSpec: parameters, FLOPs, memory, time, scaling laws, devices. No torch."""

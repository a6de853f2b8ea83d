"""Sweeps: runs of several sizes and budgets, the law fitted to them, and a larger run predicted before it is made."""

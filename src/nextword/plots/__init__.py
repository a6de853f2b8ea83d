"""Figures as data: Vega-Lite specifications in one theme, and the files they are written to."""

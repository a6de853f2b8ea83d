"""A run is a function: RunConfig → plan_run → train_run → report. Optimizers, checkpoints, many processes."""

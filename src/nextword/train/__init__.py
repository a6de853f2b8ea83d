"""Training: RunConfig → plan_run → train_run → report; optimizers, checkpoints, DDP and FSDP."""

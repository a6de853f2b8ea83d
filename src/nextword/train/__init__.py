"""One trainer for every model: optimizers, schedules, checkpoints, many processes, the ledger of past runs."""

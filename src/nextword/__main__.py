"""`python -m nextword` is the same as `nextword`."""

import os
import sys

from .cli import main

if __name__ == "__main__":
    one_of_many = os.environ.get("WORLD_SIZE", "1") != "1"
    if one_of_many:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # we print our own one-line errors
    code = main()
    if one_of_many and "torch.distributed" in sys.modules:
        from .train.distributed import leave

        leave(code)
    sys.exit(code)

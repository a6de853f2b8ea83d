"""`python -m nextword` is the same as `nextword`."""

import os
import sys

from .cli import main

if __name__ == "__main__":
    code = main()
    if os.environ.get("WORLD_SIZE", "1") != "1" and "torch.distributed" in sys.modules:
        from .train.distributed import leave

        leave(code)
    sys.exit(code)

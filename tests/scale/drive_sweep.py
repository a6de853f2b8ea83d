"""`python drive_sweep.py FOLDER ADDRESS`: a command that runs a sweep on a cluster, to be killed."""

import sys
from pathlib import Path
from unittest.mock import patch

from nextword.base.cluster import attached
from nextword.plan import device
from nextword.scale.cluster import RayWorkers
from nextword.scale.sweep import Sweep
from nextword.train.planning import Machine

RATES = (4e-3,)


def drive(folder: Path, address: str) -> None:
    known = {"scan": lambda *cell: RATES, "more": lambda losses: None}
    with patch.multiple("nextword.scale.sweep", **known), attached(address) as ray:
        Sweep.read(folder).run(RayWorkers(ray), Machine(device("own=8GB,10GB/s,100GFLOP/s")))


if __name__ == "__main__":
    drive(Path(sys.argv[1]), sys.argv[2])

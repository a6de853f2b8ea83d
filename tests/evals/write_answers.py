"""A process that keeps answers until it is killed: `python write_answers.py STORE`. It says which were committed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from nextword.evals.store import opened
from nextword.evals.task import Encoded, Likelihood

with opened(Path(sys.argv[1])) as store:
    for number in range(300):
        store.put_likelihood("model", Encoded((1, 2), (number,)), Likelihood((-number / 7,), number % 2 == 0))
        if number % 100 == 99:
            store.commit()
    for number in range(300, 350):  # never committed
        store.put_likelihood("model", Encoded((1, 2), (number,)), Likelihood((-1.0,), False))
    print("300", flush=True)
    time.sleep(60)

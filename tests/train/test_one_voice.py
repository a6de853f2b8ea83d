"""When several processes fail, each machine's terminal has one line with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch.distributed as dist

from nextword.base import RunError
from nextword.train import distributed
from nextword.train.distributed import one_voice

Says = Callable[[str, int, Exception], BaseException]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Iterator[Says]:
    """What comes of an error in a process of a rank on a machine."""
    store = dist.HashStore()
    monkeypatch.setattr(distributed, "_store", lambda: store)
    monkeypatch.setattr(distributed, "_SECONDS_TO_DIE", 0.1)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")

    def said(machine: str, rank: int, error: Exception) -> BaseException:
        monkeypatch.setattr("socket.gethostname", lambda: machine)
        for name, value in {"RANK": rank, "WORLD_SIZE": 4, "LOCAL_RANK": 0}.items():
            monkeypatch.setenv(name, str(value))
        distributed._speaks_first.cache_clear()  # as in another process
        with pytest.raises((Exception, SystemExit)) as caught, one_voice("continue: so"):
            raise error
        return caught.value

    yield said
    distributed._speaks_first.cache_clear()


LOST = dist.DistNetworkError("Connection closed by peer [10.0.0.2]:1234")


def test_the_reason_is_said_once_on_each_machine_with_rank_and_host(says: Says) -> None:
    full = RunError("no space left on device")
    assert says("beta", 3, full) is full
    assert isinstance(says("beta", 2, LOST), SystemExit)
    assert str(says("alpha", 1, LOST)) == "rank 3 on beta: no space left on device"
    assert isinstance(says("alpha", 0, LOST), SystemExit)


def test_a_connection_that_ended_for_no_known_reason_is_said_with_what_to_do(says: Says) -> None:
    error = RuntimeError("[/gloo/pair.cc:553] Connection closed by peer [10.0.0.2]:1234. This is typically\nof torch")
    said = "the processes lost touch with each other (Connection closed by peer [10.0.0.2]:1234); continue: so"
    assert str(says("alpha", 0, error)) == said


def test_an_error_of_its_own_is_a_processes_own(says: Says) -> None:
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert says("alpha", 0, error) is error

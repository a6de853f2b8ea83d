"""A new sweep: the text is tokenized, the machine measured, and the runs planned that the budget buys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base import UsageError, units
from ..data import prepare_in
from ..data.documents import find_sources
from ..data.progress import Progress
from ..models.device import usable_device
from ..plan import device as plan_device
from ..plan.run_config import FEWEST_IDS, DataConfig
from ..spec import ModelKind
from ..train.peak import measured_peak
from ..train.pipeline import BYTES_AN_ID
from ..train.planning import FIRST_SHARE, Machine
from ..train.run_memory import Host
from ..train.timing import amp_is_faster
from .cells import Place
from .deadline import ROOM, Deadline
from .design import HOLD_OUT, DeviceType, SweepDesign, planned
from .planning import FEWEST_SIZES, check_text, plan_design
from .speed import Speed, measure
from .sweep import Sweep

Log = Callable[[str], None]
_VOCABULARIES = ((1e13, 512), (1e15, 1024), (1e17, 2048), (1e19, 8192))  # FLOPs of the sweep up to, tokens
_CONTEXTS = ((1e15, 128), (1e17, 256), (1e19, 512))
_LARGE_VOCABULARY, _LARGE_CONTEXT = 32768, 1024


@dataclass(frozen=True)
class Request:
    """What a sweep is asked for; None: chosen. `minutes` or `flops` is the budget of all of it."""

    minutes: float | None = None
    flops: float | None = None
    kinds: tuple[ModelKind, ...] = ("transformer",)
    sizes: tuple[float, ...] = ()
    vocabulary: int | None = None
    context: int | None = None
    seed: int = 0
    device: DeviceType = "cpu"
    processes: int = 1  # of each run
    shared: bool = False  # the tokens of the text are in the sweep's folder, which all machines see


def new_sweep(
    request: Request, sources: Sequence[str], folder: Path, cache: Path, workers: int, log: Log = lambda text: None,
    spent: float = 0.0,
) -> tuple[Sweep, Machine]:  # fmt: skip
    """Plan a sweep of `workers` runs at once. Raises UsageError for too little text or budget.

    The minutes of the request are counted from here on, `spent` seconds of them being over; tokenizing does not count.
    Nothing is written into `folder` but, for a cluster, the tokens of the text.
    """
    deadline = Deadline(60 * request.minutes, spent) if request.minutes else None
    if 0 < len(request.sizes) < FEWEST_SIZES:
        raise UsageError(
            f"--sizes has {len(request.sizes)}: a budget's best size lies between others, so a law takes at least"
            f" {FEWEST_SIZES}"
        )
    machine = this_machine(cache, request.device)
    peak = machine.peak if request.device == "cuda" else machine.device.peak_fp32
    guess = request.flops or FIRST_SHARE * peak * 60 * (request.minutes or 0.0)
    found = find_sources(sources)
    context = request.context or _chosen(guess, _CONTEXTS, _LARGE_CONTEXT)
    vocabulary = request.vocabulary or _chosen(guess, _VOCABULARIES, _LARGE_VOCABULARY)
    settings = DataConfig(vocabulary=max(FEWEST_IDS, min(vocabulary, found.bytes // BYTES_AN_ID)))
    tokens = folder / "data" if request.shared else cache / "data"
    with deadline.paused() if deadline else nullcontext():
        data = prepare_in(tokens, found, settings, None, Progress(found, log), log)
    device = usable_device(request.device)
    faster = all(amp_is_faster(device, kind) for kind in request.kinds)  # one dtype in all runs, as in one law
    base = SweepDesign(
        request.kinds, request.sizes, (), 0.0, data.vocabulary, context, 1, 1, data.train.tokens, data.bytes_per_token,
        request.seed, "amp" if faster else "fp32", request.device, request.processes,
    )  # fmt: skip
    place = Place(folder / "runs", data, settings, tuple(map(str, sources)))
    speed = measure(base, data, workers, log)
    if deadline is None:
        design = plan_design(flops_of, request.flops or 0.0, base, request.sizes, units.format_flops)
    else:
        design = within(deadline, speed, base, request.sizes)
    check_text(design, data.val_share)
    return Sweep(folder, design, place, request_json(request), speed, deadline), machine


def within(deadline: Deadline, speed: Speed, base: SweepDesign, sizes: Sequence[float]) -> SweepDesign:
    """The design for what is left of the time, with some room in the size of its hold-out run."""

    def roomy(design: SweepDesign) -> SweepDesign:
        return design.with_hold_out(HOLD_OUT * ROOM)

    def cost(design: SweepDesign) -> float:
        return speed.total(roomy(design))

    def shown(seconds: float) -> str:
        return units.format_seconds(seconds + deadline.seconds - available)

    available = deadline.left
    return roomy(plan_design(cost, available, base, sizes, shown))


def same_text(sweep: Sweep, sources: Sequence[str], log: Log = lambda text: None) -> None:
    """Raise UsageError if `sources` are not the text that a sweep was started with."""
    tokens, tokenizer = sweep.place.data.folder.parent, sweep.place.data.tokenizer()
    data = prepare_in(tokens, list(sources), sweep.place.settings, tokenizer, log=log)
    if data.fingerprint != sweep.place.data.fingerprint:
        raise UsageError(f"{sweep.folder} holds another sweep: of {' '.join(sweep.place.sources)}, which differs from"
                         f" {' '.join(sources)}. Choose another --out")  # fmt: skip


def chosen_device(name: str) -> DeviceType:
    """The device of a new sweep's runs; "auto" is a GPU if there is one. Raises UsageError for one that is not here."""
    return "cuda" if usable_device(name).type == "cuda" else "cpu"


def this_machine(cache: Path, device: DeviceType) -> Machine:
    """This machine with a device, measured or as remembered. Raises UsageError if it has none."""
    place = usable_device(device)
    dtype = "amp" if (faster := amp_is_faster(place)) else "fp32"
    peak = measured_peak(place, dtype, cache).flops
    host = Host(gpu=True) if device == "cuda" else None
    return Machine(plan_device("this", cache), peak, host=host, amp_faster=faster)


def flops_of(design: SweepDesign) -> float:
    """FLOPs of all runs of a sweep, each part of a trunk counted once."""
    return sum(cell.flops * steps / cell.steps for cell, steps in planned(design))


def request_json(request: Request) -> dict[str, Any]:
    """The request as plain data, to compare with another."""
    return {
        "minutes": request.minutes, "flops": request.flops,
        "arch": list(request.kinds), "sizes": list(request.sizes), "vocabulary": request.vocabulary,
        "context": request.context, "seed": request.seed, "processes": request.processes,
    }  # fmt: skip


def _chosen(flops: float, steps: Sequence[tuple[float, int]], otherwise: int) -> int:
    return next((value for most, value in steps if flops <= most), otherwise)

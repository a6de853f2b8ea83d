"""How well a run's end is forecast from its curve: `python benchmarks/forecast.py CURVES [--runs FOLDER]`.

CURVES is a file of thinned curves of finished runs; --runs makes it from the runs in folders. Each run is forecast at
shares of its length, with priors from the runs of other texts. Prints the prior from all runs, as in
src/nextword/train/forecast.py, and the errors. The width of the intervals (`error`, `doubt`) was set by hand so that
about 90% hold.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from nextword.train.forecast import PRIOR, Forecast, Normal, Prior, forecast
from nextword.train.metrics import read_metrics
from nextword.train.run_dir import RunRecord, read_report, runs_under

SHARES = (1 / 3, 1 / 2, 2 / 3, 0.9)
FAR = 0.1  # of the loss: forecasts that are further off are all as bad
FEWEST = 400  # steps of a run
POINTS = 100  # kept of a curve
Curve = dict[str, Any]


def curve_of(folder: Path) -> Curve:
    """A finished run: groups of steps as (steps, mean loss, mean rate), held-out losses, and the last of these."""
    record, measured = RunRecord.read(folder), read_report(folder)
    assert measured is not None
    rows = list(read_metrics(folder))
    steps = np.array([[row["loss"], row["learning_rate"]] for row in rows if "loss" in row])
    size = -(-len(steps) // POINTS)
    groups = [steps[at : at + size] for at in range(0, len(steps), size)]
    config = record.config
    return {
        "name": folder.name, "kind": config.spec.kind, "text": Path(record.sources[0]).name,
        "schedule": config.train.schedule,
        "groups": [[len(group), round(float(np.log(group[:, 0]).mean()), 4), float(f"{group[:, 1].mean():.4g}")]
                   for group in groups],
        "evaluations": [[row["step"], round(row["val"]["nats_per_token"], 4), int(row["val"]["sample"])]
                        for row in rows if "val" in row][:-1],
        "final": round(measured.nats_per_token, 4),
    }  # fmt: skip


def arrays(curve: Curve, share: float) -> tuple[Any, Any, Any, Any]:
    """What is known of a curve after a share of its steps: the arguments of `forecast`."""
    counts, logs, rates = zip(*curve["groups"], strict=True)
    losses, rates = np.repeat(np.exp(logs), counts), np.repeat(rates, counts)
    done = int(share * len(losses))
    return losses[:done], rates[:done], rates[done:], [each for each in curve["evaluations"] if each[0] <= done]


def prior_from(curves: list[Curve]) -> Prior:
    """The prior of a grid whose forecasts are nearest."""
    known = [(arrays(curve, share), curve["final"]) for curve in curves for share in SHARES]

    def distance(prior: Prior) -> float:
        return sum(min(abs(off(forecast(*given, prior), final)), FAR) for given, final in known)

    return min(candidates(), key=distance)


def candidates() -> list[Prior]:
    """Priors to choose from."""
    grid = product((-0.14, -0.18, -0.22), (0.04, 0.08), (0.01, 0.02, 0.03), (0.03, 0.04, 0.05))
    return [
        replace(PRIOR, slope=Normal(slope, deviation), bend=replace(PRIOR.bend, mean=bend),
                annealing=replace(PRIOR.annealing, mean=annealing))
        for slope, deviation, bend, annealing in grid
    ]  # fmt: skip


def off(expected: Forecast | None, final: float) -> float:
    """The relative error of a forecast."""
    assert expected is not None
    return expected.nats_per_token / final - 1


def holds(expected: Forecast | None, final: float) -> bool:
    """Whether the loss lies in the interval."""
    assert expected is not None
    return expected.low <= final <= expected.high


def errors(curves: list[Curve]) -> list[dict[str, Any]]:
    """Each curve's relative error at each share, with a prior from the other texts, but the intervals of PRIOR."""
    rows = []
    for text in dict.fromkeys(curve["text"] for curve in curves):
        prior = prior_from([curve for curve in curves if curve["text"] != text])
        for curve in (curve for curve in curves if curve["text"] == text):
            for share in SHARES:
                expected = forecast(*arrays(curve, share), prior)
                rows.append({"name": curve["name"], "share": share, "error": off(expected, curve["final"]),
                             "inside": holds(expected, curve["final"])})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("curves", type=Path)
    parser.add_argument("--runs", type=Path, nargs="+", help="make the file from the finished runs in these folders")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.runs:
        runs = [folder for root in options.runs for folder in runs_under(root) if (folder / "report.json").exists()]
        curves = [curve for curve in map(curve_of, runs) if sum(group[0] for group in curve["groups"]) >= FEWEST]
        options.curves.write_text("[" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in curves) + "]\n")
    curves = json.loads(options.curves.read_text())
    rows = errors(curves)
    if options.json:
        print(json.dumps({"prior": asdict(prior_from(curves)), "errors": rows}, indent=1))
        return
    print(prior_from(curves))
    for share in SHARES:
        own = [row for row in rows if row["share"] == share]
        off = np.abs([row["error"] for row in own])
        inside = np.mean([row["inside"] for row in own])
        print(
            f"{share:.0%}: {len(own)} runs, median {np.median(off):.2%}, 90% {np.quantile(off, 0.9):.2%}, most"
            f" {off.max():.2%}, within 2%: {np.mean(off < 0.02):.0%}, inside {inside:.0%}"
        )
    for row in rows:
        print(f"{row['name']:45} {row['share']:.2f} {row['error']:+.2%}{'' if row['inside'] else ' outside'}")


if __name__ == "__main__":
    main()

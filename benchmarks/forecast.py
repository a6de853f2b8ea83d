"""How well a run's end is forecast from its curve: `python benchmarks/forecast.py CURVES [--runs FOLDER]`.

CURVES is a file of thinned curves of finished runs; --runs makes it from the runs in a folder. Each run is forecast at
shares of its length, with priors from the runs of other texts. Prints the priors from all runs, as in
src/nextword/train/forecast.py, and the errors.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from nextword.train.forecast import PRIOR, Normal, Prior, fit, forecast
from nextword.train.metrics import read_metrics
from nextword.train.run_dir import RunRecord, read_report, runs_under

SHARES = (1 / 3, 1 / 2, 2 / 3, 0.9)
POINTS = 400  # kept of a curve
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


def prior_from(curves: Iterable[Curve]) -> Prior:
    """Means and deviations of the coefficients that whole curves give."""
    wide = Prior(Normal(-0.2, 1.0), Normal(0.0, 0.1), Normal(0.0, 0.3), Normal(0.0, 0.1), 0.003, 0.01, 0.0)
    found = []
    for curve in curves:
        losses, rates, _, evaluations = arrays(curve, 1.0)
        fitted = fit(losses, rates / rates.max(), evaluations, wide)
        assert fitted is not None
        found.append([*fitted[0].mean[1:], fitted[1].mean[1]])
    middle = np.median(found, 0)
    spread = 1.4826 * np.median(np.abs(found - middle), 0)
    slope, bend, annealing, gap = (Normal(float(m), float(max(s, 1e-3))) for m, s in zip(middle, spread, strict=True))
    return replace(PRIOR, slope=slope, bend=bend, annealing=annealing, gap_slope=gap)


def errors(curves: list[Curve]) -> list[dict[str, Any]]:
    """Each curve's relative error at each share, with priors from the other texts."""
    rows = []
    for curve in curves:
        prior = prior_from(other for other in curves if other["text"] != curve["text"])
        for share in SHARES:
            expected, final = forecast(*arrays(curve, share), prior), curve["final"]
            assert expected is not None
            inside = expected.low <= final <= expected.high
            rows.append({"name": curve["name"], "share": share, "error": expected.nats_per_token / final - 1,
                         "width": expected.high / expected.nats_per_token - 1, "inside": inside})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("curves", type=Path)
    parser.add_argument("--runs", type=Path, help="make the file from the finished runs in this folder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.runs:
        finished = [folder for folder in runs_under(options.runs) if (folder / "report.json").exists()]
        options.curves.write_text(json.dumps(list(map(curve_of, finished)), separators=(",", ":")) + "\n")
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
        print(f"{row['name']:45} {row['share']:.2f} {row['error']:+.2%} ± {row['width']:.2%}")


if __name__ == "__main__":
    main()

"""Write src/nextword/plan/epoch_draws.json: the bootstrap of the Epoch points that gives predictions their interval.

Run from the root of the project: python tests/oracles/make_epoch_draws.py
"""

import json
from pathlib import Path

from nextword.plan.fitting import NAMES, fit_law
from nextword.plan.runs import read_runs

ROOT = Path(__file__).resolve().parents[2]
DRAWS = 200


def main() -> None:
    runs = read_runs(ROOT / "tests/oracles/epoch_chinchilla.csv").without_highest(5)
    fitted = fit_law(runs, bootstrap=DRAWS, hold_out=False, seed=0)
    rows = [[float(f"{getattr(law, name):.8g}") for name in NAMES] for law in fitted.draws]
    source = "bootstrap of the 240 points that Epoch AI read off Hoffmann et al.'s figure 4 (Besiroglu et al. 2024)"
    lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    text = f'{{\n  "source": {json.dumps(source)},\n  "columns": {json.dumps(NAMES)},\n  "draws": [\n{lines}\n  ]\n}}\n'
    (ROOT / "src/nextword/plan/epoch_draws.json").write_text(text)


if __name__ == "__main__":
    main()

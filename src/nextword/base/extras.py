"""Packages that a plain install does not bring; each comes with an extra of pyproject.toml."""

from __future__ import annotations

from importlib.util import find_spec

from .errors import UsageError

EXTRAS = {"torch": "train", "vl_convert": "plot", "pyarrow": "parquet", "lm_eval": "lm-eval",
           "scipy": "laws", "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "zstandard": "zstd",
           "datasets": "datasets", "ray": "cluster"}  # fmt: skip


def installed(package: str) -> bool:
    """Whether `package` can be imported. It is not imported to find out."""
    return find_spec(package) is not None


def require(package: str, what: str) -> None:
    """Raise UsageError, naming the extra, unless `package` is installed. `what` needs it, such as "pictures"."""
    if not installed(package):
        verb = "need" if what.endswith("s") else "needs"
        raise UsageError(f"{what} {verb} {package}. Install it: pip install 'nextword[{EXTRAS[package]}]'")


def require_torch(what: str) -> None:
    """Raise UsageError unless torch is installed. Call it before the first import of models/ or train/."""
    require("torch", what)

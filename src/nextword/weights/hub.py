"""Models of the Hugging Face hub, through huggingface_hub (the extra `hub`). No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..base import RunError, UsageError
from .progress import Report

# Weights as safetensors, the configuration and the tokenizer: never a pickle, never code.
WANTED = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "merges.txt", "vocab.txt"]
UNWANTED = ["*.bin", "*.pt", "*.pth", "*.py", "*/*"]


def fetch_snapshot(repository: str, revision: str | None, report: Report) -> Path:
    """The folder of the model owner/name at a revision; see `download`."""
    return download(repository, revision, WANTED, unwanted=UNWANTED)


def download(
    repository: str,
    revision: str | None,
    wanted: list[str],
    *,
    unwanted: list[str],
    kind: str = "model",
    instead: str = "a model's folder or a .gguf file",
) -> Path:
    """The folder of owner/name at a revision, in huggingface_hub's own cache, where other tools share it.

    huggingface_hub shows its own progress. `kind` is "model" or "dataset", `instead` what to give where there is no
    network. Raises UsageError for a repository that is not there or not open to this user, RunError without the
    package or without a network.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise RunError(f"hf:{repository} needs huggingface_hub. Install it with: pip install 'nextword[hub]'") from None
    named = f"hf:{repository}" + (f"@{revision}" if revision else "")
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, repo_type=kind, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted
            )
        )
    except errors.GatedRepoError:
        raise UsageError(
            f"{named} is open only to those who accept its licence. Do so on its page, then: hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise UsageError(f"{named}: the repository has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise UsageError(f"{named} is not on the hub, or is private. Check owner and name; hf auth login") from None
    except Exception as error:  # network, cache and HTTP errors have no common class across versions
        raise RunError(_unreachable(named, error, instead)) from error


def _unreachable(named: str, error: Exception, instead: str) -> str:
    inner: BaseException = error
    while (deeper := inner.__cause__ or inner.__context__) is not None:
        inner = deeper
    reason = " ".join(str(inner or error).split())[:160] or type(inner).__name__
    return (
        f"{named} could not be fetched ({type(error).__name__}: {reason}), and huggingface_hub's cache"
        f" does not hold it. Without a network, give {instead}"
    )


@dataclass(frozen=True)
class HubModel:
    """A repository in huggingface_hub's cache."""

    repository: str
    path: Path
    bytes: int


def cached() -> list[HubModel]:
    """Model repositories in huggingface_hub's cache; none where the package or the cache is not there."""
    try:
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound
    except ImportError:
        return []
    try:
        repositories = scan_cache_dir().repos
    except (CacheNotFound, OSError):
        return []
    models = (each for each in repositories if each.repo_type == "model" and each.size_on_disk)
    found = (HubModel(each.repo_id, Path(each.repo_path), each.size_on_disk) for each in models)
    return sorted(found, key=lambda each: each.repository)


def remove(repository: str) -> None:
    """Delete every revision of a repository from huggingface_hub's cache."""
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir()
    revisions = [
        revision.commit_hash
        for each in cache.repos
        if each.repo_type == "model" and each.repo_id == repository
        for revision in each.revisions
    ]
    cache.delete_revisions(*revisions).execute()

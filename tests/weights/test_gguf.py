"""Reading valid GGUF files. The oracle is the gguf package: its writer, its reader, its dequantizers."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize

from gguf_files import numbers, write
from nextword.base import UsageError
from nextword.weights.gguf import GGUFFile
from nextword.weights.gguf_types import BLOCK_TYPES


def test_the_table_of_block_types_is_ggmls():
    theirs = {kind.value: (kind.name.lower(), *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGML_QUANT_SIZES}
    assert {code: tuple(kind) for code, kind in BLOCK_TYPES.items()} == theirs


def test_metadata_of_every_value_type_reads_back(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    values = {
        "uint8": 255, "int8": -128, "uint16": 65535, "int16": -32768, "uint32": 2**32 - 1, "int32": -(2**31),
        "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.5, "float64": 0.1, "bool": True,
        "string": "naïve 🤷🏽",
    }  # fmt: skip
    for kind, value in values.items():
        getattr(writer, f"add_{kind}")(f"test.{kind}", value)
    arrays = {"ints": [1, -2, 3], "floats": [0.5, 1.5], "bools": [True, False], "texts": ["", "ab", "漢字"]}
    for name, array in arrays.items():
        writer.add_array(f"test.{name}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = GGUFFile.open(tmp_path / "m.gguf").metadata
    assert metadata == {
        "general.architecture": "llama",
        **{f"test.{name}": value for name, value in (values | arrays).items()},
    }


def test_the_real_models_metadata_is_what_the_gguf_package_reads(smollm2_path):
    file = GGUFFile.open(smollm2_path)
    theirs = {name: field.contents() for name, field in gguf.GGUFReader(smollm2_path).fields.items()}
    assert file.metadata == {name: value for name, value in theirs.items() if not name.startswith("GGUF.")}


def test_the_real_models_tensors_are_what_the_gguf_package_reads(smollm2_path):
    file = GGUFFile.open(smollm2_path)
    reader = gguf.GGUFReader(smollm2_path)
    assert list(file.tensors) == [tensor.name for tensor in reader.tensors]
    for theirs in reader.tensors[::30]:
        ours = file.tensors[theirs.name]
        assert ours.shape == tuple(int(size) for size in theirs.shape[::-1])
        assert ours.kind == theirs.tensor_type.name.lower()
        np.testing.assert_array_equal(
            file.raw(ours.name), theirs.data.view(np.uint8).reshape(ours.rows, ours.row_bytes)
        )
        expected = dequantize(theirs.data, theirs.tensor_type).reshape(ours.shape)
        np.testing.assert_array_equal(file.float32(ours.name), expected)


def random_blocks(kind: gguf.GGMLQuantizationType, rows: int, width: int) -> np.ndarray:
    values, nbytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(1).integers(0, 64, (rows, width // values * nbytes))  # small: finite scales
    return blocks.astype(np.uint8)


DEQUANTIZED = [
    kind for kind in gguf.GGML_QUANT_SIZES if kind in gguf.quants._type_traits or kind.name in ("F32", "F16", "BF16")
]


@pytest.mark.parametrize("kind", DEQUANTIZED, ids=lambda kind: kind.name)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_kind_that_the_gguf_package_dequantizes_reads_as_floats(tmp_path, kind):
    blocks = random_blocks(kind, 6, 512)
    dtype = {"F32": np.float32, "F16": np.float16}.get(kind.name)
    stored = blocks if dtype is None else blocks.view(dtype)
    write(tmp_path / "k.gguf", {"w.weight": (stored, kind)})
    file = GGUFFile.open(tmp_path / "k.gguf")
    assert file.tensors["w.weight"].kind == kind.name.lower()
    assert file.float32("w.weight").dtype == np.float32
    np.testing.assert_array_equal(file.float32("w.weight"), dequantize(stored, kind).reshape(6, 512))
    np.testing.assert_array_equal(file.raw("w.weight"), blocks)


def test_doubles_become_floats_and_whole_numbers_are_refused(tmp_path):
    doubles = numbers(3, 8).astype(np.float64)
    write(tmp_path / "d.gguf", {"d": doubles, "i": np.arange(8, dtype=np.int32)})
    file = GGUFFile.open(tmp_path / "d.gguf")
    np.testing.assert_array_equal(file.float32("d"), doubles.astype(np.float32))
    with pytest.raises(UsageError, match=r"'i' is stored as i32"):
        file.float32("i")
    np.testing.assert_array_equal(file.raw("i").view("<i4")[0], np.arange(8))


@pytest.mark.parametrize("shape", [(7,), (5, 32), (4, 3, 32), (2, 2, 3, 32)])
def test_shapes_come_out_as_they_went_in(tmp_path, shape):
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    write(tmp_path / "s.gguf", {"t": values})
    file = GGUFFile.open(tmp_path / "s.gguf")
    assert file.tensors["t"].shape == shape
    np.testing.assert_array_equal(file.float32("t"), values)


def test_stored_bytes_are_views_of_the_mapped_file_and_outlive_it(tmp_path):
    path = write(tmp_path / "o.gguf", {"t": numbers(4, 64)})
    stored = GGUFFile.open(path).raw("t")
    path.unlink()
    assert not stored.flags.owndata
    assert not stored.flags.writeable
    np.testing.assert_array_equal(stored.view(np.float32), numbers(4, 64))


def test_dequantizing_needs_little_more_than_its_result(tmp_path):
    kind = gguf.GGMLQuantizationType.Q4_1
    write(tmp_path / "big.gguf", {"t": (random_blocks(kind, 16_384, 512), kind)})
    file = GGUFFile.open(tmp_path / "big.gguf")
    result = file.float32("t")  # 33 MB; imports happen here
    tracemalloc.start()
    file.float32("t")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.75 * result.nbytes


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_other_alignments_are_respected(tmp_path, alignment):
    values = {"a": numbers(3, 5, 1), "b": numbers(2, 7, 2)}
    write(tmp_path / "a.gguf", values, alignment=alignment)
    file = GGUFFile.open(tmp_path / "a.gguf")
    for name, value in values.items():
        assert file.tensors[name].offset % alignment == 0
        np.testing.assert_array_equal(file.float32(name), value)


def test_version_2_is_read_too(tmp_path):
    data = bytearray(write(tmp_path / "v.gguf", {"t": numbers(2, 4)}).read_bytes())
    data[4] = 2  # the layout of versions 2 and 3 is the same
    (tmp_path / "v.gguf").write_bytes(data)
    file = GGUFFile.open(tmp_path / "v.gguf")
    assert file.version == 2
    np.testing.assert_array_equal(file.float32("t"), numbers(2, 4))


def split_model(folder: Path, **changes: object) -> list[Path]:
    """Three parts as gguf-split writes them; `changes` overwrite metadata of the second."""
    paths = []
    for part in range(3):
        facts = {"split.no": part, "split.count": 3, "split.tensors.count": 3}
        facts |= {"model.fact": "first"} if part == 0 else {}
        facts |= {key.replace("_", "."): value for key, value in changes.items()} if part == 1 else {}
        path = folder / f"model-{part + 1:05}-of-00003.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for key, value in facts.items():
            add = writer.add_string if isinstance(value, str) else writer.add_uint16
            add(key, value)
        writer.add_tensor(changes.get("name", f"t{part}") if part == 1 else f"t{part}", numbers(2, 4, part))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


@pytest.mark.parametrize("given", [0, 1, 2])
def test_a_split_model_opens_as_one_by_any_part(tmp_path, given):
    file = GGUFFile.open(split_model(tmp_path)[given])
    assert file.metadata["model.fact"] == "first"
    assert len(file.paths) == 3
    for part in range(3):
        np.testing.assert_array_equal(file.float32(f"t{part}"), numbers(2, 4, part))


def test_a_split_model_with_a_missing_part_names_it(tmp_path):
    paths = split_model(tmp_path)
    paths[1].unlink()
    with pytest.raises(UsageError, match=r"model-00002-of-00003\.gguf does not exist.*All 3 parts"):
        GGUFFile.open(paths[0])


def test_a_split_model_whose_parts_disagree_is_refused(tmp_path):
    for number, changes in enumerate([{"split_no": 0}, {"split_count": 2}, {"name": "t0"}]):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(UsageError, match=r"part|repeats"):
            GGUFFile.open(split_model(folder, **changes)[0])


def test_a_part_under_another_name_says_which_name_it_needs(tmp_path):
    path = split_model(tmp_path)[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(UsageError, match=r"must end in -00001-of-00003\.gguf"):
        GGUFFile.open(path)


def test_nothing_stays_open_after_the_last_array(tmp_path):
    path = write(tmp_path / "c.gguf", {"t": numbers(2, 4)})
    before = len(os.listdir("/proc/self/fd"))
    stored = GGUFFile.open(path).raw("t")
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del stored
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_tensor_that_is_not_there_is_named(tmp_path):
    file = GGUFFile.open(write(tmp_path / "c.gguf", {"t": numbers(2, 4)}))
    with pytest.raises(UsageError, match="no tensor 'u'"):
        file.raw("u")

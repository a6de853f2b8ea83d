"""How a model is loaded: types, devices, threads, and what is said without the packages they need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import nextword
from gguf_files import write_llama
from nextword import native
from nextword.base import UsageError
from nextword.cli import main
from nextword.engine import loading

needs_kernels = pytest.mark.skipif(not native.available(), reason="the runtime is compiled")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "m.gguf", "q4_k", attn_v="q6_k")


@needs_kernels
@pytest.mark.parametrize(
    ("dtype", "precision", "kv"),
    [("auto", "q4_k + q6_k", "float16"), ("float32", "float32", "float32"), ("bfloat16", "bfloat16", "float16"),
     ("q8_0", "q8_0", "float16")],
)  # fmt: skip
def test_the_precision_is_that_of_the_matrices(path: Path, dtype: str, precision: str, kv: str) -> None:
    model = nextword.load(path, dtype=dtype, device="cpu")
    assert (model.loaded.precision, model.loaded.device) == (precision, "cpu")
    assert getattr(model.loaded.backend, "kv_dtype", None) == kv
    assert np.isfinite(model.engine.logits(model.encode("the"))).all()


@needs_kernels
def test_types_without_kernels_are_run_as_q8_0(tmp_path: Path) -> None:
    model = nextword.load(write_llama(tmp_path / "m.gguf", "iq3_xxs"), device="cpu")
    assert model.loaded.precision == "q8_0"


@needs_kernels
def test_threads_are_set_and_change_no_logit(path: Path) -> None:
    before = native.threads()
    try:
        logits = [nextword.load(path, device="cpu", threads=n).engine.logits([1, 2, 3]) for n in (1, 3)]
        assert native.threads() == 3
    finally:
        native.set_threads(before)
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--dtype", "int8"), "int8 is now q8_0"),
        (("--dtype", "fp8"), "dtype 'fp8' is not known. Known: auto, float32"),
        (("--kv-dtype", "q4_0"), "kv-dtype 'q4_0' is not known. Known: auto, float32, float16, q8_0"),
        (("--threads", "0"), "threads is 0; it takes a whole number from 1 to 1024"),
    ],
)
def test_a_wrong_option_is_one_line(
    path: Path, options: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["complete", "-m", str(path), *options, "Hi"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_gpu_without_torch_names_the_extra(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextword.base.extras.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"device cuda needs torch\. Install it: pip install 'nextword\[train\]'"):
        nextword.load(path, device="cuda")


def test_without_kernels_and_torch_both_ways_out_are_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextword.base.extras.find_spec", lambda name: None)
    monkeypatch.setattr("nextword.native.available", lambda: False)
    with pytest.raises(UsageError, match=r"C compiler and reinstall nextword, or: pip install 'nextword\[train\]'"):
        nextword.load(path, device="cpu")


def test_types_of_the_kernels_are_refused_by_torch(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextword.native.available", lambda: False)
    for setting in ({"dtype": "q8_0"}, {"kv_dtype": "float16"}):
        with pytest.raises(UsageError, match="needs the compiled CPU kernels"):
            nextword.load(path, **setting)  # type: ignore[arg-type]


def test_a_gpu_is_looked_for_only_where_there_is_a_device_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_GPU_FILES", (str(tmp_path / "none"),))
    monkeypatch.setattr(loading, "installed", lambda name: pytest.fail("torch was looked for"))
    assert loading._on_cpu("auto")


@needs_kernels
@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_hidden_states_are_the_models_and_take_no_cache(tiny_model: Callable[..., Path], kind: str) -> None:
    import torch

    from torch_models import torch_model

    model = nextword.load(tiny_model(kind))
    text = list(range(40, 240))
    with torch.inference_mode():
        expected = torch_model(model).hidden(torch.tensor([text]))[0]
    for _ in range(2):
        np.testing.assert_allclose(model.engine.hidden(text), expected.numpy(), atol=1e-4, rtol=1e-4)
    assert model.engine.pages_used == 0

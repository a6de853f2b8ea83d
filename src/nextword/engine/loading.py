"""Loads a model by name or path onto a device: runtime/ on a CPU, PyTorch elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .. import native
from ..backend import Backend
from ..base import RunError, UsageError, free_memory
from ..base.extras import installed, require_torch
from ..base.units import format_bytes
from ..runtime import check_types, load_backend
from ..runtime.weights import Dtype
from ..spec import ModelSpec
from ..text import Tokenizer
from ..weights.catalogue import resolve
from ..weights.floats import KINDS
from ..weights.gguf_types import TYPES
from ..weights.loading import open_source
from ..weights.source import Source, run_kind, tensors_of
from .checks import shown, whole

if TYPE_CHECKING:
    import torch

_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, AMD, and either under WSL
_MOST_THREADS = 1024


@dataclass(frozen=True)
class LoadConfig:
    """How a model is loaded.

    dtype: "auto" runs a CPU's matrices as they are stored, and is bfloat16 on a GPU; or a type to convert them to.
    kv_dtype: the type of a CPU's keys and values; "auto" is float16, or float32 where the weights are float32.
    device: "auto" (a GPU if PyTorch can use one), "cpu", "cuda", "cuda:1", "mps", ...
    threads: of a CPU, for the whole process; None: its cores.
    """

    dtype: str = "auto"
    device: str = "auto"
    kv_dtype: str = "auto"
    threads: int | None = None

    def check(self) -> None:
        """Raise UsageError for an invalid value."""
        for name in ("dtype", "device", "kv_dtype"):
            if not isinstance(value := getattr(self, name), str):
                raise UsageError(f"{name} is {shown(value)}; it takes a str")
        check_types(self.dtype, self.kv_dtype)
        if self.threads is not None:
            whole("threads", self.threads, 1, _MOST_THREADS)


@dataclass(frozen=True)
class Loaded:
    """A model ready to run. `precision` is the type of its matrices: "float32", "q4_k + q6_k", ..."""

    name: str
    path: Path
    spec: ModelSpec
    tokenizer: Tokenizer
    precision: str
    device: str
    backend: Backend


def load_weights(name: str, config: LoadConfig | None = None) -> Loaded:
    """Load a model by catalogue name, folder, .gguf file or hf:owner/name.

    Raises UsageError for invalid names, files and settings, RunError if the download fails or memory is short.
    """
    config = config or LoadConfig()
    config.check()
    path = resolve(name)
    source = open_source(path)
    runs_on_torch = not _on_cpu(config.device) or not native.available()
    backend, precision, device = _torch_backend(source, config) if runs_on_torch else _cpu_backend(source, config)
    return Loaded(name, path, source.spec, source.tokenizer(), precision, device, backend)


def _on_cpu(device: str) -> bool:
    """Whether to run on a CPU. torch is imported only if there might be a GPU: that takes a second."""
    if device != "auto":
        return device == "cpu"
    if not any(Path(file).exists() for file in _GPU_FILES) or not installed("torch"):
        return True
    import torch

    return not torch.cuda.is_available()


# ---- CPU


def _cpu_backend(source: Source, config: LoadConfig) -> tuple[Backend, str, str]:
    """The backend, the type of its matrices, and the name of the device."""
    _check_memory(source, config.dtype)
    if config.threads is not None:
        native.set_threads(config.threads)
    backend = load_backend(source, cast(Dtype, config.dtype), config.kv_dtype)
    return backend, _precision(backend.types), "cpu"


def _precision(types: Iterable[str]) -> str:
    """The types of a model's matrices: GGUF's names, but PyTorch's for floats. Without the few in float32 among others.

    (Routers and learned positions are float32 in quantized files.)
    """
    names = {kind: name for name, kind in KINDS.items()}
    main = sorted(set(types) - {"f32"}) or ["f32"]
    return " + ".join(names.get(kind, kind) for kind in main)


def _check_memory(source: Source, dtype: str) -> None:
    """Raise RunError, before allocating, if the weights do not fit in free memory: each step reads mapped ones too."""
    needed, free = 0, free_memory()
    for tensor in tensors_of(source):
        kind = run_kind(source.kind(tensor)) if dtype == "auto" else KINDS.get(dtype, dtype)
        needed += math.prod(tensor.shape) * TYPES[kind].nbytes // TYPES[kind].values
    if free is not None and needed > free:
        what = "as they are stored" if dtype == "auto" else f"as {dtype}"
        raise RunError(
            f"{source.path}: its weights take {format_bytes(needed)} {what}, and {format_bytes(free)} of memory are"
            " free. Use a smaller model" + ("" if dtype == "q4_k" else ", or --dtype q4_k")
        )


# ---- PyTorch


def _torch_backend(source: Source, config: LoadConfig) -> tuple[Backend, str, str]:
    """The same from PyTorch: on a GPU, or on a CPU without the compiled kernels."""
    if _on_cpu(config.device) and not installed("torch"):
        raise UsageError(
            "nextword was installed without its compiled CPU kernels, and torch is not installed either."
            " Install a C compiler and reinstall nextword, or: pip install 'nextword[train]'"
        )
    require_torch(f"device {config.device}")
    from ..models.backend import TorchBackend
    from ..models.device import usable_device
    from ..models.weights import load_torch_model

    device = usable_device(config.device)
    dtype = _torch_dtype(config, device)
    model = load_torch_model(source, dtype, device)
    return TorchBackend(model), str(dtype).removeprefix("torch."), _device_name(device)


def _torch_dtype(config: LoadConfig, device: torch.device) -> torch.dtype:
    import torch

    for name, value, known in (("dtype", config.dtype, ("auto", *KINDS)), ("kv-dtype", config.kv_dtype, ("auto",))):
        if value not in known:
            raise UsageError(f"{name} {value} needs the compiled CPU kernels, and does not run on {device}. Use: auto")
    if config.threads is not None and device.type == "cpu":
        torch.set_num_threads(config.threads)
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, config.dtype)
    return dtype


def _device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

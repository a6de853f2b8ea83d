"""llama.cpp's own server: an oracle for the GGUF files that we write."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

Ask = Callable[[str, dict[str, Any]], Any]
SERVER = """
import sys, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path = sys.argv[1]
settings.n_ctx, settings.n_parallel, settings.verbosity, settings.warmup = 256, 1, -1, False
# exact attention: its fast one rounds to float16
settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(settings)
print("listening", server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def llama_cpp_address(path: Path) -> Iterator[str]:
    """llama.cpp's server on a model: its address.

    In a process of its own, which is killed: a test run that held several servers in turn once came to a standstill.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("llama.cpp is the oracle: pip install xllamacpp")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert server.stdout
        lines = (line.split() for line in server.stdout)
        address = next((words[1] for words in lines if words[:1] == ["listening"]), None)
        assert address, "llama.cpp does not open the file"
        yield address
    finally:
        server.kill()
        server.communicate()


@contextmanager
def llama_cpp(path: Path) -> Iterator[Ask]:
    """llama.cpp's server on a model: `ask("/tokenize", {...})`."""
    with llama_cpp_address(path) as address:

        def ask(page: str, data: dict[str, Any]) -> Any:
            kind = {"Content-Type": "application/json"}
            request = urllib.request.Request(address + page, json.dumps(data).encode(), kind)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        yield ask

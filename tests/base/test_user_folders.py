"""Where a user's files go, held to the XDG base directory specification and to platformdirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextword.base.user_folders import user_folder

VARIABLES = {"cache": "XDG_CACHE_HOME", "data": "XDG_DATA_HOME"}


@pytest.mark.parametrize("chosen", [None, "", "/chosen"])
@pytest.mark.parametrize("kind", VARIABLES)
def test_files_go_where_platformdirs_puts_them(kind, chosen, monkeypatch):
    platformdirs = pytest.importorskip("platformdirs")
    monkeypatch.delenv(VARIABLES[kind], raising=False)
    if chosen is not None:
        monkeypatch.setenv(VARIABLES[kind], chosen)
    theirs = getattr(platformdirs, f"user_{kind}_dir")("nextword", appauthor=False)
    assert user_folder(kind) == Path(theirs)


@pytest.mark.parametrize("kind", VARIABLES)
def test_a_relative_path_is_ignored(kind, monkeypatch):
    monkeypatch.delenv(VARIABLES[kind], raising=False)
    usual = user_folder(kind)
    monkeypatch.setenv(VARIABLES[kind], "here")
    assert user_folder(kind) == usual

"""A package that an extra brings: what is said when it is missing."""

import sys

import pytest

from nextword.base import UsageError, installed, require, require_torch


def test_a_missing_torch_is_one_line_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError) as error:
        require_torch("training")
    assert str(error.value) == "training needs torch. Install it: pip install 'nextword[train]'"


def test_several_things_need_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(UsageError, match=r"^pictures need vl_convert\. .*'nextword\[plot\]'$"):
        require("vl_convert", "pictures")


def test_an_installed_package_is_enough_and_is_not_imported():
    require("numpy", "arithmetic")
    assert installed("wave")
    assert "wave" not in sys.modules

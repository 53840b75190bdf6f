# SPDX-License-Identifier: Apache-2.0
"""Kernels need nothing but torch, triton and numpy, and importing them does nothing."""

import subprocess
import sys

import pytest

import bodocache.kernels

BLOCK = """
import importlib.metadata as metadata, re, sys, threading
wanted, kept = ["torch", "triton", "numpy", "cuda-python"], set()
wanted += ["setuptools", "packaging"]  # Triton 3.2 imports the one, and that the other
while wanted:  # what these need themselves
    name = re.split(r"[^A-Za-z0-9._-]", wanted.pop())[0].lower().replace("_", "-")
    if name in kept:
        continue
    kept.add(name)
    try:
        wanted += [r for r in metadata.requires(name) or () if "extra" not in r]
    except metadata.PackageNotFoundError:
        pass
blocked = {
    module for module, owners in metadata.packages_distributions().items()
    if not {owner.lower().replace("_", "-") for owner in owners} & (kept | {"bodocache"})
}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Blocker())
for name in ("numba", "pydantic", "rich", "typer"):
    try:
        __import__(name)
    except ModuleNotFoundError:  # blocked, or not installed
        continue
    raise AssertionError(name)
"""

IMPORT = """
import bodocache.kernels
assert "torch" not in sys.modules and "triton" not in sys.modules
from bodocache.kernels import gather_pages, scatter_pages, digest_pages
import torch
assert not torch.cuda.is_initialized()
assert threading.active_count() == 1
"""

USE = """
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory
layout = Layout(LayoutKind.PAGE_HEAD, Group("g", 2, 2, 16, 2), 2, 3)
memory = PagedMemory.of_layout(torch.arange(layout.pool_nbytes).to(torch.uint8), layout)
pages, digests = gather_pages(memory, torch.tensor([2, 0]))
assert torch.equal(digest_pages(pages), digests)
assert torch.equal(scatter_pages(pages, memory, torch.tensor([1, 0])), digests)
assert torch.equal(gather_pages(memory, torch.tensor([1])).pages[0], pages[0])
assert "numba" not in sys.modules
"""


def run(code):
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_kernels_import_and_work_without_any_other_package():
    run(BLOCK + IMPORT + USE)


def test_importing_compiles_nothing_and_starts_nothing():
    run("import sys, threading\n" + IMPORT + "assert 'numba' not in sys.modules\n")


def test_names_are_listed_and_misspelt_ones_refused():
    assert set(bodocache.kernels.__all__) <= set(dir(bodocache.kernels))
    assert all(getattr(bodocache.kernels, name) for name in bodocache.kernels.__all__)
    with pytest.raises(AttributeError, match="gather_page"):
        bodocache.kernels.gather_page  # noqa: B018 -- resolving the name is the test

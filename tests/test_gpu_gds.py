# SPDX-License-Identifier: Apache-2.0
"""The GPU's check of GDS, over the stand-in of cuFile: it passes here, and finds a lie."""

import asyncio
import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bodocache import jit
from bodocache.io.config import SlabConfig
from bodocache.io.gds.backend import GdsBackend, GdsConfig
from bodocache.testing import FakeCuFile

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def script(monkeypatch):
    """The script, with host memory in the place of the device's."""
    monkeypatch.syspath_prepend(str(BENCH))
    import _gpu_gds

    full = torch.full
    fake = FakeCuFile()

    def interface(tensor):
        shape, address = tuple(tensor.shape), tensor.data_ptr()
        return {"shape": shape, "typestr": "|u1", "strides": None, "data": (address, False)}

    monkeypatch.setattr(torch.Tensor, "__cuda_array_interface__", property(interface))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch, "full", lambda *a, **o: full(*a, **o | {"device": "cpu"}))
    monkeypatch.setattr(_gpu_gds, "fake", fake, raising=False)
    over_fake = functools.partial(GdsBackend.open, library=fake.library)
    monkeypatch.setattr(_gpu_gds.GdsBackend, "open", over_fake)
    return _gpu_gds


def config_in(folder, script):
    frame_nbytes = script.PAGE_NBYTES + 512
    slab = SlabConfig(folder, 4096 + script.PAGES * frame_nbytes, script.PAGE_NBYTES, b"g" * 32)
    return GdsConfig(slab)


def test_the_check_passes_and_gives_everything_back(script, tmp_path):
    config = config_in(tmp_path / "slab", script)
    batch = asyncio.run(script.through_gds(config))
    asyncio.run(script.through_slab(config.slab, batch))
    assert script.fake.violations + script.fake.leaks == []
    assert max(len(rows) for rows in script.fake.submitted) == 128


def test_the_check_finds_a_digest_that_is_never_computed(script, tmp_path, monkeypatch):
    monkeypatch.setattr(
        script, "digest_device_rows", lambda _, rows: np.zeros((len(rows), 2), "u8")
    )
    with pytest.raises(AssertionError):
        asyncio.run(script.through_gds(config_in(tmp_path / "slab", script)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_skipped_with_a_reason():
    command = [sys.executable, str(BENCH / "_gpu_gds.py"), "compat"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 77
    assert "no CUDA" in ran.stdout

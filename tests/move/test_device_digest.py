# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from bodocache import jit
from bodocache.digest import digest_rows
from bodocache.move import device_digest
from bodocache.move.device_digest import digest_device_rows

jit.warm()  # here, not in a test: a cold compile is not part of any test's time


@pytest.mark.parametrize("rows", [[], [3], [2, 3, 4], [4, 0, 2], [1, 1], list(range(8))])
@pytest.mark.parametrize("together", [1, 3, 100])
def test_digests_are_the_cpus_whatever_the_rows(rows, together, monkeypatch):
    pages = np.random.default_rng(5).integers(0, 256, (8, 4096), np.uint8)
    monkeypatch.setattr(device_digest, "SCRATCH_NBYTES", together * 4096)
    chosen = np.array(rows, np.int64)
    found = digest_device_rows(torch.from_numpy(pages), chosen)
    assert found.dtype == np.uint64
    assert (found == digest_rows(pages, chosen)).all()

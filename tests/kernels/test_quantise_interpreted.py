# SPDX-License-Identifier: Apache-2.0
"""The quantising kernels, interpreted: a process of their own, because it cannot compile them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(240)  # 20 ms for each head of each page: 30 s alone, more beside neighbours
def test_quantising_kernels_equal_their_twins_in_the_interpreter():
    file = Path(__file__).with_name("test_quantise.py")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        cwd=file.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr

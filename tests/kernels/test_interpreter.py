# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels, interpreted: a process of their own, because it cannot compile them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = ["test_pages.py", "test_copy.py", "test_score.py", "test_coldest.py", "test_quantise.py"]


@pytest.mark.timeout(240)  # an interpreter: 5 to 30 s alone, more beside busy neighbours
@pytest.mark.parametrize("name", FILES)
def test_kernels_equal_their_twins_in_the_interpreter(name):
    file = Path(__file__).with_name(name)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        cwd=file.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr

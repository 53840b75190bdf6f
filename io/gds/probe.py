# SPDX-License-Identifier: Apache-2.0
"""Whether cuFile can be used here, asked in a process of its own.

``driver_open`` never returns where there is no driver or no device: it spins inside the library, so
that no thread of ours could be ended. It also leaves a cufile.log in its working directory.
"""

import subprocess
import sys
import tempfile
from typing import NamedTuple

PROBE_TIMEOUT_S = 30.0  # CUDA alone takes seconds to initialise on machines of many GPUs

_SCRIPT = """
import ctypes, sys
def refuse(reason):
    print(reason)
    sys.exit(1)
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError as error:
    refuse(f"no CUDA driver: {error}")
count = ctypes.c_int()
code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
if code or not count.value:
    refuse(f"no CUDA device: error {code}, {count.value} devices")
try:
    from cuda.bindings import cufile
except ImportError as error:
    refuse(f"no bindings ({error}); pip install 'bodocache[cuda]'")
try:
    cufile.get_version()
except Exception as error:
    refuse(f"no libcufile ({type(error).__name__}: {str(error).splitlines()[0]})")
try:
    if sys.argv[1] == "compat":
        cufile.set_parameter_bool(cufile.BoolConfigParameter.FORCE_COMPAT_MODE, True)
    cufile.driver_open()
    cufile.driver_close()
except cufile.cuFileError as error:
    refuse(f"driver_open: {error}")
"""


class Probe(NamedTuple):
    """What the probe found; ``reason`` says what is missing, and is empty where nothing is."""

    available: bool
    reason: str


def probe(*, compat: bool = False, timeout_s: float = PROBE_TIMEOUT_S) -> Probe:
    """Open and close cuFile's driver in another process. Blocks, ``timeout_s`` at most."""
    return ask([sys.executable, "-c", _SCRIPT, "compat" if compat else "direct"], timeout_s)


def ask(command: list[str], timeout_s: float) -> Probe:
    """Available where ``command`` succeeds in time; else its last line of output says why not."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            ran = subprocess.run(  # noqa: S603 -- our own interpreter, our own script
                command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            return Probe(available=False, reason=f"the driver did not open within {timeout_s} s")
        except OSError as error:
            return Probe(available=False, reason=f"the probe could not be started: {error}")
    if ran.returncode == 0:
        return Probe(available=True, reason="")
    said = (ran.stdout.strip() or ran.stderr.strip() or "nothing").splitlines()[-1]
    return Probe(available=False, reason=f"{said} (exit {ran.returncode})")

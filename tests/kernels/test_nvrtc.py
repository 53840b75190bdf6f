# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N802 -- the stand-in has the driver's names
"""Compiling CUDA C++, keeping what was compiled, and launching it through a strict stand-in."""

import ctypes
import importlib
import logging
import struct
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bodocache.errors import BackendError, BackendUnavailable
from bodocache.kernels import direct, gpu, nvrtc
from bodocache.testing.fake_driver import ByAddress, Result

DEVICE = torch.device("cuda", 0)
EMPTY = b'extern "C" __global__ void nothing() {}'


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A cache of its own on disk, and nothing kept in memory before or after."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "jit"))
    caches = (
        *(nvrtc.compiled, nvrtc._function, gpu.primary_context),
        *(direct._calls, direct._primary),
    )
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def source(monkeypatch, tmp_path):
    """A source of ours that a test may change."""
    monkeypatch.setattr(nvrtc, "SOURCES", tmp_path)
    (tmp_path / "nothing.cu").write_bytes(EMPTY)
    return tmp_path / "nothing.cu"


@pytest.fixture
def compiler():
    try:
        return nvrtc._nvrtc()
    except BackendUnavailable as missing:
        pytest.skip(str(missing))


def kept(tmp_path):
    return sorted(path.name for path in (tmp_path / "jit" / "nvrtc").iterdir())


# -- compiling -------------------------------------------------------------------------------------


def test_importing_imports_nothing_of_cuda():
    code = (
        "import sys, torch; before = set(sys.modules)\n"  # torch has its own where it finds it
        "import bodocache.kernels.bulk; new = set(sys.modules) - before\n"
        "assert 'bodocache.kernels.nvrtc' in new\n"
        "assert not any(module.partition('.')[0] == 'cuda' for module in new)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_code_is_compiled_once_and_then_read_from_disk(compiler, source, tmp_path, monkeypatch):
    cubin = nvrtc.compiled("nothing.cu", "sm_90")
    assert cubin.startswith(b"\x7fELF")
    (name,) = kept(tmp_path)
    assert name.startswith("nothing-sm_90-")
    nvrtc.compiled.cache_clear()
    monkeypatch.setattr(nvrtc, "compile_code", None)
    assert nvrtc.compiled("nothing.cu", "sm_90") == cubin


@pytest.mark.parametrize("spoil", [lambda b: b[:100], lambda b: b[:0], lambda b: b[:-1] + b"x"])
def test_what_was_not_kept_whole_is_compiled_again(source, tmp_path, monkeypatch, spoil):
    monkeypatch.setattr(nvrtc, "_nvrtc", lambda: None)
    monkeypatch.setattr(nvrtc, "_version", lambda _: "1.0")
    monkeypatch.setattr(nvrtc, "compile_code", lambda *_: b"\x7fELF" + bytes(1000))
    cubin = nvrtc.compiled("nothing.cu", "sm_90")
    (file,) = (tmp_path / "jit" / "nvrtc").iterdir()
    file.write_bytes(spoil(file.read_bytes()))
    nvrtc.compiled.cache_clear()
    assert nvrtc.compiled("nothing.cu", "sm_90") == cubin


def test_source_arch_options_and_version_each_have_an_entry(
    compiler, source, tmp_path, monkeypatch
):
    monkeypatch.setattr(nvrtc, "compile_code", lambda *_: b"cubin")
    nvrtc.compiled("nothing.cu", "sm_90")
    nvrtc.compiled("nothing.cu", "sm_100")
    for change in (
        lambda: source.write_bytes(EMPTY + b"\n"),
        lambda: monkeypatch.setattr(nvrtc, "OPTIONS", ("--std=c++17",)),
        lambda: monkeypatch.setattr(nvrtc, "_version", lambda _: "99.1"),
    ):
        change()
        nvrtc.compiled.cache_clear()
        nvrtc.compiled("nothing.cu", "sm_90")
    assert len(kept(tmp_path)) == 5


def test_where_nothing_can_be_kept_code_is_compiled_all_the_same(
    compiler, source, tmp_path, caplog
):
    (tmp_path / "jit").write_text("a file, no folder")
    with caplog.at_level(logging.WARNING):
        assert nvrtc.compiled("nothing.cu", "sm_90").startswith(b"\x7fELF")
    assert "cannot keep nothing-sm_90" in caplog.text


def test_what_does_not_compile_is_said_with_the_compilers_words(compiler):
    with pytest.raises(BackendError, match=r"wrong\.cu for sm_90.*\n(.*\n)*.*\"y\" is undefined"):
        nvrtc.compile_code(b"__device__ int x() { return y; }", "sm_90", "wrong.cu")


def test_an_arch_that_nvrtc_does_not_know_is_unavailable(compiler):
    with pytest.raises(BackendUnavailable, match=r"not sm_999; install a newer nvidia-cuda-nvrtc"):
        nvrtc.compile_code(EMPTY, "sm_999", "nothing.cu")


@pytest.mark.parametrize(
    ("capability", "arch"), [((9, 0), "sm_90"), ((10, 3), "sm_100"), ((12, 1), "sm_121")]
)
def test_a_gpu_runs_code_of_its_own_minor_or_of_an_earlier_one(monkeypatch, capability, arch):
    monkeypatch.setattr(nvrtc, "_nvrtc", lambda: None)
    monkeypatch.setattr(nvrtc, "_known", lambda _: ["sm_90", "sm_100", "sm_120", "sm_121"])
    assert nvrtc.arch_of(capability) == arch


def test_a_gpu_of_a_major_that_nvrtc_does_not_know_is_said(monkeypatch):
    monkeypatch.setattr(nvrtc, "_nvrtc", lambda: None)
    monkeypatch.setattr(nvrtc, "_known", lambda _: ["sm_90"])
    monkeypatch.setattr(nvrtc, "_version", lambda _: "12.8")
    with pytest.raises(BackendUnavailable, match=r"NVRTC 12\.8.*none.*capability 11\.0"):
        nvrtc.arch_of((11, 0))


# -- what is missing -------------------------------------------------------------------------------


def test_without_cuda_python_the_message_says_what_to_install(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(BackendUnavailable, match=r"pip install 'cuda-python>=12\.8'"):
        gpu.bindings("driver")


def test_without_the_library_the_message_names_its_wheel(monkeypatch):
    def version():
        raise RuntimeError("Failed to dlopen libnvrtc.so.12")

    monkeypatch.setattr(gpu, "bindings", lambda _: SimpleNamespace(nvrtcVersion=version))
    with pytest.raises(BackendUnavailable, match="pip install nvidia-cuda-nvrtc"):
        nvrtc._nvrtc.__wrapped__()


@pytest.mark.parametrize("code", [0, 100])
def test_without_a_driver_or_a_device_it_is_unavailable(monkeypatch, code):
    def init(_flags):
        if code:
            return (Result("CUDA_ERROR_NO_DEVICE", code),)
        raise RuntimeError("libcuda.so.1 is not there")

    monkeypatch.setattr(gpu, "bindings", lambda _: SimpleNamespace(cuInit=init))
    with pytest.raises(BackendUnavailable, match=r"CUDA_ERROR_NO_DEVICE|no CUDA driver"):
        gpu.cuda_driver.__wrapped__()


# -- launching -------------------------------------------------------------------------------------


class Driver(ByAddress):
    """The calls that a launch makes, with a stack of contexts for one thread."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN="opt-in shared memory",
        CU_DEVICE_ATTRIBUTE_COMPUTE_MODE="compute mode",
    )
    CUcomputemode = SimpleNamespace(CU_COMPUTEMODE_EXCLUSIVE_PROCESS=3)
    CUfunction_attribute = SimpleNamespace(
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="dynamic shared memory"
    )

    def __init__(self):
        super().__init__()
        self.calls = []
        self.launch_result = Result()
        self.mode = 0

    def _done(self, *call):
        assert self.contexts[-1] == self.PRIMARY
        self.calls.append(call)

    def cuCtxGetDevice(self):
        return Result(), self.contexts[-1] - self.PRIMARY

    def cuDeviceGetAttribute(self, attribute, device):
        assert device == 0
        return Result(), {"opt-in shared memory": 232448, "compute mode": self.mode}[attribute]

    def cuModuleLoadData(self, cubin):
        self._done("load", cubin)
        return Result(), 11

    def cuModuleGetFunction(self, module, name):
        self._done("get", module, name)
        return Result(), 22

    def cuFuncSetAttribute(self, function, attribute, value):
        self._done("set", function, attribute, value)
        return (Result(),)

    def at_cuLaunchKernel(self, function, *numbers):
        *shape, stream, parameters, extra = numbers
        assert extra is None
        first = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))[0]
        self._done("launch", function, shape, stream, ctypes.string_at(first, 16))
        return self.launch_result.value

    def CUresult(self, code):
        return Result("CUDA_ERROR_INVALID_VALUE", code)


@pytest.fixture
def driver(monkeypatch):
    driver = Driver()
    monkeypatch.setattr(gpu, "cuda_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    return driver


ARGUMENTS = struct.pack("<QQ", 5, 2**40)
LAUNCH = {"num_blocks": 4, "num_threads": 64, "shared_nbytes": 99, "stream": SimpleNamespace()}
LAUNCH["stream"].cuda_stream = 33


def test_a_launch_hands_over_the_struct_in_torchs_context(driver):
    nvrtc.Function("bulk_copy", 22, DEVICE).launch(ARGUMENTS, **LAUNCH)
    shape = [4, 1, 1, 64, 1, 1, 99]
    assert driver.calls == [("launch", 22, shape, 33, ARGUMENTS)]
    assert driver.contexts == [0]


def test_a_context_that_is_current_stays(driver):
    driver.contexts.append(Driver.PRIMARY)
    driver.cuCtxPushCurrent = None
    nvrtc.Function("bulk_copy", 22, DEVICE).launch(ARGUMENTS, **LAUNCH)
    assert driver.contexts == [0, Driver.PRIMARY]


def test_a_refused_launch_is_an_error_and_leaves_the_context_as_it_was(driver):
    driver.launch_result = Result("CUDA_ERROR_INVALID_VALUE", 1)
    with pytest.raises(BackendError, match=r"cuLaunchKernel: CUDA_ERROR_INVALID_VALUE \(1\)"):
        nvrtc.Function("bulk_copy", 22, DEVICE).launch(ARGUMENTS, **LAUNCH)
    assert driver.contexts == [0]


def test_a_kernel_is_loaded_once_with_its_shared_memory(driver, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(nvrtc, "arch_of", lambda _: "sm_90")
    monkeypatch.setattr(nvrtc, "compiled", lambda source, arch: f"{source} {arch}".encode())
    found = [nvrtc.function("a.cu", "f", DEVICE, shared_nbytes=1234) for _ in range(2)]
    assert found == [nvrtc.Function("f", 22, DEVICE)] * 2
    assert driver.calls == [
        ("load", b"a.cu sm_90"),
        ("get", 11, b"f"),
        ("set", 22, "dynamic shared memory", 1234),
    ]


def test_the_shared_memory_of_a_block_is_the_devices(driver):
    assert gpu.max_shared_nbytes(DEVICE) == 232448
    assert driver.contexts == [0]


def test_a_gpu_for_one_process_at_a_time_is_found_without_a_context(driver, monkeypatch):
    driver.cuDevicePrimaryCtxRetain = None
    assert not gpu.is_exclusive(DEVICE)
    driver.mode = 3
    assert gpu.is_exclusive(DEVICE)

    def missing():
        raise BackendUnavailable("no CUDA driver")

    monkeypatch.setattr(gpu, "cuda_driver", missing)
    assert not gpu.is_exclusive(DEVICE)


def test_results_are_none_a_value_or_several():
    assert gpu.checked("f", (Result(),)) is None
    assert gpu.checked("f", (Result(), 5)) == 5
    assert gpu.checked("f", (Result(), 5, 6)) == (5, 6)

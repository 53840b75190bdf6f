# SPDX-License-Identifier: Apache-2.0
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import bodocache

REPOSITORY = Path(__file__).parent.parent

PUBLIC = sorted(
    {
        *("BackendError", "BackendLocked", "BackendUnavailable", "BodoCacheError", "CacheClosed"),
        *("ConfigError", "LayoutError", "LeaseError", "TierFull", "TraceError"),
        *("BlockingCache", "NodeCache", "NodeError", "NodeFenced", "NodeLost", "NodeRefused"),
        *("Cache", "CacheConfig", "CacheStats", "Load", "Loaded", "LoadFailed", "Match"),
        *("Advice", "Announcement", "QueueRules", "Queued"),
        *("Reason", "Store", "Stored", "Tier", "load_config", "HintError", "Reuse"),
        *("BorrowedPool", "Group", "KVShape", "Layout", "LayoutKind", "OwnedPool", "PagedMemory"),
    }
)


# Third-party packages may lie where nobody else can read: they are imported before root is dropped.
IMPORT_AS_NOBODY = """
import os, sys, threading
sys.path.insert(0, sys.argv[1])
MODULES = ["bodocache.cache", "bodocache.cli", "bodocache.replay.live", "bodocache.kernels.gather"]
def load():
    for name in MODULES:
        __import__(name)
load()
for name in list(sys.modules):
    if name.partition(".")[0] == "bodocache":
        del sys.modules[name]
os.setgid(65534); os.setuid(65534)
import numba.core.dispatcher as dispatcher
def refuse(*_):
    raise AssertionError("compiled on import")
dispatcher.Dispatcher.compile = refuse
threads = threading.active_count()
load()
assert sys.modules["bodocache"].__file__.startswith(sys.argv[1])
assert sys.modules["bodocache.jit"].cache_folder() is None
assert threading.active_count() == threads, threading.enumerate()
"""

BLOCKED_IMPORT = """
import sys
ALLOWED = {"torch", "triton", "numpy", "cuda"}
before = set(sys.modules)
import torch, triton, numpy
theirs = {name.partition(".")[0] for name in set(sys.modules) - before}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
BLOCKED = {"numba", "aiofiles", "pydantic", "typer", "rich", "llvmlite", "scipy", "matplotlib"}
for name in list(sys.modules):
    if name.partition(".")[0] in BLOCKED:
        del sys.modules[name]
sys.meta_path.insert(0, Refuse())
import bodocache.kernels as kernels
pages = torch.arange(4096, dtype=torch.int32).view(torch.uint8).view(4, -1)
assert kernels.digest_pages(pages).shape == (4, 2)
"""

MYPY_INI = """
[mypy]
follow_imports = silent
[mypy-torch.*,numpy.*,numba.*,pydantic.*,triton.*]
follow_imports = skip
"""


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", **environment},
        cwd="/",
        check=False,
    )


def test_public_names_are_pinned():
    assert sorted(PUBLIC) == bodocache.__all__


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves(name):
    assert getattr(bodocache, name).__name__ == name


def test_a_misspelt_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Cahce"):
        _ = bodocache.Cahce


def test_mypy_rejects_a_misspelt_name(tmp_path):
    (tmp_path / "user.py").write_text("from bodocache import Cache\nfrom bodocache import Cahce\n")
    (tmp_path / "mypy.ini").write_text(MYPY_INI)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-incremental", "user.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "MYPYPATH": str(REPOSITORY / "typecheck")},
        check=False,
    )
    assert 'no attribute "Cahce"' in checked.stdout, checked.stdout + checked.stderr
    assert "Found 1 error" in checked.stdout


@pytest.fixture
def unwritable_package():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        shutil.copytree(REPOSITORY / "bodocache", Path(folder) / "bodocache")
        yield Path(folder)


@pytest.mark.root
def test_import_works_unprivileged_with_nothing_writable_and_compiles_nothing(unwritable_package):
    done = run(IMPORT_AS_NOBODY, str(unwritable_package), HOME="/proc")
    assert done.returncode == 0, done.stderr


def test_kernels_need_only_torch_triton_numpy():
    done = run(BLOCKED_IMPORT, HOME="/nonexistent")
    assert done.returncode == 0, done.stderr


def test_every_source_file_carries_its_licence():
    sources = [
        path
        for folder in ("bodocache", "kernels", "io", "tests", "bench")
        for path in (REPOSITORY / folder).rglob("*.py")
    ]
    written = [p for p in sources if not p.name.endswith("_pb2.py")]  # protoc keeps no comments
    bare = [p for p in written if "SPDX-License-Identifier: Apache-2.0" not in p.read_text()[:200]]
    assert bare == []


def test_the_environment_is_read_in_one_module_only():
    package = REPOSITORY / "bodocache"
    sources = [*package.rglob("*.py"), *(REPOSITORY / "io").rglob("*.py")]
    sources += (REPOSITORY / "kernels").rglob("*.py")
    readers = [p.name for p in sources if "os.environ" in p.read_text()]
    assert set(readers) == {"env.py"}

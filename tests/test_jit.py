# SPDX-License-Identifier: Apache-2.0
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

from bodocache import jit

PACKAGE = Path(jit.__file__).parent

CALLEE = """
from bodocache import jit

@jit.compiled(jit.i8)
def callee(x):
    return x + {added}
"""
CALLER = """
from bodocache import jit
from bodocache.callee import callee

@jit.compiled(jit.i8)
def caller(x):
    return callee(x)
"""
RUN = "from bodocache.caller import caller; print(caller(1))"
DENIED = "from bodocache import jit; print(jit.cache_folder())"


def python(code: str, package: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=package.parent,
        # No .pyc: Python takes an edit of equal length within one second for no edit.
        env={
            "PATH": "/usr/bin:/bin",
            "NUMBA_CACHE_DIR": str(cache),
            "PYTHONPATH": ".",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        check=True,
    )


def copy_of_package(folder: Path) -> Path:
    package = folder / "bodocache"
    package.mkdir()
    for name in ("__init__.py", "jit.py", "env.py", "errors.py"):
        shutil.copy(PACKAGE / name, package / name)
    (package / "caller.py").write_text(CALLER)
    return package


def test_editing_a_callee_changes_the_result_in_a_new_process(tmp_path):
    package = copy_of_package(tmp_path)
    (package / "callee.py").write_text(CALLEE.format(added=10))
    assert python(RUN, package, tmp_path / "cache").stdout == "11\n"
    (package / "callee.py").write_text(CALLEE.format(added=20))
    assert python(RUN, package, tmp_path / "cache").stdout == "21\n"


def test_a_second_process_finds_the_compiled_code(tmp_path):
    package = copy_of_package(tmp_path)
    (package / "callee.py").write_text(CALLEE.format(added=10))
    python(RUN, package, tmp_path / "cache")
    compiled = sorted((tmp_path / "cache").rglob("*.nbc"))
    stamps = [path.stat().st_mtime_ns for path in compiled]
    python(RUN, package, tmp_path / "cache")
    assert compiled
    assert [path.stat().st_mtime_ns for path in compiled] == stamps


def test_the_newest_four_builds_are_kept(tmp_path):
    package = copy_of_package(tmp_path)
    (tmp_path / "cache").mkdir()
    for build in range(6):
        (tmp_path / "cache" / f"bodocache-old{build}").mkdir()
    python("from bodocache import jit; jit.cache_folder()", package, tmp_path / "cache")
    kept = list((tmp_path / "cache").iterdir())
    assert len(kept) == jit.KEPT_CACHES
    assert any("old" not in build.name for build in kept)


def test_code_is_compiled_in_memory_where_nothing_is_writable(tmp_path):
    package = copy_of_package(tmp_path)
    done = python(DENIED, package, Path("/proc/nowhere"))
    assert done.stdout == "None\n"
    assert done.stderr.count("compiled in memory") == 1


def test_numbas_own_cache_setting_is_restored():
    import numba

    before = numba.config.CACHE_DIR
    jit.compiled(jit.i8)(lambda x: x)
    jit._registry.pop()
    assert before == numba.config.CACHE_DIR


def test_every_name_that_compiled_code_uses_is_of_a_source_that_counts():
    for name in sorted(jit.sources()):
        importlib.import_module(name)
    sources, seen = jit.sources(), 0
    for dispatcher, _ in jit._registry:
        function = dispatcher.py_func
        for name in function.__code__.co_names:
            value = function.__globals__.get(name)
            used = getattr(value, "py_func", value)  # compiled code, too
            module = getattr(used, "__module__", None) or getattr(used, "__name__", None)
            if isinstance(module, str) and module.startswith("bodocache"):
                seen += 1
                assert module in sources, f"{function.__module__}.{function.__name__}: {name}"
    assert seen > 100


def test_what_no_compiled_code_sees_changes_no_build():
    assert {"bodocache.plan.records", "bodocache.plan.evict", "bodocache.pages"} <= set(
        jit.sources()
    )
    assert not {"bodocache.cache", "bodocache.cli", "bodocache.move.loader"} & set(jit.sources())

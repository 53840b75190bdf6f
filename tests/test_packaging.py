# SPDX-License-Identifier: Apache-2.0
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SDIST = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not importlib.util.find_spec("setuptools"), reason="needs setuptools"),
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("bodocache", "kernels", "io"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


def built(folder, *command):
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for word in ("SetuptoolsDeprecationWarning", "would be ignored", "Package Discovery"):
        assert word not in done.stdout + done.stderr
    return done.stdout


def wheel_of(source, folder):
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-v")
    built(folder, "-m", "pip", "wheel", str(source), *options, "-w", str(folder / "wheels"))
    (wheel,) = (folder / "wheels").glob("*.whl")
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def sources(checkout):
    folders = {"bodocache": "bodocache", "kernels": "bodocache/kernels", "io": "bodocache/io"}
    return {
        f"{package}/{path.relative_to(checkout / folder)}"
        for folder, package in folders.items()
        for pattern in ("*.py", "*.pyi", "*.proto", "*.cu", "py.typed", "profiles/*.toml")
        for path in (checkout / folder).rglob(pattern)
    }


def test_a_wheel_holds_every_source_of_the_three_folders(checkout, tmp_path):
    found = wheel_of(checkout, tmp_path)
    assert {"bodocache/kernels/cpu.py", "bodocache/io/slab.py", "bodocache/py.typed"} <= found
    assert found == sources(checkout)


def test_a_wheel_made_of_the_sdist_is_the_same(checkout, tmp_path):
    name = built(checkout, "-c", SDIST).split()[-1]
    with tarfile.open(checkout / "dist" / name) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("bodocache-*")
    assert wheel_of(unpacked, tmp_path) == sources(checkout)

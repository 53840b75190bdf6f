# SPDX-License-Identifier: Apache-2.0
"""Ways to break the storage, each of which named tests must see: ``make mutants``.

Every mutant is a copy of the package with a few lines changed, which is compiled anew and tested in
a process of its own.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[2]
COPIED = ("bench", "bodocache", "io", "kernels", "tests", "pyproject.toml")
CONTRACT, IO = "tests/contract/", "tests/io/"


class Change(NamedTuple):
    """Text of a file, which must be there once, and what takes its place."""

    path: str
    old: str
    new: str


class Mutant(NamedTuple):
    """Changes, and the tests that must see them."""

    changes: tuple[Change, ...]
    killers: tuple[str, ...]
    killers_as_root: tuple[str, ...] = ()


MUTANTS = {
    "the digest is not compared": Mutant(
        (
            Change(
                "io/jobs.py",
                "right = found[2 * i] == expected[2 * i] and"
                " found[2 * i + 1] == expected[2 * i + 1]",
                "right = True",
            ),
        ),
        (
            CONTRACT + "test_damage.py::"
            "test_a_corrupted_page_is_a_miss_and_its_neighbours_land[slab-middle]",
            CONTRACT + "test_damage.py::test_swapped_pages_are_misses[slab]",
        ),
    ),
    "the digest has no seed": Mutant(
        (
            Change("bodocache/digest.py", "digests + words", "digests + np.uint64(0) * words"),
            Change("io/read.py", " - known.words[frame, word]", ""),
            Change(
                "io/columns.py",
                "self.digests[rows] - self.keys[rows, :_SEED_NBYTES]",
                "self.digests[rows] - 0 * self.keys[rows, :_SEED_NBYTES]",
            ),
        ),
        (
            "tests/test_digest.py::test_the_golden_vector_of_a_seeded_digest",
            CONTRACT + "test_damage.py::"
            "test_a_frame_that_answers_with_another_page_and_its_digest_is_a_miss[slab]",
            CONTRACT + "test_damage.py::"
            "test_a_frame_that_answers_with_another_page_and_its_digest_is_a_miss[stand-in-memory]",
        ),
    ),
    "a durable put is acknowledged before its fdatasync": Mutant(
        (
            Change(
                "io/puts.py",
                "self._written.append(extent)\n        else:\n",
                "self._written.append(extent)\n        if extent:\n",
            ),
            Change("io/puts.py", "if self._transfer.is_final:", "if not self._written:"),
        ),
        (
            CONTRACT + "test_faults.py::"
            "test_a_durable_put_is_not_acknowledged_before_its_sync_has_returned[slab]",
            IO + "test_slab.py::test_a_failed_sync_fails_its_pages_and_is_not_retried",
        ),
        (
            IO + "test_power_cut.py::"
            "test_durable_pages_survive_power_cuts_right_after_their_acknowledgement",
        ),
    ),
    "buffers are given back on a cancel": Mutant(
        (
            Change(
                "io/transfer.py",
                "self._withdraw(Reason.CANCELLED)",
                "self._withdraw(Reason.CANCELLED)\n        self._finish_pending(Reason.CANCELLED)",
            ),
            Change(
                "io/transfer.py", "while self._in_use:", "while self._in_use and self._pending:"
            ),
        ),
        (
            CONTRACT + "test_cancel.py::"
            "test_a_buffer_that_is_reused_after_every_cancel_never_changes_behind_its_user[slab]",
            IO + "test_slab.py::test_an_abandoned_transfer_lets_what_is_in_flight_land",
        ),
    ),
    "a frame is given back while it is written": Mutant(
        (
            Change(
                "io/reservations.py",
                "busy = self._writing[frames]",
                "busy = self._writing[frames] & False",
            ),
        ),
        (IO + "test_slab.py::test_a_frame_released_while_it_is_written_is_free_only_afterwards",),
    ),
    "the length of a read is not looked at": Mutant(
        (
            Change(
                "io/jobs.py",
                "_pages_nbytes(job, whole) + job.page_nbytes <= job.moved",
                "_pages_nbytes(job, whole) >= 0",
            ),
        ),
        (
            CONTRACT + "test_damage.py::"
            "test_a_page_cut_off_in_use_is_a_miss_even_if_its_buffer_holds_its_bytes[slab]",
            IO + "test_recovery.py::test_a_file_truncated_under_an_open_slab_is_a_miss[0]",
        ),
    ),
    "the length of a write is not looked at": Mutant(
        (Change("io/write.py", "if moved != wanted:", "if moved > wanted:"),),
        (IO + "test_slab.py::test_a_write_that_moves_too_little_fails_its_pages[4096]",),
    ),
}


def failed(root, tests, cache):
    """Which of ``tests`` fail on the package below ``root``."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--tb=no", "-rf"]
    done = subprocess.run(
        [*command, *tests],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), **cache},
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return {line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED ")}


def killers_of(mutant):
    return mutant.killers + (mutant.killers_as_root if not os.geteuid() else ())


@pytest.mark.mutants
@pytest.mark.timeout(300)
def test_the_tests_that_see_mutants_pass_without():
    tests = [test for mutant in MUTANTS.values() for test in killers_of(mutant)]
    assert not failed(REPOSITORY, tests, {})


@pytest.mark.mutants
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_seen_by_each_of_its_tests(tmp_path, name):
    mutant, root = MUTANTS[name], tmp_path / "copy"
    root.mkdir()
    for part in COPIED:
        source = REPOSITORY / part
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(source, root / part, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, root / part)
    for change in mutant.changes:
        text = (root / change.path).read_text()
        assert text.count(change.old) == 1, f"{change.path}: write this mutant anew"
        (root / change.path).write_text(text.replace(change.old, change.new))
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert failed(root, killers_of(mutant), cache) == set(killers_of(mutant))

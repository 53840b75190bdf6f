# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PROTO = "bodocache/cluster/planner.proto"
WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "google":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
import bodocache.cache, bodocache.cluster
try:
    import bodocache.cluster.codec
except bodocache.cache.CacheClosed.__base__ as error:
    print(error)
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["planner_pb2.py", "planner_pb2.pyi"])
def test_the_generated_code_is_what_the_oldest_tools_make_of_the_proto(tmp_path, name):
    pytest.importorskip("grpc_tools")
    made = (f"--python_out={tmp_path}", f"--pyi_out={tmp_path}")
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *made, PROTO]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    committed = (REPOSITORY / PROTO).with_name(name).read_text()
    assert (tmp_path / PROTO).with_name(name).read_text() == committed, "run `make proto`"


@pytest.mark.timeout(60)
def test_without_protobuf_only_the_codec_does_not_import_and_says_why():
    command = [sys.executable, "-c", WITHOUT]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "cluster: protobuf is not installed; pip install bodocache[cluster]"
    )

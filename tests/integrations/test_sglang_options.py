# SPDX-License-Identifier: Apache-2.0
"""What SGLang's extra configuration may say to us; SGLang itself is not needed for this."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from bodocache.config import CacheConfig, parse
from bodocache.errors import ConfigError
from bodocache.integrations.sglang.options import Options, node_values
from bodocache.node.starter import toml_of

DOCS = Path(__file__).parents[2] / "docs" / "sglang.md"
SAID = {"backend_name": "bodocache", "interface_v1": 1, "capacity_bytes": "1 MiB"}


def options(tmp_path, **more):
    return Options.of(SAID | {"directory": str(tmp_path)} | more)


def test_every_option_is_documented_with_its_default():
    rows = [line.split("|") for line in DOCS.read_text().splitlines() if line[:3] == "| `"]
    documented = {}
    for _, names, default, text, *_ in rows:
        documented |= dict.fromkeys(re.findall(r"`(\w+)`", names), (default.strip(), text))
    fields = {it.name: it.default for it in dataclasses.fields(Options)}
    assert fields.keys() <= documented.keys()
    for name, default in fields.items():
        shown = documented[name][0]
        if isinstance(default, bool):
            assert shown == str(default).lower()
        elif isinstance(default, float):
            assert float(shown) == default


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"capacity": 1}, "capacity: unknown key"),
        ({"capacity_bytes": "much"}, "capacity_bytes"),
        ({"read_deadline_s": 0.0}, "read_deadline_s"),
        ({"tenant": -1}, "tenant"),
        ({"read_ahead_share": 1.5}, "read_ahead_share"),
        ({"domain_secret_hex": "abc"}, r"domain_secret_hex = \.\.\."),
    ],
)
def test_a_wrong_option_is_named_and_no_secret_is_shown(tmp_path, said, why):
    with pytest.raises(ConfigError, match=why):
        options(tmp_path, **said)


def test_options_that_are_missing_are_named():
    with pytest.raises(ConfigError, match="directory: missing"):
        Options.of({})


@pytest.mark.parametrize("is_sidecar", [False, True])
def test_the_nodes_configuration_survives_its_file(tmp_path, is_sidecar):
    said = options(tmp_path, host_bytes="2 MiB", domain_secret_hex="ab" * 16, durable=True)
    values = node_values(said, tmp_path, page_nbytes=8192, page_tokens=16, is_sidecar=is_sidecar)
    assert tomllib.loads(toml_of(values)) == values
    config = parse(CacheConfig, values)
    assert config.tiers.disk.durable
    assert config.identity.tenant_domain == said.tenant_domain
    assert config.tiers.disk.capacity_bytes == (256 if is_sidecar else 1024) * 1024
    assert config.node.page_tokens * config.node.head_dim == 8192

# SPDX-License-Identifier: Apache-2.0
import copy
import os
import shutil
import traceback

import pytest

from bodocache.config import CacheConfig, load_config, parse
from bodocache.errors import ConfigError
from bodocache.plan.heat import NEVER_FADES_S
from bodocache.plan.records import Feature
from bodocache.wiring import policy_of

GOOD = """
[identity]
model = "llama"
dtype = "bfloat16"

[tiers.host]
capacity_bytes = "1 GiB"

[tiers.disk]
directories = "{directory}"
capacity_bytes = 1048576
"""

BAD = [
    ("tiers.host.capacity_bytes", 0, "greater than 0"),
    ("tiers.host.capacity_bytes", -1, "8 GiB"),
    ("tiers.host.capacity_bytes", "8 parsecs", "8 GiB"),
    ("tiers.host.capacity_bytes", float("nan"), "8 GiB"),
    ("tiers.host.capacity_bytes", True, "8 GiB"),
    ("tiers.host.capacity_bytes", "900 TiB", "memory"),
    ("tiers.disk.capacity_bytes", "900 PiB", "has room for"),
    ("tiers.disk.directories", "/nowhere/at/all", "directory"),
    ("tiers.disk.directories", [], "at least 1"),
    ("tiers.disk.write_bytes_per_day", -1, "8 GiB"),
    ("tiers.disk.mac_key_hex", "abcd", "match"),
    ("tiers.disk.durable", "yes", "boolean"),
    ("tiers.disk.queue_depth", 0, "greater than or equal to 1"),
    ("tiers.disk.queue_depht", 8, "unknown key"),
    ("planner.half_life_s", 0, "greater than 0"),
    ("planner.half_life_s", -2.0, "greater than 0"),
    ("planner.half_life_s", float("nan"), "finite"),
    ("planner.half_life_s", float("inf"), "finite"),
    ("planner.half_life_s", "10 s", "number"),
    ("identity.model", "", "at least 1"),
    ("identity.domain_secret_hex", "xyz", "match"),
    ("features.admit", "perhaps", "boolean"),
    ("teirs", {}, "unknown key"),
]


def good(tmp_path):
    return {
        "identity": {"model": "llama", "dtype": "bfloat16"},
        "tiers": {
            "host": {"capacity_bytes": 1 << 20},
            "disk": {"directories": [str(tmp_path)], "capacity_bytes": 1 << 20},
        },
    }


def with_value(values, field, value):
    changed = copy.deepcopy(values)
    *sections, name = field.split(".")
    place = changed
    for section in sections:
        place = place.setdefault(section, {})
    place[name] = value
    return changed


def test_a_good_file_loads(tmp_path):
    file = tmp_path / "cache.toml"
    file.write_text(GOOD.format(directory=tmp_path))
    config = load_config(file)
    assert config.tiers.host.capacity_bytes == 1 << 30
    assert config.tiers.disk.capacity_bytes == 1 << 20


@pytest.mark.parametrize(("field", "value", "allowed"), BAD)
def test_an_error_names_field_value_and_what_is_allowed(tmp_path, field, value, allowed):
    values = with_value(good(tmp_path), field, value)
    with pytest.raises(ConfigError) as caught:
        parse(CacheConfig, values)
    message = str(caught.value)
    assert field.rpartition(".")[2] in message
    assert allowed in message
    assert ("..." if field.endswith("_hex") else str(value)) in message


@pytest.mark.parametrize(("field", "value", "allowed"), BAD)
def test_a_bad_configuration_creates_nothing(tmp_path, field, value, allowed):
    with pytest.raises(ConfigError):
        parse(CacheConfig, with_value(good(tmp_path), field, value))
    assert os.listdir(tmp_path) == []  # noqa: PTH208 -- names are enough


def test_every_problem_is_told_at_once(tmp_path):
    values = with_value(good(tmp_path), "tiers.host.capacity_bytes", 0)
    values = with_value(values, "planner.half_life_s", 0)
    with pytest.raises(ConfigError) as caught:
        parse(CacheConfig, values)
    assert str(caught.value).count("\n") == 1


def test_directories_of_one_file_system_share_its_room(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    for name in "ab":
        (tmp_path / name).mkdir()
    values = good(tmp_path)
    values["tiers"]["disk"] = {
        "directories": [str(tmp_path / name) for name in "ab"],
        "capacity_bytes": int(1.5 * free),
    }
    with pytest.raises(ConfigError, match="has room for"):
        parse(CacheConfig, values)


def test_a_missing_section_is_named(tmp_path):
    values = good(tmp_path)
    del values["identity"]
    with pytest.raises(ConfigError, match="identity: missing"):
        parse(CacheConfig, values)


@pytest.mark.parametrize("text", ["not toml = = =", '"\\xff"'])
def test_a_file_that_is_no_toml_is_named(tmp_path, text):
    file = tmp_path / "cache.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"cache\.toml"):
        load_config(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.toml"):
        load_config(tmp_path / "nothing.toml")


SECRET = "00112233445566778899aabbccddeeffZZ"
TELLING = [
    {"tiers.disk.mac_key_hex": SECRET},
    {"identity.domain_secret_hex": SECRET},
    {"identity.domain_secret_hex": [SECRET]},
    {"identity.salt": {"of": SECRET}},
    {"identity.salt": SECRET, "identity.model": ""},
    {"tiers.disk.mac_key": SECRET},
    {"tiers.dsik.mac_key_hex": SECRET},
    {"tiers.disk": [{"mac_key_hex": SECRET}]},
    {"tiers.disk.mac_key_hex": SECRET[:32], "tiers.disk.capacity_bytes": "900 PiB"},
    {"tiers": {"disk": {"mac_key_hex": SECRET, "directories": "/nowhere"}}},
]


@pytest.mark.parametrize("changes", TELLING)
def test_no_message_shows_a_secret(tmp_path, changes):
    values = good(tmp_path)
    for field, value in changes.items():
        values = with_value(values, field, value)
    with pytest.raises(ConfigError) as caught:
        parse(CacheConfig, values)
    told = "".join(traceback.format_exception(caught.value))
    assert SECRET[:32] not in told


def test_no_configuration_shows_a_secret_when_it_is_printed(tmp_path):
    values = good(tmp_path)
    for field in ("tiers.disk.mac_key_hex", "identity.domain_secret_hex", "identity.salt"):
        values = with_value(values, field, SECRET[:32])
    assert SECRET[:32] not in repr(parse(CacheConfig, values))


@pytest.mark.parametrize("feature", Feature)
def test_a_feature_that_is_switched_off_is_off_in_the_planner(tmp_path, feature):
    values = {**good(tmp_path), "features": {feature.name.lower(): False}}
    assert policy_of(parse(CacheConfig, values))["features_off"].tolist() == [feature]


def test_all_features_are_on_and_heat_fades_unless_it_is_switched_off(tmp_path):
    policy = policy_of(parse(CacheConfig, good(tmp_path)))
    assert policy[["features_off", "half_life_s"]].tolist() == [(0, 600.0)]
    values = {**good(tmp_path), "features": {"heat": False}}
    assert policy_of(parse(CacheConfig, values))["half_life_s"].tolist() == [NEVER_FADES_S]

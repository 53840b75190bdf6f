# SPDX-License-Identifier: Apache-2.0
from importlib.resources import files

import pytest

from bodocache.errors import ConfigError
from bodocache.replay.simulate import names
from bodocache.replay.simulate.policies import POLICIES
from bodocache.replay.simulate.profile import load_profile
from bodocache.replay.simulate.speed import Speed
from bodocache.testing.pace import Weather

PER_TOKEN = {  # bytes, as public tables of these models give them
    "h100-llama-3.1-8b": 131_072,
    "h100-llama-3.1-8b-remote": 131_072,
    "h200-llama-3.1-8b": 131_072,
    "h100x4-llama-3.1-70b": 327_680,
    "h200x4-llama-3.1-70b": 327_680,
    "h200x8-deepseek-v3": 70_272,
}


def test_every_shipped_profile_is_sound_and_its_pages_have_the_models_size():
    assert names.shipped() == sorted(PER_TOKEN)
    for name, nbytes in PER_TOKEN.items():
        profile = load_profile(name)
        assert profile.model.kv_bytes_per_token == nbytes
        assert profile.model.group.page_nbytes(512) == profile.model.page_nbytes


def test_every_figure_of_a_shipped_profile_names_its_source_or_says_that_it_is_assumed():
    for name in names.shipped():
        text = (files("bodocache.replay.simulate") / "profiles" / f"{name}.toml").read_text()
        for field in ("peak_flops", "mfu", "hbm_bytes", "capacity_bytes"):
            lines = [line for line in text.splitlines() if line.startswith(f"{field} =")]
            assert lines
        assert "assumed" in text
        assert text.count("#") > 12


def test_a_profile_of_ones_own_is_a_file(tmp_path):
    text = (files("bodocache.replay.simulate") / "profiles" / "h100-llama-3.1-8b.toml").read_text()
    path = tmp_path / "mine.toml"
    assert load_profile("h100-llama-3.1-8b").engines.count == 1
    path.write_text(text.replace("gpus = 1\n", "gpus = 2\n") + "\n[engines]\ncount = 4\n")
    mine = load_profile(path)
    assert (mine.engine.gpus, mine.engines.count) == (2, 4)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("mfu = 0.5", "mfu = 1.5", "engine.mfu = 1.5"),
        ("layers = 32", "layers = 32\nlayer = 1", "model.layer: unknown key"),
        ("[engine]", "[engines]\ncount = 0\n\n[engine]", "engines.count = 0"),
        ('weather = "steady"', 'weather = "sunny"', "storage.weather"),
        ('hbm_bytes = "80 GB"', 'hbm_bytes = "10 GB"', "no page fits; use more GPUs"),
    ],
)
def test_a_profile_that_cannot_be_says_which_field(tmp_path, old, new, match):
    text = (files("bodocache.replay.simulate") / "profiles" / "h100-llama-3.1-8b.toml").read_text()
    assert old in text
    path = tmp_path / "bad.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=match):
        load_profile(path)


def test_a_name_that_is_none_is_told_which_there_are():
    with pytest.raises(ConfigError, match="shipped profiles: h100-llama"):
        load_profile("h100-llama")


def test_names_are_those_of_the_policies_and_weathers():
    assert sorted(POLICIES) == sorted((names.OURS, names.ORACLE, *names.BASELINES))
    assert [*Weather] == [*names.WEATHERS]


def test_prefill_adds_up_over_chunks_and_the_first_token_costs_two_flops_a_parameter():
    speed = Speed.of(load_profile("h100-llama-3.1-8b"))
    whole_s = speed.prefill_s(0, 10_000)
    chunks_s = speed.prefill_s(0, 4_000) + speed.prefill_s(4_000, 6_000)
    assert chunks_s == pytest.approx(whole_s)
    assert speed.token_s == pytest.approx(2 * 8.03e9 / (989e12 * 0.5))
    assert speed.step_s(0.0, 0.0) == pytest.approx(2e-3 + 16.06e9 / (3.35e12 * 0.7))
    assert speed.step_s(1.0, 0.0) == pytest.approx(1.002)


def test_another_storage_changes_reads_and_writes_alike():
    profile = load_profile("h100-llama-3.1-8b")
    half = profile.with_storage(read_bytes_per_s=3.5e9, weather=Weather.BURSTY)
    assert half.storage.read.bytes_per_s == 3.5e9
    assert half.storage.write_bytes_per_s == pytest.approx(profile.storage.write_bytes_per_s / 2)
    assert half.storage.weather is Weather.BURSTY

# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import re
import typing
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

import bodocache.cache
import bodocache.kernels.cpu
import bodocache.replay.policy
import bodocache.replay.tiers  # noqa: F401 -- all register what is compiled
from bodocache import jit
from bodocache.cli import app
from bodocache.config import MOST_TENANT_CLASSES, CacheConfig
from bodocache.kernels.targets import TARGETS
from bodocache.move.requests import STAGES
from bodocache.move.timeline import Cut, Event
from bodocache.pages import Reason
from bodocache.watch.metrics import METRICS, STAGE_SECONDS

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

REPOSITORY = Path(__file__).parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
NAMED = {"queue_depth": "operations", "recompute_slope_s": "s/token/position"}
NAMED |= {"recompute_s_per_token": "s/token", "domain_secret_hex": "hex digits"}
NAMED |= {"max_held_share": "share", "churn_share": "share", "max_sessions": "sessions"}
NAMED |= {"port": "port", "tenant_classes": "tenants by class"}
NAMED |= {"write_bytes_per_day": "bytes", "mac_key_hex": "hex digits"}
NAMED |= {"page_tokens": "tokens", "layers": "layers", "heads": "heads", "kv": "tensors"}
NAMED |= {"head_dim": "elements", "itemsize": "bytes"}
SUFFIXES = {"_bytes_per_s": "bytes/s", "_bytes": "bytes", "_s": "s"}
TYPES = {"string": "text", "boolean": "boolean", "object": "shares by tenant"}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def rows(page):
    """First cell -> the others, of every table row that begins with code."""
    lines = re.findall(r"^\| (`.*) \|$", page.read_text(), re.MULTILINE)
    cells = [line.split(" | ") for line in lines]
    return {first.strip("`"): rest for first, *rest in cells}


def execute(code):
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


def test_the_readmes_example_finds_its_pages_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (toml,), (code,) = (blocks(PAGES[0], language) for language in ("toml", "python"))
    (tmp_path / "cache.toml").write_text(toml)
    execute(code)
    execute(code)
    assert capsys.readouterr().out.splitlines() == [
        "0 of 62 pages came from the cache",
        "62 of 62 pages came from the cache",
    ]


def test_the_examples_of_the_kernels_run_one_after_the_other():
    execute("\n".join(blocks(REPOSITORY / "docs" / "kernels.md", "python")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_the_readme_is_short():
    assert len(PAGES[0].read_text().splitlines()) < 150


def settings(kind=CacheConfig, prefix=""):
    """Dotted name -> (unit, default, range), from the dataclasses."""
    schema = TypeAdapter(kind).json_schema()["properties"]
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        inner = next((t for t in (hints[field.name], *typing.get_args(hints[field.name]))
                      if dataclasses.is_dataclass(t)), None)  # fmt: skip
        if inner is not None:
            found |= settings(inner, f"{name}.")
        else:
            said = schema[field.name]
            found[name] = (unit(field.name, said), default(field), allowed(said))
    return found


def unit(name, said):
    if said.get("format") == "path":
        return "path"
    if said["type"] == "array":
        return f"{unit(name, said['items'])}s"
    suffixes = (unit for suffix, unit in SUFFIXES.items() if name.endswith(suffix))
    return NAMED.get(name) or next(suffixes, None) or TYPES[said["type"]]


def default(field):
    value = field.default
    if field.default_factory is dict:
        return "none"
    if isinstance(value, FieldInfo):
        value = value.default
    if isinstance(field.default, FieldInfo) and field.default.default_factory is not None:
        return "empty"
    if value is dataclasses.MISSING:
        return "required"
    return str(value).lower() if isinstance(value, bool) else str(value) or "empty"


def allowed(said):  # noqa: PLR0911 -- a case each
    if said["type"] == "object":
        bounds = next(iter(said["patternProperties"].values()))
        assert (bounds["exclusiveMinimum"], bounds["maximum"]) == (0, 1)
        return "each > 0, together at most 1"
    if "pattern" in said:
        assert said["pattern"] == "^([0-9a-fA-F]{2}){16,64}$|^$"
        return "32 to 128 hex digits, or empty"
    if said["type"] == "array":
        assert said["items"]["format"] == "path"
        return "folders, one at least there"
    plain = {"boolean": "true or false", "object": f"{MOST_TENANT_CLASSES} classes at most"}
    if said["type"] in plain:
        return plain[said["type"]]
    if "maximum" in said:
        return f"{said['minimum']} to {said['maximum']}"
    bounds = {"exclusiveMinimum": ">", "gt": ">", "minimum": ">=", "ge": ">="}
    for bound, sign in bounds.items():
        if bound in said:
            return f"{sign} {said[bound]:g}"
    return "not empty" if said.get("minLength") else "any text"


def test_every_setting_is_documented_as_it_is():
    page = rows(REPOSITORY / "docs" / "configuration.md")
    assert {name: tuple(cells[:3]) for name, cells in page.items()} == settings()
    assert all(cells[3] for cells in page.values())


def test_every_option_of_replay_is_documented():
    from typer.main import get_command

    options = {
        option
        for parameter in get_command(app).commands["replay"].params
        for option in parameter.opts
        if option.startswith("--")
    }
    text = (REPOSITORY / "docs" / "replay.md").read_text()
    assert {option for option in options if f"`{option}" not in text} == {"--help"} & options


def names_of(figures):
    """The names of a replay's JSON, as docs/replay.md writes them."""
    for name, value in figures.items():
        inner = value if isinstance(value, dict) and name != "misses" else {}
        if name in ("tiers", "links"):
            inner = {f"{name[0].upper()}.{part}": 0 for part in next(iter(value.values()))}
        yield from (f"{name}.{part}" for part in inner)
        if name not in ("tiers", "links"):
            yield name


@pytest.mark.parametrize("kind", [(), ("--policy-only", "--capacity-pages", "300")])
def test_every_figure_of_replay_is_documented(kind):
    small = ("--page-bytes", "4096", "--write-through", "--in-flight", "1")
    pools = ("--host-pages", "230", "--disk-pages", "2000")  # some of the hits are on disk
    options = ("--max-requests", "100", "--json", "-", *(kind or (*small, *pools)))
    result = CliRunner().invoke(app, ["replay", *options])
    text = (REPOSITORY / "docs" / "replay.md").read_text()
    text = text.replace("`latency_p99_ms`", "`links.L.latency_p99_ms`")
    figures = json.loads(result.stdout)
    assert kind or figures["disk_reads"], "so that its names are seen"
    names = set(names_of(figures))
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_every_figure_of_a_curve_is_documented():
    curve = ("--policy-only", "--curve", "--policies", "lru", "--max-requests", "5", "--json", "-")
    figures = json.loads(CliRunner().invoke(app, ["replay", *curve]).stdout)
    names = {*figures, *(f"curves.P.{name}" for name in figures["curves"]["lru"])} - {"curves"}
    text = (REPOSITORY / "docs" / "replay.md").read_text()
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_every_figure_of_writes_is_documented():
    writes = ("--policy-only", "--writes", "--capacity-pages", "9", "--max-requests", "5")
    figures = json.loads(CliRunner().invoke(app, ["replay", *writes, "--json", "-"]).stdout)
    whens = figures["curves"]["chance"]
    names = {*figures, *(f"curves.R.{when}" for when in whens)} - {"curves"}
    names |= {f"curves.R.W.{name}" for name in whens["store"]}
    text = (REPOSITORY / "docs" / "replay.md").read_text()
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_every_figure_of_kernels_is_documented():
    options = ("--only", "digest", "--targets", "sm_90", "--json", "-")
    figures = json.loads(CliRunner().invoke(app, ["kernels", *options]).stdout)
    text = (REPOSITORY / "docs" / "kernels.md").read_text()
    names = {*figures, *figures["rows"][0], *TARGETS}
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_every_reason_of_a_miss_is_documented():
    text = (REPOSITORY / "docs" / "replay.md").read_text()
    names = {reason.name.lower() for reason in Reason if reason is not Reason.NONE}
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_every_metric_is_documented_as_it_is():
    page = rows(REPOSITORY / "docs" / "orchestrator.md")
    found = {name: tuple(cells) for name, cells in page.items() if name.startswith("bodocache_")}
    assert found == {
        metric.exported_name: (
            metric.kind.value,
            ", ".join(f"`{label}`" for label in metric.labels),
            metric.what,
        )
        for metric in (*METRICS, STAGE_SECONDS)
    }


@pytest.mark.parametrize("names", [Cut, Event, STAGES])
def test_every_cut_event_and_stage_is_documented(names):
    text = (REPOSITORY / "docs" / "orchestrator.md").read_text()
    members = [it if isinstance(it, str) else it.name.lower() for it in names]
    assert [name for name in members if f"`{name}`" not in text] == []

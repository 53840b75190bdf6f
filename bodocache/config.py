# SPDX-License-Identifier: Apache-2.0
"""The configuration: one frozen dataclass per subsystem, and the strict TOML loader.

Sizes are bytes, as integers or with a unit ("8 GiB"). Loading creates nothing on disk.
"""

import os
import shutil
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    StrictBool,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from bodocache.errors import ConfigError
from bodocache.hints.reuse import MOST_TENANT
from bodocache.identity import Domain


def sized(value: object) -> int:
    """Bytes from an integer, or from a text with a unit."""
    bits = isinstance(value, str) and value.lower().endswith(("bit", "bits"))
    if isinstance(value, int | str) and not isinstance(value, bool) and not bits:
        with suppress(ValidationError):
            return int(TypeAdapter(ByteSize).validate_python(value))
    raise ValueError('expected bytes: an integer above 0, or a text like "8 GiB"')


def _several(value: object) -> object:
    """One path is a list of one."""
    return (value,) if isinstance(value, str | Path) else value


def _fits_memory(nbytes: int) -> int:
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if nbytes > installed:
        raise ValueError(f"expected at most this machine's memory, {installed} bytes")
    return nbytes


Bytes = Annotated[int, BeforeValidator(sized), Field(gt=0)]
Seconds = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=0.9)]
Part = Annotated[float, Field(strict=True, gt=0, le=1)]
TenantNumber = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]  # a TOML key is a text
ClassName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
Tenant = Annotated[int, Field(strict=True, ge=0, le=MOST_TENANT)]
PerSecond = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
BytesPerSecond = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]

T = TypeVar("T")

MOST_TENANT_CLASSES = 16

_KEY_HEX = r"^([0-9a-fA-F]{2}){16,64}$|^$"
_STRICT = ConfigDict(extra="forbid", hide_input_in_errors=True)  # it may hold a secret
_SECRET_WORDS = ("secret", "key", "salt", "hex")  # fields so named are never shown


@dataclass(frozen=True, slots=True, config=_STRICT)
class IdentityConfig:
    """What the engine serves: all of it goes into every key."""

    model: Annotated[str, Field(min_length=1)]
    dtype: Annotated[str, Field(min_length=1)]
    revision: str = ""
    weights_version: str = ""
    quantiser: str = ""
    rope: str = ""
    lora: str = ""
    salt: str = Field(default="", repr=False)
    domain: Annotated[str, Field(min_length=1)] = "default"
    domain_secret_hex: Annotated[str, Field(pattern=_KEY_HEX)] = Field(default="", repr=False)

    @property
    def tenant_domain(self) -> Domain:
        """The domain that the cache's tenants share."""
        return Domain(self.domain, bytes.fromhex(self.domain_secret_hex))


@dataclass(frozen=True, slots=True, config=_STRICT)
class HostConfig:
    """Host memory, pinned where CUDA is there."""

    capacity_bytes: Annotated[Bytes, AfterValidator(_fits_memory)]


def _held_nbytes(directory: Path) -> int:
    return sum(f.stat().st_blocks * 512 for f in directory.glob("*") if f.is_file())


@dataclass(frozen=True, slots=True, config=_STRICT)
class DiskConfig:
    """The slab backend on one directory, or on several: one for each device.

    ``capacity_bytes`` is a hard cap for all of them, headers included; each has an equal share. A
    lock and, with a budget, its record come on top, 4 KiB each. Of several directories some may be
    missing: a disk that failed must not keep the others out.
    """

    directories: Annotated[tuple[Path, ...], BeforeValidator(_several), Field(min_length=1)]
    capacity_bytes: Bytes
    queue_depth: Annotated[int, Field(strict=True, ge=1, le=256)] = 8
    chunk_bytes: Annotated[int, BeforeValidator(sized), Field(ge=4096, le=64 << 20)] = (
        2 << 20
    )  # above it no disk we measured is faster

    durable: StrictBool = False  # written pages survive a power cut
    write_bytes_per_day: Annotated[int, BeforeValidator(sized), Field(ge=0)] = 0  # 0: no limit
    # For directories that others may write to.
    mac_key_hex: Annotated[str, Field(pattern=_KEY_HEX)] = Field(default="", repr=False)

    def __post_init__(self) -> None:
        if len({directory.resolve() for directory in self.directories}) < len(self.directories):
            raise ValueError("directories: one stands twice")
        there = [directory for directory in self.directories if directory.is_dir()]
        if not there:
            names = ", ".join(map(str, self.directories))
            raise ValueError(f"directories: {names}: not there, or no directory")
        share = self.capacity_bytes // len(self.directories)
        for device in {directory.stat().st_dev for directory in there}:
            same = [directory for directory in there if directory.stat().st_dev == device]
            room = shutil.disk_usage(same[0]).free + sum(map(_held_nbytes, same))
            if share * len(same) > room:
                raise ValueError(
                    f"capacity_bytes {self.capacity_bytes}: of it {share * len(same)} for"
                    f" {', '.join(map(str, same))}, which has room for {room} bytes"
                )


@dataclass(frozen=True, slots=True, config=_STRICT)
class TiersConfig:
    """The tiers below the device. Without ``disk``, host memory is the last."""

    host: HostConfig
    disk: DiskConfig | None = None


@dataclass(frozen=True, slots=True, config=_STRICT)
class PlannerConfig:
    """What the planner is told about the engine and the links."""

    half_life_s: Seconds = 600.0  # of heat
    min_residence_s: NonNegative = 0.0
    # The churn guard: no more than this share of a tier is evicted in churn_s; 0: no limit.
    churn_share: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.0
    churn_s: Seconds = 1.0
    recompute_s_per_token: Seconds = 20e-6  # at position 0 (8B-class model on one Hopper GPU)
    recompute_slope_s: NonNegative = 1e-9  # per position
    host_bytes_per_s: BytesPerSecond = 20e9
    disk_bytes_per_s: BytesPerSecond = 2e9
    disk_write_bytes_per_s: BytesPerSecond = 1e9
    disk_latency_s: Seconds = 200e-6
    # Loads that come while their links are busy are planned together, in windows of up to this.
    window_s: Annotated[float, Field(strict=True, ge=0.002, le=0.01)] = 0.002


@dataclass(frozen=True, slots=True, config=_STRICT)
class FeaturesConfig:
    """Stages of the planner that can be switched off, each to its neutral behaviour."""

    heat: StrictBool = True  # off: uses never fade
    reuse: StrictBool = True  # off: what leaves goes by heat, not by what was learned
    fanout: StrictBool = True  # off: each request moves its own pages, in ops of its own
    admit: StrictBool = True  # off: every page is written through
    credits: StrictBool = True  # off: nobody waits for credits
    tardiness: StrictBool = True  # off: no load is cut or sent back, no finish predicted
    overlap: StrictBool = True  # off: a step starts when all its layers are there
    coalesce: StrictBool = True  # off: an op is one page
    aside: StrictBool = True  # off: it never steps aside, whatever it gains


@dataclass(frozen=True, slots=True, config=_STRICT)
class HintsConfig:
    """How far callers' hints reach."""

    max_held_share: Share = 0.5  # of a tier, all tenants together
    max_hold_s: Seconds = 3600.0  # nothing is kept longer
    horizon_s: Seconds = 150.0  # what is used within it was used again
    max_sessions: Annotated[int, Field(strict=True, ge=1, le=1 << 20)] = 16384
    session_ttl_s: Seconds = 3600.0


class Limit(NamedTuple):
    """What a tenant may move to and from the disk, for each purpose; 0: no limit."""

    bytes_per_s: float
    ios_per_s: float


@dataclass(frozen=True, slots=True, config=_STRICT)
class TenantsConfig:
    """What part of every tier a tenant is sure of, by its number; the rest is for all others."""

    shares: Mapping[TenantNumber, Part] = Field(default_factory=dict)
    # What a tenant may move to and from the disk; one that is not named has no limit.
    bytes_per_s: Mapping[TenantNumber, BytesPerSecond] = Field(default_factory=dict)
    ios_per_s: Mapping[TenantNumber, PerSecond] = Field(default_factory=dict)
    burst_s: Seconds = 0.5  # of its rate: what an idle tenant has put by at most
    lend: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.0  # of that, unused, to others

    def __post_init__(self) -> None:
        if sum(self.shares.values()) > 1.0 + 1e-9:  # .4, .3, .2 and .1 are one, of floats, too
            raise ValueError(f"shares: {sum(self.shares.values())} together: expected at most 1")

    def by_number(self) -> dict[int, float]:
        """The share of each tenant that has one."""
        return {int(tenant): share for tenant, share in self.shares.items()}

    def limits(self) -> dict[int, Limit]:
        """The rates of each tenant that has one."""
        named = sorted({int(tenant) for tenant in (*self.bytes_per_s, *self.ios_per_s)})
        nbytes, ios = (
            {int(tenant): rate for tenant, rate in rates.items()}
            for rates in (self.bytes_per_s, self.ios_per_s)
        )
        return {it: Limit(nbytes.get(it, 0.0), ios.get(it, 0.0)) for it in named}


@dataclass(frozen=True, slots=True, config=_STRICT)
class MetricsConfig:
    """What is exported for Prometheus and ``bodocache top``, on this machine's loopback only."""

    port: Annotated[int, Field(strict=True, ge=0, le=65535)] = 0  # 0: no exporter
    # Tenants are counted by class, so that metrics stay few: the numbers of each class's tenants.
    tenant_classes: dict[ClassName, tuple[Tenant, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.tenant_classes) > MOST_TENANT_CLASSES:
            raise ValueError(
                f"tenant_classes: {len(self.tenant_classes)}; expected at most"
                f" {MOST_TENANT_CLASSES}: each is a label of its own"
            )
        if "other" in self.tenant_classes:
            raise ValueError("tenant_classes.other: the class of those in no class; choose another")
        named = [tenant for tenants in self.tenant_classes.values() for tenant in tenants]
        twice = sorted({tenant for tenant in named if named.count(tenant) > 1})
        if twice:
            raise ValueError(
                f"tenant_classes: tenant {twice[0]} is in two of them, or twice in one"
            )


@dataclass(frozen=True, slots=True, config=_STRICT)
class NodeConfig:
    """What a node process is told of the pages of its engines, and of its patience with them.

    ``layers`` to ``itemsize``: as :class:`bodocache.layout.Group`. An engine with other pages is
    refused.
    """

    page_tokens: Annotated[int, Field(strict=True, ge=1)]
    layers: Annotated[int, Field(strict=True, ge=1)]
    heads: Annotated[int, Field(strict=True, ge=1)]
    head_dim: Annotated[int, Field(strict=True, ge=1)]
    itemsize: Annotated[int, Field(strict=True, ge=1)]
    kv: Annotated[int, Field(strict=True, ge=1, le=2)] = 2
    group: Annotated[str, Field(min_length=1)] = "attention"
    silence_s: Seconds = 10.0  # an engine that says nothing for so long has lost what it held


@dataclass(frozen=True, slots=True, config=_STRICT)
class CacheConfig:
    """The whole configuration of one cache."""

    identity: IdentityConfig
    tiers: TiersConfig
    planner: PlannerConfig = PlannerConfig()
    features: FeaturesConfig = FeaturesConfig()
    hints: HintsConfig = HintsConfig()
    tenants: TenantsConfig = TenantsConfig()
    metrics: MetricsConfig = MetricsConfig()
    node: NodeConfig | None = None  # for `bodocache node`; an engine needs none


def load_config(path: Path) -> CacheConfig:
    """Read a TOML file.

    Raises:
        ConfigError: the file is missing or no TOML, or a field is unknown, missing or out of range;
            the message names field, value and what is allowed.
    """
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return parse(CacheConfig, values, source=str(path))


def parse(kind: type[T], values: dict[str, Any], *, source: str = "configuration") -> T:
    """Check ``values`` against the dataclass ``kind``; ConfigError as in :func:`load_config`."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        lines = [f"{source}: {_explain(problem)}" for problem in error.errors()]
        raise ConfigError("\n".join(lines)) from error


def _explain(problem: Any) -> str:
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{field}: missing"
    shown = _shown(field, problem["input"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{field}: unknown key (value {shown}); check its spelling and section"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{field} = {shown}: {message}"


def _shown(field: str, value: Any) -> str:
    """``value`` for a message; "..." where ``field`` is a secret by its name, misspelt or not."""
    if any(word in field.rpartition(".")[2].lower() for word in _SECRET_WORDS):
        return "..."
    if hasattr(value, "kwargs"):  # a whole dataclass's arguments
        value = value.kwargs
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_shown(name, it)}" for name, it in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_shown(field, it) for it in value) + "]"
    return "nan" if isinstance(value, float) and np.isnan(value) else repr(value)

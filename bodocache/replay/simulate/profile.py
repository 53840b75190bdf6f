# SPDX-License-Identifier: Apache-2.0
"""What is simulated: a model, the engine that serves it, its links, its storage, its target.

A profile is a TOML file; those that come with the package are found by name. Every figure in them
names its source in a comment beside it.
"""

import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from bodocache.config import BytesPerSecond, NonNegative, parse, sized
from bodocache.errors import ConfigError
from bodocache.layout import Group
from bodocache.replay.simulate.names import shipped
from bodocache.testing.pace import Weather

_STRICT = ConfigDict(extra="forbid")

Bytes = Annotated[int, BeforeValidator(sized), Field(gt=0)]
Count = Annotated[int, Field(strict=True, ge=1)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Part = Annotated[float, Field(strict=True, gt=0, le=1)]


@dataclass(frozen=True, slots=True, config=_STRICT)
class ModelProfile:
    """What is served. ``kv`` is 2 for keys and values, 1 for a latent (MLA)."""

    name: Annotated[str, Field(min_length=1)]
    active_parameters: Positive  # that one token passes through
    weight_bytes: Bytes  # all of them, on all GPUs together
    layers: Count
    heads: Count  # of queries
    head_dim: Count  # of queries and keys, for the slope of attention
    kv: Annotated[int, Field(strict=True, ge=1, le=2)]
    kv_heads: Count
    kv_dim: Count
    kv_itemsize: Count = 2
    page_tokens: Count = 512  # what an id of the trace stands for

    @property
    def group(self) -> Group:
        """What its pages hold."""
        return Group("kv", self.layers, self.kv_heads, self.kv_dim, self.kv_itemsize, kv=self.kv)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token in the cache."""
        return self.kv * self.layers * self.kv_heads * self.kv_dim * self.kv_itemsize

    @property
    def page_nbytes(self) -> int:
        """Bytes of one page."""
        return self.page_tokens * self.kv_bytes_per_token


@dataclass(frozen=True, slots=True, config=_STRICT)
class EngineProfile:
    """One engine on ``gpus`` GPUs (tensor parallel)."""

    gpus: Count
    peak_flops: Positive  # of one GPU, dense, in the format that it computes in
    mfu: Part  # of which prefill reaches
    hbm_bytes: Bytes  # of one GPU
    hbm_share: Part  # of which weights and pages may take
    hbm_bytes_per_s: BytesPerSecond  # of one GPU
    hbm_efficiency: Part = 0.7  # of which decode reaches
    step_overhead_s: NonNegative = 2e-3  # launch, scheduling, sampling
    chunk_tokens: Count = 8192  # prefill tokens of one step
    max_running: Count = 256  # requests that decode at once


@dataclass(frozen=True, slots=True, config=_STRICT)
class EnginesProfile:
    """How many such engines there are. They share one cache, and below it one storage."""

    count: Count = 1


@dataclass(frozen=True, slots=True, config=_STRICT)
class LinkProfile:
    """One direction of a path."""

    bytes_per_s: BytesPerSecond
    latency_s: NonNegative = 0.0


@dataclass(frozen=True, slots=True, config=_STRICT)
class HostProfile:
    """What each engine brings of host memory, and its links to it."""

    capacity_bytes: Bytes
    to_device: LinkProfile
    from_device: LinkProfile


@dataclass(frozen=True, slots=True, config=_STRICT)
class StorageProfile:
    """What lies below the host: a disk, or a remote store."""

    capacity_bytes: Bytes
    read: LinkProfile
    write_bytes_per_s: BytesPerSecond
    op_bytes: Bytes = 64 << 20
    op_s: NonNegative = 0.0  # each operation holds the link for so long besides its bytes
    weather: Weather = Weather.STEADY


@dataclass(frozen=True, slots=True, config=_STRICT)
class TargetProfile:
    """When the first token of a request is due: ``base_s + cold_factor * its cold prefill``."""

    base_s: NonNegative
    cold_factor: NonNegative


@dataclass(frozen=True, slots=True, config=_STRICT)
class Profile:
    """Everything that is simulated."""

    model: ModelProfile
    engine: EngineProfile
    host: HostProfile
    storage: StorageProfile
    target: TargetProfile
    engines: EnginesProfile = EnginesProfile()

    def __post_init__(self) -> None:
        if self.device_pages < 1:
            raise ValueError(
                f"engine: {self.engine.gpus} GPUs have {self.hbm_nbytes} bytes for weights and"
                f" pages, model.weight_bytes is {self.model.weight_bytes}: no page fits; use more"
                " GPUs"
            )

    @property
    def hbm_nbytes(self) -> int:
        """Device memory for weights and pages."""
        engine = self.engine
        return int(engine.gpus * engine.hbm_bytes * engine.hbm_share)

    @property
    def device_pages(self) -> int:
        """Pages the device of one engine holds beside the weights."""
        return (self.hbm_nbytes - self.model.weight_bytes) // self.model.page_nbytes

    @property
    def host_pages(self) -> int:
        """Pages the host holds, in the parts of all engines together."""
        return self.engines.count * max(1, self.host.capacity_bytes // self.model.page_nbytes)

    @property
    def storage_pages(self) -> int:
        """Pages the storage holds."""
        return max(1, self.storage.capacity_bytes // self.model.page_nbytes)

    def with_engines(self, count: int) -> "Profile":
        """The same with ``count`` engines."""
        return replace(self, engines=EnginesProfile(count))

    def with_storage(
        self, *, read_bytes_per_s: float | None = None, weather: Weather | None = None
    ) -> "Profile":
        """The same over another link to the storage; writes scale with reads."""
        storage = self.storage
        if read_bytes_per_s is not None:
            scale = read_bytes_per_s / storage.read.bytes_per_s
            storage = replace(
                storage,
                read=replace(storage.read, bytes_per_s=read_bytes_per_s),
                write_bytes_per_s=storage.write_bytes_per_s * scale,
            )
        if weather is not None:
            storage = replace(storage, weather=weather)
        return replace(self, storage=storage)


def load_profile(name: str | Path) -> Profile:
    """Read a TOML file, or the shipped profile of that name.

    Raises:
        ConfigError: no such file or name, no TOML, or a field is unknown or out of range.
    """
    try:
        text = _text_of(name)
        values = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{name}: {error}; shipped profiles: {', '.join(shipped())}") from error
    return parse(Profile, values, source=str(name))


def _text_of(name: str | Path) -> str:
    if str(name).removesuffix(".toml") in shipped():
        plain = str(name).removesuffix(".toml")
        return files(__package__).joinpath("profiles", f"{plain}.toml").read_text()
    return Path(name).read_text()

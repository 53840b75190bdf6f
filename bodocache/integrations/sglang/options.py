# SPDX-License-Identifier: Apache-2.0
"""What ``--hicache-storage-backend-extra-config`` may say to us, and the node that follows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, StrictBool
from pydantic.dataclasses import dataclass

from bodocache.config import Bytes, Seconds, Share, Tenant, parse, sized
from bodocache.identity import Domain

# SGLang's own keys in the same JSON; some versions take them out before we see it.
_SGLANG_KEYS = {
    "allocator",
    "backend_name",
    "class_name",
    "hicache_storage_pass_prefix_keys",
    "interface_v1",
    "module_path",
    "prefetch_threshold",
    "prefetch_timeout_base",
    "prefetch_timeout_per_ki_token",
    "tp_lcm_size",
}
_SOURCE = "hicache-storage-backend-extra-config"
SIDECAR_PART = 4  # a sidecar pool has a quarter of what the KV pool has, if nothing is said

_STRICT = ConfigDict(extra="forbid", hide_input_in_errors=True)  # it may hold a secret
_KEY_HEX = r"^([0-9a-fA-F]{2}){16,64}$|^$"
_SizeOrNone = Annotated[int, BeforeValidator(sized), Field(ge=0)]
_Count = Annotated[int, Field(strict=True, ge=0)]


@dataclass(frozen=True, slots=True, config=_STRICT)
class Options:
    """Each is described in docs/sglang.md."""

    directory: Path
    capacity_bytes: Bytes  # on disk, of the KV pool's pages, all ranks of this host together
    host_bytes: Bytes = 4 << 30  # of the memory that the node and all ranks share
    sidecar_capacity_bytes: _SizeOrNone = 0  # 0: a quarter of capacity_bytes, for each pool
    sidecar_host_bytes: _SizeOrNone = 0  # 0: a quarter of host_bytes

    model: str = ""  # empty: SGLang's name of it
    revision: str = ""
    weights_version: str = ""
    quantiser: str = ""
    domain: Annotated[str, Field(min_length=1)] = "default"
    domain_secret_hex: Annotated[str, Field(pattern=_KEY_HEX)] = Field(default="", repr=False)
    kv_heads: _Count = 0  # of the model; 0: as many as the ranks hold together
    shard_heads: _Count = 0  # KV heads in a page of ours; 0: a rank's, or by SGLang's tp_lcm_size
    tenant: Tenant = 0

    read_deadline_s: Seconds = 1.0  # a get lasts no longer
    write_deadline_s: Seconds = 5.0  # nor a set
    patience_s: Seconds = 1.0  # nor a question whether pages are there
    read_ahead_s: Seconds = 10.0  # pages that were asked for are kept for a get so long
    read_ahead_share: Share = 0.5  # of the host memory, by one rank

    admit: StrictBool = True  # false: every page is written to disk
    durable: StrictBool = False
    queue_depth: Annotated[int, Field(strict=True, ge=1, le=256)] = 8
    write_bytes_per_day: _SizeOrNone = 0
    mac_key_hex: Annotated[str, Field(pattern=_KEY_HEX)] = Field(default="", repr=False)

    copy_kernels: StrictBool = False  # ours, between SGLang's host pool and its device pool
    start_s: Seconds = 600.0  # for a node's start: the first one compiles
    linger_s: Seconds = 10.0  # a node without ranks ends after so long
    silence_s: Seconds = 10.0  # a rank that says nothing for so long has lost what it held

    @classmethod
    def of(cls, extra_config: Mapping[str, Any] | None) -> "Options":
        """What SGLang hands on.

        Raises:
            ConfigError: a key is missing, unknown, or its value out of range; all are named.
        """
        ours = {name: it for name, it in (extra_config or {}).items() if name not in _SGLANG_KEYS}
        return parse(cls, ours, source=_SOURCE)

    @property
    def tenant_domain(self) -> Domain:
        """Whose pages may be shared."""
        return Domain(self.domain, bytes.fromhex(self.domain_secret_hex))


def node_values(
    options: Options, folder: Path, *, page_nbytes: int, page_tokens: int, is_sidecar: bool
) -> dict[str, Any]:
    """The configuration of a node (docs/configuration.md) for pages of ``page_nbytes``.

    It knows how long pages are, and not whose: that is in their keys.
    """
    capacity, host = options.capacity_bytes, options.host_bytes
    if is_sidecar:
        capacity = options.sidecar_capacity_bytes or capacity // SIDECAR_PART
        host = options.sidecar_host_bytes or host // SIDECAR_PART
    disk = {
        "directories": str(folder),
        "capacity_bytes": capacity,
        "durable": options.durable,
        "queue_depth": options.queue_depth,
        "write_bytes_per_day": options.write_bytes_per_day,
    }
    if options.mac_key_hex:
        disk["mac_key_hex"] = options.mac_key_hex
    return {
        "identity": {
            "model": "sglang",
            "dtype": "bytes",
            "weights_version": options.weights_version,
            "domain": options.domain,
            "domain_secret_hex": options.domain_secret_hex,
        },
        "tiers": {"host": {"capacity_bytes": max(host, page_nbytes)}, "disk": disk},
        # Nobody tells the node what a request's wait was worth: it does not judge what it gains.
        "features": {"admit": options.admit, "aside": False},
        "node": {
            "page_tokens": page_tokens,
            "layers": 1,
            "heads": 1,
            "head_dim": page_nbytes // page_tokens,
            "itemsize": 1,
            "kv": 1,
            "group": "pages",
            "silence_s": options.silence_s,
        },
    }

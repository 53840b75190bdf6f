# SPDX-License-Identifier: Apache-2.0
"""Every error BodoCache raises. A miss is not an error: it is a result with a reason.

BodoCacheError
├── ConfigError          a field of the configuration is missing, unknown or out of range
├── LayoutError          shapes, strides, dtypes, devices or alignments that do not fit together
├── HintError            a hint that is no hint: a field is unknown or out of range
├── TraceError           a line of a trace that cannot be read
├── WireError            a message of another process that says what cannot be
├── WatchError           no cache shows itself there, or no timeline, request or page is there
├── CompileError         a kernel that the installed compiler does not compile for a target
├── TierFull             no slot or frame is free, and none can be evicted
├── BackendError         storage that cannot be opened or has stopped working
│   ├── BackendLocked    another process writes to this directory
│   └── BackendUnavailable   an optional package or device is not there
├── NodeError            the node process, or this engine's part in it
│   ├── NodeLost             the node is gone, or does not answer
│   ├── NodeRefused          the node serves other pages, or speaks another version
│   └── NodeFenced           this engine was silent for too long: what it held is others' now
├── LoadFailed           a committed load did not come whole; it says which pages did
├── CacheClosed          the cache was closed; the call came too late
└── LeaseError           a slot released twice, or used without a lease
"""


class BodoCacheError(Exception):
    """Base of every error of this package."""


class ConfigError(BodoCacheError, ValueError):
    """A field of the configuration is missing, unknown or out of range."""


class LayoutError(BodoCacheError, ValueError):
    """Shapes, strides, dtypes, devices or alignments do not fit together."""


class HintError(BodoCacheError, ValueError):
    """A hint is no hint: a field of it is unknown or out of range."""


class TraceError(BodoCacheError, ValueError):
    """A line of a trace cannot be read."""


class WireError(BodoCacheError, ValueError):
    """A message of another process is malformed, or says what cannot be."""


class WatchError(BodoCacheError):
    """No cache shows itself where one was looked for, or not the request or page asked for."""


class CompileError(BodoCacheError):
    """The installed compiler does not compile a kernel, or not for this target."""


class TierFull(BodoCacheError):
    """No slot or frame is free in a tier, and none can be evicted."""


class BackendError(BodoCacheError):
    """Storage cannot be opened or has stopped working."""


class BackendLocked(BackendError):
    """Another process writes to this directory."""


class BackendUnavailable(BackendError):
    """An optional package or device is not there."""


class NodeError(BodoCacheError):
    """The node process, or this engine's part in it, is not what it should be."""


class NodeLost(NodeError):
    """The node is gone, or does not answer."""


class NodeRefused(NodeError):
    """The node serves other pages, or speaks another version of the protocol."""


class NodeFenced(NodeError):
    """This engine was silent for too long: its leases have ended, and what it publishes is late."""


class LoadFailed(BodoCacheError):
    """A committed load did not come whole: run the step again from page ``pages`` on."""

    def __init__(self, pages: int, committed: int, reason: str) -> None:
        super().__init__(
            f"load: of {committed} committed pages the first {pages} came, not all others"
            f" ({reason}); run the step again with the first {pages}"
        )
        self.pages = pages
        self.committed = committed


class CacheClosed(BodoCacheError):
    """The cache was closed; the call came too late."""


class LeaseError(BodoCacheError):
    """A slot was released twice, or used without a lease."""

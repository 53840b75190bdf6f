# SPDX-License-Identifier: Apache-2.0
"""The messages of planner.proto; the only module that imports protobuf."""

from typing import TypeVar

from bodocache.errors import BackendUnavailable, WireError

try:
    from google.protobuf.message import DecodeError

    from bodocache.cluster.planner_pb2 import Column, Plan, Table, Window
except ModuleNotFoundError as missing:
    raise BackendUnavailable(
        "cluster: protobuf is not installed; pip install bodocache[cluster]"
    ) from missing

__all__ = ["Column", "Plan", "Table", "Window", "parsed"]

_Message = TypeVar("_Message", Window, Plan)


def parsed(message: _Message, data: bytes) -> _Message:
    """``message``, filled from ``data``; WireError where these are no such message."""
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(f"{type(message).__name__}: {error}; expected planner.proto's") from error
    return message

from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Column(_message.Message):
    __slots__ = ("name", "version", "dtype", "width", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    dtype: str
    width: int
    data: bytes
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., dtype: _Optional[str] = ..., width: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Table(_message.Message):
    __slots__ = ("rows", "columns")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    def __init__(self, rows: _Optional[int] = ..., columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("demands", "requests", "pages", "tenants", "links")
    DEMANDS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    demands: Table
    requests: Table
    pages: Table
    tenants: Table
    links: Table
    def __init__(self, demands: _Optional[_Union[Table, _Mapping]] = ..., requests: _Optional[_Union[Table, _Mapping]] = ..., pages: _Optional[_Union[Table, _Mapping]] = ..., tenants: _Optional[_Union[Table, _Mapping]] = ..., links: _Optional[_Union[Table, _Mapping]] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("ops", "rows", "answers", "fates", "decisions")
    OPS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    FATES_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    ops: Table
    rows: Table
    answers: Table
    fates: Table
    decisions: Table
    def __init__(self, ops: _Optional[_Union[Table, _Mapping]] = ..., rows: _Optional[_Union[Table, _Mapping]] = ..., answers: _Optional[_Union[Table, _Mapping]] = ..., fates: _Optional[_Union[Table, _Mapping]] = ..., decisions: _Optional[_Union[Table, _Mapping]] = ...) -> None: ...

# SPDX-License-Identifier: Apache-2.0
"""Packages of names alone: sglang imports them for images, data and grammars, which no test has.

The real torchvision is a build for CUDA, which does not load beside a torch without.
"""

import importlib.abc
import importlib.machinery
import sys
import types

from pydantic_core import core_schema

NAMES = ("torchvision", "datasets", "einops", "xgrammar")


class _Named(types.ModuleType):
    """A module in which every name is a class that does nothing."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        anything = classmethod(lambda *_: core_schema.any_schema())
        fields = {"BICUBIC": 3, "BILINEAR": 2, "__get_pydantic_core_schema__": anything}
        return type(name, (), fields)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname, path=None, target=None):
        del path, target
        if fullname.partition(".")[0] not in NAMES:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):
        return _Named(spec.name)

    def exec_module(self, module):
        pass


def install() -> None:
    """Serve the stubs behind what is installed; transformers goes on as if there were none.

    An older SGLang registers models that a newer transformers has by now: it may.
    """
    from transformers import AutoConfig
    from transformers.utils import import_utils

    import_utils.is_torchvision_available()  # cached: none
    register = AutoConfig.register
    AutoConfig.register = lambda kind, config, exist_ok=False: register(  # noqa: ARG005
        kind, config, exist_ok=True
    )
    sys.meta_path.append(_Finder())

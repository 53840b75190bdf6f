# SPDX-License-Identifier: Apache-2.0
"""A torchvision of names alone: sglang imports it for image models, which no test here runs.

The real one is a build for CUDA, which does not load beside a torch without.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

NAME = "torchvision"


class _Named(types.ModuleType):
    """A module in which every name is a class that does nothing."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__getattr__": lambda _, it: it, "BICUBIC": 3, "BILINEAR": 2})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] != NAME:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):
        return _Named(spec.name)

    def exec_module(self, module):
        pass


def install() -> None:
    """Serve the stub where no torchvision is; transformers keeps to what it does without one."""
    if importlib.util.find_spec(NAME) is not None:
        return
    from transformers.utils import import_utils

    import_utils.is_torchvision_available()  # cached: none
    sys.meta_path.append(_Finder())

# SPDX-License-Identifier: Apache-2.0
"""BodoCache under SGLang's HiCache: a storage backend that is named by a launch flag.

SGLang imports this module by its path and takes the class from it (docs/sglang.md).
"""

from bodocache.integrations.sglang.storage import BodoCacheStorage

__all__ = ["BodoCacheStorage"]

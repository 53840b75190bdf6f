# SPDX-License-Identifier: Apache-2.0
"""Pages between a slab and device memory, by GPUDirect Storage (cuFile): see backend.py."""

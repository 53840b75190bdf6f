# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: A005 -- imported as bodocache.io only; the package's folder stands at the top level
"""List-IO: the contract every backend is held to, and the backends."""

# SPDX-License-Identifier: Apache-2.0
"""List-IO: the contract every backend is held to, and the backends."""

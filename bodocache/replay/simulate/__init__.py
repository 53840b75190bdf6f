# SPDX-License-Identifier: Apache-2.0
"""The cache on a virtual clock, with simulated links, storage and engines."""

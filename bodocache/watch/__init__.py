# SPDX-License-Identifier: Apache-2.0
"""What a running cache shows of itself: metrics, timelines, ``bodocache top`` and ``why``."""

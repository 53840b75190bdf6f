# SPDX-License-Identifier: Apache-2.0
"""The planner: pure compiled functions of records; no I/O, no clock, no processes."""

# SPDX-License-Identifier: Apache-2.0
"""The planner of several nodes: what it is told and what it answers, on a wire."""

# SPDX-License-Identifier: Apache-2.0
"""The orchestrator: turns the planner's ops into bytes that move."""

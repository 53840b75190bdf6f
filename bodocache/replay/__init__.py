# SPDX-License-Identifier: Apache-2.0
"""Traces: reading, generating, describing and fetching them, and the report of a replay."""

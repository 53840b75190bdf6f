# SPDX-License-Identifier: Apache-2.0
"""BodoCache: a hierarchical KV cache for LLM inference."""

# SPDX-License-Identifier: Apache-2.0
"""The plain-PyTorch twin of every kernel: what it must be equal to, bit for bit."""

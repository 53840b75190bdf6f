# SPDX-License-Identifier: Apache-2.0
"""BodoCache under other engines; each module imports its engine, and nothing else imports them."""

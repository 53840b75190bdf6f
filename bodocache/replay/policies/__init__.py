# SPDX-License-Identifier: Apache-2.0
"""Eviction policies over a trace of equal pages, one family a file; ``replay/policy.py`` runs them.

A family has one function a policy, ``(Touches, capacity_pages, Setting) -> Simulation``; a line in
``replay/policy.py`` names it. model.py holds these types, leaves.py who may leave.
"""

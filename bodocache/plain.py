# SPDX-License-Identifier: Apache-2.0
"""Enums whose members are plain attributes of the class, as Python 3.12 makes them by itself.

Before, each look at ``Tier.HOST`` is a call of ``EnumType.__getattr__``, 0.3 us: 5 % of what the
loop spent on a load of 64 pages.
"""

from enum import Enum
from typing import TypeVar

E = TypeVar("E", bound=Enum)


def plain(enum: type[E]) -> type[E]:
    """Decorate an enum that is looked at on the way of every load."""
    for name, member in enum.__members__.items():
        type.__setattr__(enum, name, member)  # the enum's own refuses to set a member
    return enum

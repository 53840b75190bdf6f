# SPDX-License-Identifier: Apache-2.0
"""What options of several subcommands share: names in a list, and which go together."""

from collections.abc import Iterable

import typer


def chosen_names(option: str, text: str, known: Iterable[str]) -> list[str]:
    """The names in ``text``, separated by commas; end with a usage error if one is not known."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise typer.BadParameter(
            f"{option}: {', '.join(map(repr, unknown))} not known; known are {', '.join(known)}"
        )
    return names


def refuse(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """End with a usage error if one of the options ``names`` was given."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"{parameter.opts[0]}: {why}")

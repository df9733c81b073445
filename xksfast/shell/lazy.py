# SPDX-License-Identifier: Apache-2.0
"""Commands whose modules are imported when they are run, not when `xksfast --help` is or a name is completed."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup


class LazyGroup(TyperGroup):
    """later: name -> ("module:attribute", help), where the attribute is a Typer or a function."""

    later: ClassVar[dict[str, tuple[str, str]]] = {}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._unloaded = dict(self.later)
        for name, (_, help) in self.later.items():
            # no more than what the list of commands shows
            self.commands[name] = TyperGroup(name=name, help=help, rich_markup_mode=self.rich_markup_mode)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The real one in the place of what stood for it."""
        if args and args[0] in self._unloaded:
            where, help = self._unloaded.pop(args[0])
            module, _, attribute = where.partition(":")
            found = getattr(importlib.import_module(module), attribute)
            if not isinstance(found, typer.Typer):
                function, found = (
                    found,
                    typer.Typer(pretty_exceptions_enable=False, context_settings=dict(self.context_settings)),
                )
                found.command()(function)
            command = typer.main.get_command(found)
            command.name = args[0]
            command.help = command.help or help
            self.commands[args[0]] = command
        return super().resolve_command(ctx, args)

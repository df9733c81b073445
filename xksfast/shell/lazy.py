# SPDX-License-Identifier: Apache-2.0
"""Command groups whose modules are imported when one of their commands is run, not when `xksfast --help` is."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup


class LazyGroup(TyperGroup):
    """nouns: name -> (module, help). The module has a Typer `app` with that name's commands."""

    nouns: ClassVar[dict[str, tuple[str, str]]] = {
        "store": ("xksfast.shell.stores", "External key stores: create, change, block, delete."),
        "key": ("xksfast.shell.keys", "HYOK keys: create, rotate, enable, block, delete."),
        "credential": ("xksfast.shell.credentials", "SigV4 credentials: rotate, list, remove."),
        "operator": ("xksfast.shell.operators", "Who may administrate: operators and their tokens."),
        "aws": ("xksfast.shell.aws", "Connections to AWS KMS for linked key stores."),
        "node": ("xksfast.shell.nodes", "The proxies that share the state."),
        "audit": ("xksfast.shell.audit", "What was changed, by whom; and whether the log is whole."),
    }
    single: ClassVar[dict[str, tuple[str, str]]] = {
        "apply": ("xksfast.shell.apply", "Make key stores, credentials and keys what a file says."),
    }

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, (_, help) in (self.nouns | self.single).items():
            # no more than what the list of commands shows
            self.commands[name] = TyperGroup(name=name, help=help, rich_markup_mode=self.rich_markup_mode)
        self._unloaded = self.nouns | self.single

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The real one in the place of what stood for it."""
        if args and args[0] in self._unloaded:
            module, help = self._unloaded.pop(args[0])
            command = typer.main.get_command(importlib.import_module(module).app)
            command.name = args[0]
            command.help = command.help or help
            self.commands[args[0]] = command
        return super().resolve_command(ctx, args)

# SPDX-License-Identifier: Apache-2.0
"""`xksfast node list`."""

from __future__ import annotations

from typing import Any

from xksfast.shell import session
from xksfast.shell.session import Shell, command, new_app

app = new_app("The proxies that share the state.")


@app.callback()
def _group() -> None:
    """The proxies that share the state."""  # a callback keeps the single command a subcommand


@command(app, "list")
def list_nodes(shell: Shell) -> None:
    """List the nodes, and how far each of them is."""
    found = shell.api.items("/v1/nodes")

    def rows() -> Any:
        return session.table(
            "node", "", "version", "behind", "last heard of", "url",
            right=("behind",),
            rows=[
                (
                    each["name"],
                    _standing(each),
                    each["version"],
                    f"{each['behind']} events",
                    session.moment(each["heartbeat_ms"] / 1000),
                    each["url"] or "-",
                )
                for each in found
            ],
            none="no nodes",
        )()  # fmt: skip

    shell.show(found, rows)
    for each in found:
        for problem in each["problems"]:
            shell.say(f"node {each['name']}: {problem}")


def _standing(node: dict[str, Any]) -> Any:
    from rich.text import Text

    if node["stopped"]:
        return Text("stopped")
    return Text("alive", style="green") if node["alive"] else Text("silent", style="red")

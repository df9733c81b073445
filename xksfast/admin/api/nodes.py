# SPDX-License-Identifier: Apache-2.0
"""/v1/nodes: the proxies that share the state."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Request, Response
from pydantic import Field

from xksfast.admin.api.paging import Cursor, Limit, page
from xksfast.admin.api.parts import ActorIn, NodeInfo, PartsIn
from xksfast.admin.api.problems import documented
from xksfast.admin.api.route import BEARER, AdminRoute
from xksfast.admin.api.views import Page, View

router = APIRouter(prefix="/v1/nodes", tags=["nodes"], route_class=AdminRoute, dependencies=[BEARER])


class NodeView(View):
    """A node. behind: how many events its workers do not serve yet. restricted_seq: what blocks up to there is in force.

    Neither alive nor stopped: nothing was heard of it for ten seconds. It may serve what it knew then, so a block asks it, too.
    """

    name: str
    version: str
    url: str
    alive: bool
    stopped: bool
    started_at_ms: int
    heartbeat_ms: int
    applied_seq: int
    restricted_seq: int
    behind: int
    problems: list[str] = Field(description="How it stands with the database, by its own account, a sentence each.")


@router.get("", response_model=Page[NodeView], summary="List the nodes", responses=documented())
async def list_nodes(request: Request, parts: PartsIn, actor: ActorIn, limit: Limit = 100, cursor: Cursor = "") -> Response:
    """By name, with how far each of them is."""
    actor.require("read")

    def view(node: NodeInfo) -> NodeView:
        fields = asdict(node)
        return NodeView(
            **{key: value for key, value in fields.items() if key != "seq"}, behind=max(0, node.seq - node.applied_seq)
        )

    return page(request, {node.name: node for node in await parts.nodes()}, view, limit, cursor)

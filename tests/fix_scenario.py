# SPDX-License-Identifier: Apache-2.0
"""Fixtures: three nodes that several stories share, since starting them takes its time. They end with the last story that uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.fake_kms import FakeKms, Host
from tests.fix_aws import HOST

if TYPE_CHECKING:  # other tests do without them
    from tests.scenario.nodes import Deployment


@pytest.fixture(scope="session")
def _three_nodes(
    tmp_path_factory: pytest.TempPathFactory, _aws_session: Any
) -> Iterator[tuple[ExitStack, Callable[[str], Any]]]:
    from tests.scenario.nodes import deployment

    with ExitStack() as stack:
        started: list[Deployment] = []

        def start(url: str) -> Deployment:
            if not started:
                context = deployment(tmp_path_factory.mktemp("day"), url, ("n1", "n2", "n3"), hosts=(HOST,))
                started.append(stack.enter_context(context))
            return started[0]

        yield stack, start


@pytest.fixture
def three_nodes(
    request: pytest.FixtureRequest, _three_nodes: tuple[ExitStack, Callable[[str], Any]], fake_kms: FakeKms
) -> Iterator[Deployment]:
    """On one PostgreSQL database and one SoftHSM token; the fake KMS reaches the second one. Each story leaves nothing in the state."""
    stack, start = _three_nodes
    proxies = start(request.getfixturevalue("postgres").database())
    fake_kms.account.hosts[HOST] = Host("127.0.0.1", proxies.nodes[1].tls_port)
    fake_kms.account.ca_file = proxies.ca_file
    yield proxies
    proxies.close_clients()
    later = request.session.items[request.session.items.index(request.node) + 1 :]
    if not any("three_nodes" in getattr(item, "fixturenames", ()) for item in later):
        stack.close()

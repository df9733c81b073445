# SPDX-License-Identifier: Apache-2.0
"""Fixtures: three nodes that the stories of an operator's day share, since starting them takes its time. Each story leaves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fake_kms import FakeKms, Host
from tests.fix_aws import HOST
from tests.postgres import PostgresServer
from tests.scenario.nodes import Deployment, deployment


@pytest.fixture(scope="package")
def _three_nodes(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer, _aws_session: Any) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("day"), postgres.database(), ("n1", "n2", "n3"), hosts=(HOST,)) as proxies:
        yield proxies


@pytest.fixture
def three_nodes(_three_nodes: Deployment, fake_kms: FakeKms) -> Iterator[Deployment]:
    """On one PostgreSQL database and one SoftHSM token; the fake KMS reaches the second one. Nothing is in their state."""
    fake_kms.account.hosts[HOST] = Host("127.0.0.1", _three_nodes.nodes[1].tls_port)
    fake_kms.account.ca_file = _three_nodes.ca_file
    yield _three_nodes
    _three_nodes.close_clients()

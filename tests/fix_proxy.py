# SPDX-License-Identifier: Apache-2.0
"""Fixtures: running proxies, one per key source and session, and clients for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client import Client
from tests.servers import Process, running_dev, started

KEY_SOURCES = ("local", "softhsm", "nss")


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """Whatever a failed test left running is ended; children end with their supervisor."""
    yield
    for process in started:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait(10)


class RunningProxy:
    """A running `xksfast dev`: what it said, its process, and what tests need of it at hand."""

    def __init__(self, ready: dict[str, Any], process: Process) -> None:
        self.ready = ready
        self.process = process
        self.prefix = ready["uri_path_prefix"]
        self.address = ("127.0.0.1", int(ready["url"].rpartition(":")[2]))
        self.tls_address = ("localhost", int(ready["tls_url"].rpartition(":")[2]))

    def client(self) -> Client:
        return Client(self.ready)


@pytest.fixture(scope="session")
def proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RunningProxy]]:
    """key source -> a proxy that runs for the whole session, started when first asked for."""
    running = _Proxies(tmp_path_factory.mktemp("proxies"))
    yield running
    running.close()


class _Proxies(dict[str, RunningProxy]):
    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._contexts: list[Any] = []

    def __missing__(self, key_source: str) -> RunningProxy:
        context = running_dev(self._directory / key_source, key_source)
        self[key_source] = RunningProxy(*context.__enter__())
        self._contexts.append(context)
        return self[key_source]

    def close(self) -> None:
        for context in self._contexts:
            context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def proxy(proxies: dict[str, RunningProxy]) -> RunningProxy:
    """A proxy with `local` keys: for what does not depend on where keys live."""
    return proxies["local"]


@pytest.fixture(params=KEY_SOURCES)
def client(request: pytest.FixtureRequest, proxies: dict[str, RunningProxy]) -> Iterator[Client]:
    """A client, once for each key source: the contract that all of them pass."""
    client = proxies[request.param].client()
    yield client
    client.close()


@pytest.fixture
def local_client(proxy: RunningProxy) -> Iterator[Client]:
    """A client of the proxy with `local` keys."""
    client = proxy.client()
    yield client
    client.close()

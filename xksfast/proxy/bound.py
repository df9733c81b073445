# SPDX-License-Identifier: Apache-2.0
"""All addresses that the supervisor listens on, bound before the first process is started."""

from __future__ import annotations

from dataclasses import dataclass

from xksfast.config import Config
from xksfast.proxy.listener import Listener, bind


@dataclass(frozen=True)
class Bound:
    """What listens where: for KMS, for health checks and for administration; None: nothing does."""

    proxy: list[Listener]
    health: Listener | None
    admin: Listener | None


def bind_all(config: Config) -> Bound:
    """Raise OperatorError when an address cannot be had: it says which, why, and what to do."""
    proxy = config.proxy
    wanted = [(text, proxy.tls is not None) for text in proxy.listen] + [(text, False) for text in proxy.plaintext_listen]
    listeners = [Listener(bind(text), tls) for text, tls in wanted]
    health = Listener(bind(proxy.health.listen), tls=False) if proxy.health.listen else None
    admin = None
    if config.admin is not None and not config.state.is_file:  # ours, so that it stays when a control process ends
        admin = Listener(bind(config.admin.listen), tls=bool(config.admin.certificate) or proxy.tls is not None)
    return Bound(listeners, health, admin)

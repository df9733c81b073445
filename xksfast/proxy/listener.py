# SPDX-License-Identifier: Apache-2.0
"""A listening TCP socket of the proxy, and what to tell an operator when there can be none."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from xksfast.config import Address, parse_address
from xksfast.errors import OperatorError

BACKLOG = 1024

# A peer that is gone without a word is noticed within two minutes, long before an idle time-out for peers that are there.
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)

_ADVICE = {
    errno.EADDRINUSE: "another program listens there: stop it (ss -ltnp shows which), or choose another port",
    errno.EACCES: "ports below 1024 need the right to bind them (CAP_NET_BIND_SERVICE): grant it, or choose a higher port",
    errno.EADDRNOTAVAIL: "no network interface of this machine has this address (ip address shows them): choose another",
}


@dataclass
class Listener:
    """A listening socket; tls: what its connections speak."""

    sock: socket.socket
    tls: bool

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) as bound."""
        name = self.sock.getsockname()
        return name[0], name[1]

    @property
    def url(self) -> str:
        """For logs."""
        return f"{'https' if self.tls else 'http'}://{Address(*self.address)}"


def bind(text: str) -> socket.socket:
    """A listening socket at "host:port"; OperatorError says why not and what to do."""
    host, port = parse_address(text)
    host = "127.0.0.1" if host == "localhost" else host
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for level, option, value in _KEEPALIVE:  # accepted sockets inherit it
        sock.setsockopt(level, option, value)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise OperatorError(f"cannot listen on {text}: {_ADVICE.get(error.errno or 0, error.strerror)}") from None
    sock.setblocking(False)
    return sock

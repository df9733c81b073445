# SPDX-License-Identifier: Apache-2.0
"""The limit of open files of a process, and how many connections fit under it.

A connection is one file of its worker. A newcomer's trap: children inherit the limits of the supervisor, and the usual soft limit of
1024 is a default for programs that use select(); the hard one says what the administrator allows.
"""

from __future__ import annotations

import resource

from xksfast.config import Config
from xksfast.errors import OperatorError

RESERVED = 128  # for all that is no connection: pipes, lines, libraries, connections on their way in and out
FILES_PER_PARTITION = 16  # of its library, beside one per session
FEWEST_CONNECTIONS = 16
ADVICE = "raise the hard limit of open files (ulimit -Hn, LimitNOFILE= of systemd, --ulimit nofile= of docker)"


def raise_limit() -> int:
    """Allow this process, and those that it starts, what the hard limit allows; the limit then."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def connections_that_fit(config: Config) -> int:
    """At most max_connections: as many as one worker can hold under the hard limit, since the others may have ended.

    Raises OperatorError when those are next to nothing.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = config.proxy.max_connections
    if hard == resource.RLIM_INFINITY:
        return wanted
    reserved = RESERVED + sum(FILES_PER_PARTITION + partition.sessions for partition in config.partitions.values())
    if hard - reserved < min(wanted, FEWEST_CONNECTIONS):
        raise OperatorError(f"a process may have {hard} files open, and {reserved} are needed beside connections: {ADVICE}")
    return min(wanted, hard - reserved)


def lowered(config: Config) -> list[str]:
    """A sentence when fewer than max_connections fit under the hard limit of this process. Raises OperatorError like the start."""
    wanted, fit = config.proxy.max_connections, connections_that_fit(config)
    if fit == wanted:
        return []
    return [f"proxy.max_connections = {wanted} is lowered to {fit} where this limit of open files holds: {ADVICE}"]

# SPDX-License-Identifier: Apache-2.0
"""What a case is: one rule, why it matters, what to do when it is broken, and a function that tries it.

A case names the requirements of the XKS Proxy API that it shows, a case it presupposes (`after`: without a signed request that is
served, a refusal proves nothing) and what it needs of the target (`needs`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xksfast.probe.asking import Asking


class Verdict(Enum):
    """What came out, in words."""

    OK = "ok"
    WRONG = "wrong"
    TOO_SLOW = "too slow"
    CANNOT_TELL = "cannot tell"
    NOT_TRIED = "not tried"


class CannotTell(Exception):
    """The case cannot be decided from here; the text says why."""


class Broken(Exception):
    """The rule is broken in a way that leaves nothing more to look at; the text says what was seen."""


@dataclass(frozen=True)
class Need:
    """Something a target may lack. option: what to give on the command line."""

    name: str
    option: str


KEY = Need("key", "--key")
ENCRYPT_ONLY = Need("encrypt_only", "--encrypt-only-key")
DECRYPT_ONLY = Need("decrypt_only", "--decrypt-only-key")
NO_USAGE = Need("no_usage", "--no-usage-key")
DISABLED = Need("disabled", "--disabled-key")
DENIED = Need("denied", "--denied-key")
TLS = Need("tls", "an https:// URL")
CLIENT_CERTIFICATE = Need("client_certificate", "--client-certificate and --client-key")
SECOND = Need("second", "--second-access-key-id")
FOREIGN = Need("foreign", "--foreign-access-key-id")
QUOTA = Need("quota", "--quota")


@dataclass(frozen=True)
class Case:
    """One rule. says: what is right. why: who is hurt when it is not. do: what to mend."""

    name: str
    requirements: tuple[int, ...]
    says: str
    why: str
    do: str
    check: Callable[[Asking], None]
    needs: tuple[Need, ...] = ()
    after: str = ""
    timed: bool = True

    @property
    def area(self) -> str:
        """The part before the dot."""
        return self.name.partition(".")[0]


CASES: dict[str, Case] = {}


def case(
    name: str,
    *requirements: int,
    says: str,
    why: str,
    do: str,
    needs: tuple[Need, ...] = (),
    after: str = "health.answers",
    timed: bool = True,
) -> Callable[[Callable[[Asking], None]], Callable[[Asking], None]]:
    """Register the function below as a case. timed: whether a call over 250 ms makes it too slow."""

    def register(check: Callable[[Asking], None]) -> Callable[[Asking], None]:
        assert name not in CASES, name
        CASES[name] = Case(name, requirements, says, why, do, check, needs, after, timed)
        return check

    return register

# SPDX-License-Identifier: Apache-2.0
"""What stood in the settings of AWS's sample proxy, as plain values: key stores, keys, the HSM, the listener, and what was left.

A newcomer's trap: the secrets are here, in Secret values; whoever is done with a plan calls forget_secrets().
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xksfast.config import Profile

Level = Literal["note", "to do", "not understood"]


class Secret:
    """A secret text that shows itself to nobody who does not ask for it, and can be forgotten."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text: str | None = text

    def reveal(self) -> str:
        """The text; ValueError once it is forgotten."""
        if self._text is None:
            raise ValueError("the secret was forgotten already")
        return self._text

    def forget(self) -> None:
        """Hold it no longer."""
        self._text = None

    def __repr__(self) -> str:
        return "Secret(…)"


@dataclass(frozen=True)
class Finding:
    """Something in the file that the plan does not carry as it stands. key: dotted path."""

    key: str
    level: Level
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.key}: {self.text}"


@dataclass(frozen=True)
class SampleKey:
    """An external key: with the sample its id is the CKA_LABEL of the source key. The sample can neither disable nor restrict one."""

    external_key_id: str

    @property
    def label(self) -> str:
        """CKA_LABEL on the token."""
        return self.external_key_id


@dataclass(frozen=True)
class SampleStore:
    """An external key store. name: made from the prefix, unique in the plan. The sample has one credential for each."""

    name: str
    uri_path_prefix: str
    region: str
    access_key_id: str
    secret_access_key: Secret
    keys: tuple[SampleKey, ...]


@dataclass(frozen=True)
class SamplePkcs11:
    """The HSM. module_path: the library behind the logger when there is one. profile: guessed from its name and capabilities."""

    module_path: str
    pin: Secret
    sessions: int
    profile: Profile


@dataclass(frozen=True)
class SampleServer:
    """Where the sample listened, and its certificates; "" for what it did not use."""

    listen: str
    certificate: str = ""
    private_key: str = ""
    client_ca: str = ""
    client_name: str = ""


@dataclass(frozen=True)
class SamplePlan:
    """All of one settings.toml. ciphertext_metadata: what the sample put beside every ciphertext, b"" when nothing."""

    source: str
    server: SampleServer
    stores: tuple[SampleStore, ...]
    pkcs11: SamplePkcs11
    ciphertext_metadata: bytes
    findings: tuple[Finding, ...]

    def forget_secrets(self) -> None:
        """Drop every secret, once they are where they belong."""
        self.pkcs11.pin.forget()
        for store in self.stores:
            store.secret_access_key.forget()

# SPDX-License-Identifier: Apache-2.0
"""The master key in a token, for state/master_key.py: data keys are wrapped and unwrapped in a partition tool's process.

A data key goes there and comes back in a slot of secret pages, whose descriptor the tool inherits; the pipe carries ciphertexts only.
A newcomer's trap: the partition that holds the master key must be opened before the state is, so its PIN cannot stand in the state: it
is a pin_file or a pin_env.
"""

from __future__ import annotations

from xksfast.admin.partitions.link import PartitionFailure, PartitionLink, partition_target
from xksfast.admin.partitions.tool_process import PartitionTarget
from xksfast.config import Config
from xksfast.native.crypto import Secret, SecretPages
from xksfast.native.partition import KeyTemplate


class TokenMasterKey:
    """The AES-256 key `label` of one partition. A process is started for each call: data keys are seldom wrapped."""

    def __init__(self, target: PartitionTarget, label: str) -> None:
        self._target = target
        self._label = label

    @classmethod
    def of(cls, config: Config, partition: str, label: str) -> TokenMasterKey:
        """As configured; for configured_master_key(state, partial(TokenMasterKey.of, config))."""
        return cls(partition_target(config, partition), label)

    def wrap(self, data_key: Secret, context: str) -> bytes:
        """The data key (32 bytes) under the token's key; PartitionFailure says what is wrong."""
        pages = SecretPages.new(1)
        pages.put(0, data_key)
        with PartitionLink(self._target, inherited=(pages.fd,)) as link:
            link.post_wrap_data_key(label=self._label, context=context, pages_fd=pages.fd)
            return link.take(bytes)

    def unwrap(self, wrapped: bytes, context: str) -> Secret:
        """The opposite."""
        pages = SecretPages.new(1)
        with PartitionLink(self._target, inherited=(pages.fd,)) as link:
            link.post_unwrap_data_key(label=self._label, context=context, wrapped=wrapped, pages_fd=pages.fd)
            link.take(type(None))
        return pages.take(0)

    def make(self) -> bool:
        """Make the key where there is none: encrypt and decrypt, not extractable. True when it was made now. Never replaces one."""
        with PartitionLink(self._target) as link:
            link.post_open()
            link.take(type(None))
            found = link.find(self._label)
            if len(found) > 1:
                raise PartitionFailure(link.name, f"{len(found)} secret keys have the label {self._label!r}: give each its own")
            if not found:
                link.generate(KeyTemplate(self._label, encrypt=True, decrypt=True))
            return not found

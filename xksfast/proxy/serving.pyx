# SPDX-License-Identifier: Apache-2.0
"""What the hot path looks requests up in: a snapshot turned into C pointers and dictionaries, built once per snapshot.

A table never changes but for `blocked`: when a newer table replaces it, everything of it that is blocked or gone is marked, so
that results still in flight are not sent.
"""

from libc.stdint cimport uintptr_t

from xksfast.wire.responses cimport json_response

import re

from xksfast.wire.responses import metadata_body


def _any_of(patterns):
    """One regular expression for patterns in which "*" stands for any run of characters; None when there are none."""
    if not patterns:
        return None
    return re.compile("|".join(".*".join(re.escape(part) for part in pattern.split("*")) for pattern in patterns), re.DOTALL)


cdef class ServedKey:
    """A key as the request path sees it."""

    def __init__(self, key, binding):
        """key: model.Key; binding: ekm.base.KeyBinding."""
        self.external_key_id = key.external_key_id
        self.label = key.label
        self.enabled = key.enabled
        self.blocked = key.blocked
        self.may_encrypt = "ENCRYPT" in key.usage
        self.may_decrypt = "DECRYPT" in key.usage
        self.problem = binding.problem
        self.absent = binding.absent
        self.local = <xks_aes_gcm_key *><uintptr_t>binding.local_address
        self.engine_key = binding.engine_key
        self.keep_alive = binding
        self.metadata_response = json_response(metadata_body(key.usage, key.enabled))


cdef class ServedStore:
    """A key store as the request path sees it."""

    def __init__(self, store, keyring, keys, fleet):
        """store: model.KeyStore; keyring: native.crypto.Keyring; keys: ServedKeys; fleet: ekm.base.Fleet."""
        self.name = store.name
        self.prefix = store.uri_path_prefix.encode("ascii")
        self.region = store.region
        self.blocked = store.blocked
        self.principals = _any_of(store.allowed_principals)
        self.keyring = <xks_sigv4_keyring *><uintptr_t>keyring.address
        self.keep_alive = keyring
        self.keys = {(<ServedKey>key).external_key_id.encode("ascii"): key for key in keys}
        self.fleet = fleet


cdef class ServingTable:
    """All stores of one snapshot."""

    def __init__(self, seq, stores):
        self.seq = seq
        self.stores = {(<ServedStore>store).prefix: store for store in stores}

    def retire(self, ServingTable successor not None):
        """Mark what `successor` blocks or no longer has, so that answers in flight for it are withheld."""
        cdef ServedStore store, next_store
        cdef ServedKey key, next_key
        for prefix, store in self.stores.items():
            next_store = successor.stores.get(prefix)
            if next_store is None or next_store.name != store.name or next_store.blocked:
                store.blocked = True
                continue
            for key_id, key in store.keys.items():
                next_key = next_store.keys.get(key_id)
                if next_key is None or next_key.blocked:
                    key.blocked = True

# SPDX-License-Identifier: Apache-2.0
"""What the hot path looks requests up in: the key stores, credentials and keys of a state, as C pointers and dictionaries.

A table is changed in place, on the event loop, between two requests. `put_...` makes an object what the state says; `restrict_...`
takes over of the state only what allows less; `remove_...` takes an object out. A newcomer's trap: an answer may be in flight for what
a call here forbids. So every call that forbids something makes `changes` grow, every request notes `changes` as it comes in, and where
they differ when the answer is there, it is looked at by name once more (Pipeline).

There may be 100,000 keys: what they have in common is shared, and ServedKey and what hangs from it take no part in garbage collection,
since nothing in them can point back at them.
"""

cimport cython
from libc.stdint cimport uintptr_t

from xksfast.proxy.principals cimport PrincipalPatterns
from xksfast.wire.responses cimport json_response

from functools import lru_cache

from xksfast.native.crypto import Keyring
from xksfast.wire.responses import metadata_body


@lru_cache(1024)
def _any_of(patterns):
    """The same object for equal patterns; None when there are none."""
    return PrincipalPatterns(patterns) if patterns else None


@lru_cache
def _metadata_response(usage, enabled):
    """(the response to GetKeyMetadata, usage): the same two objects for equal arguments."""
    return json_response(metadata_body(usage, enabled)), usage


@cython.no_gc
cdef class ServedVersion:
    """One version of a key."""

    @staticmethod
    def of(version, binding):
        """version: model.KeyVersion; binding: ekm.base.KeyBinding."""
        cdef ServedVersion made = ServedVersion.__new__(ServedVersion)
        made.number = version.number
        made.label = version.label
        made.absent = binding.absent
        made.problem = binding.problem
        made.local = <xks_aes_gcm_key *><uintptr_t>binding.local_address
        made.engine_key = binding.engine_key
        made.owner = binding.owner
        return made

    def tickets(self):
        """What the key source is given back when the version is served no more."""
        return [self.engine_key if self.owner is None else self.owner]


@cython.no_gc
cdef class ServedKey:
    """A key as the request path sees it."""

    cdef ServedVersion version(self, uint32_t number):
        """The version of this number; None: there is none."""
        if self.current.number == number:
            return self.current
        return None if self.older is None else self.older.get(number)

    def versions(self):
        """All versions, the one that encrypts last."""
        return [*(self.older or {}).values(), self.current]

    def tickets(self):
        """Those of all versions."""
        return [ticket for version in self.versions() for ticket in version.tickets()]

    cdef void _refresh(self):
        """What follows from usage and enabled."""
        self.metadata_response, self.usage = _metadata_response(self.usage, self.enabled)
        self.may_encrypt = "ENCRYPT" in self.usage
        self.may_decrypt = "DECRYPT" in self.usage

    def _set(self, key, list versions):
        self.enabled = key.enabled
        self.blocked = key.blocked
        self.usage = key.usage
        self.current = versions[len(versions) - 1]
        self.older = None if len(versions) == 1 else {(<ServedVersion>v).number: v for v in versions[: len(versions) - 1]}
        self._refresh()

    def _restrict(self, key):
        """(whether anything changed, the versions that are gone)"""
        cdef bint changed = False
        if key.blocked and not self.blocked:
            self.blocked = changed = True
        if self.enabled and not key.enabled:
            self.enabled = False
            changed = True
        if self.usage != key.usage and not set(self.usage) <= set(key.usage):
            self.usage = tuple([usage for usage in self.usage if usage in key.usage])
            changed = True
        labels = {version.number: version.label for version in key.versions}
        gone = [version for version in self.versions() if labels.get(version.number) != version.label]
        if gone:
            changed = True
            kept = [version for version in self.versions() if labels.get(version.number) == version.label]
            if kept:
                self.current = kept.pop()
                self.older = {(<ServedVersion>version).number: version for version in kept} or None
            else:  # nothing of it is served until the rest of the delta is applied
                self.blocked = True
                gone = []
        if changed:
            self._refresh()
        return changed, gone


@cython.no_gc
cdef class ServedCredential:
    """A credential whose use is noted."""

    def __init__(self, access_key_id):
        self.access_key_id = access_key_id


cdef class ServedStore:
    """A key store as the request path sees it."""

    def __init__(self, store, source):
        """store: model.KeyStore; source: ekm.base.KeySource."""
        self.name = store.name
        self.region = store.region
        self.ring = Keyring(store.region)
        self.keyring = <xks_sigv4_keyring *><uintptr_t>self.ring.address
        self.credentials = []
        self.keys = {}
        self.source = source
        self.fleet = source.fleet
        self._set(store)

    cdef void _set(self, store):
        self.prefix = store.uri_path_prefix.encode("ascii")
        self.blocked = store.blocked
        self.sample_aad = store.aad_scheme == "aws-sample"
        self.principals = _any_of(store.allowed_principals)
        self.narrowed = None

    cdef bint permits(self, str principal) except -1:
        """Whether this AWS principal may use the keys."""
        cdef PrincipalPatterns also
        if self.principals is not None and not self.principals.permit(principal):
            return False
        if self.narrowed is not None:
            for also in self.narrowed:
                if not also.permit(principal):
                    return False
        return True

    cdef Py_ssize_t index_of(self, str access_key_id) except -2:
        """The credential's index; -1: the store has no such credential."""
        cdef Py_ssize_t i
        for i in range(len(self.credentials)):
            if (<ServedCredential>self.credentials[i]).access_key_id == access_key_id:
                return i
        return -1

    def access_key_ids(self):
        """Those of all its credentials."""
        return [(<ServedCredential>credential).access_key_id for credential in self.credentials]

    def tickets(self):
        """Those of all its keys, one by one."""
        for key in self.keys.values():
            yield from key.tickets()


cdef class ServingTable:
    """All stores of a state."""

    def __init__(self, seq=0):
        self.seq = seq
        self.changes = 0
        self.stores = {}
        self.names = {}
        self.dropped = []

    # --- as the state says

    def put_store(self, store, source):
        """Serve the store as `store` (model.KeyStore) says. ValueError when its region or key source is another than before."""
        cdef ServedStore served = self.names.get(store.name)
        if served is None:
            served = self.names[store.name] = ServedStore(store, source)
        else:
            if served.region != store.region or served.source is not source:
                raise ValueError(f"key store {store.name}: region, key source and partition group never change")
            if self.stores.get(served.prefix) is served:
                del self.stores[served.prefix]
            served._set(store)
        self.stores[served.prefix] = served

    def put_credential(self, credential, pages):
        """Accept the credential (model.Credential) on the days of its signing keys, and on no other. False: its store is not there."""
        cdef ServedStore served = self.names.get(credential.store)
        cdef str access_key_id = credential.access_key_id
        if served is None:
            return False
        if served.index_of(access_key_id) >= 0:
            served.ring.replace(access_key_id, credential.signing_keys, pages)
        elif credential.signing_keys:
            served.ring.replace(access_key_id, credential.signing_keys, pages)
            served.credentials.append(ServedCredential(access_key_id))
        return True

    def put_key(self, key, bindings):
        """Serve the key (model.Key), each version by its binding. False: its store is not there."""
        cdef ServedStore store = self.names.get(key.store)
        cdef ServedKey served
        cdef bytes key_id
        if store is None:
            return False
        key_id = key.external_key_id.encode("ascii")
        served = store.keys.get(key_id)
        versions = [ServedVersion.of(version, binding) for version, binding in zip(key.versions, bindings)]
        if served is None:
            served = ServedKey.__new__(ServedKey)
            served.external_key_id = key_id
        else:
            self.dropped.extend([(store.source, version) for version in served.versions()])
        served._set(key, versions)
        store.keys[key_id] = served
        return True

    # --- less than before

    def restrict_store(self, store):
        """Of `store` what allows less than now: whether it is blocked, and which AWS principals may use its keys."""
        cdef ServedStore served = self.names.get(store.name)
        if served is None:
            return
        if store.blocked and not served.blocked:
            served.blocked = True
            self.changes += 1
        principals = _any_of(store.allowed_principals)
        if principals is not None and principals is not served.principals and principals not in (served.narrowed or ()):
            served.narrowed = (*(served.narrowed or ()), principals)
            self.changes += 1

    def restrict_key(self, key):
        """Of `key` what allows less than now: whether it is blocked or disabled, less usage, fewer versions."""
        cdef ServedStore store = self.names.get(key.store)
        cdef ServedKey served = None if store is None else store.keys.get(key.external_key_id.encode("ascii"))
        if served is None:
            return
        changed, gone = served._restrict(key)
        if changed:
            self.changes += 1
            self.dropped.extend([(store.source, version) for version in gone])

    def remove_store(self, name):
        """The store is served no more, with all that belongs to it."""
        cdef ServedStore served = self.names.pop(name, None)
        if served is None:
            return
        if self.stores.get(served.prefix) is served:
            del self.stores[served.prefix]
        served.blocked = True
        self.changes += 1
        self.dropped.append((served.source, served))

    def remove_credential(self, store, access_key_id):
        """The store accepts the credential no more."""
        cdef ServedStore served = self.names.get(store)
        if served is not None and served.index_of(access_key_id) >= 0:
            del served.credentials[served.ring.remove(access_key_id)]
            self.changes += 1

    def remove_key(self, store, external_key_id):
        """The key is served no more."""
        cdef ServedStore holder = self.names.get(store)
        cdef ServedKey served = None if holder is None else holder.keys.pop(external_key_id.encode("ascii"), None)
        if served is not None:
            served.blocked = True
            self.changes += 1
            self.dropped.append((holder.source, served))

    # --- what is left behind

    def take_dropped(self):
        """[(key source, something with tickets())] of what was replaced or removed since the last call. A job in flight may use it."""
        dropped, self.dropped = self.dropped, []
        return dropped

    def everything(self):
        """The same for all that the table has, when another one takes its place."""
        return [(served.source, served) for served in self.names.values()]

    def follow(self, ServingTable former not None):
        """Take the place of `former`: whatever was asked of it is looked at once more in this one."""
        self.changes += former.changes + 1

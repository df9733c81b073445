# SPDX-License-Identifier: Apache-2.0
"""How often each key version has encrypted and when each credential was last used, since it was last reported.

AES-GCM with random IVs may encrypt 2^32 times under one key, over all workers and nodes, so each worker reports what it adds. A
newcomer's trap: the counters stand in the versions and credentials themselves; here is only the list of those that are not 0, so that
a report costs as much as was used and not as much as there is.
"""


cdef class Usage:
    """What one worker has to report."""

    def __init__(self):
        self.versions = []
        self.credentials = []

    cdef void encrypted(self, ServedStore store, ServedKey key, ServedVersion version, uint64_t times):
        """The version encrypted, or may have encrypted, this many times."""
        if version.encryptions == 0:
            self.versions.append((store.name, key.external_key_id, version))
        version.encryptions += times

    cdef void signed(self, ServedStore store, ServedCredential credential, int64_t now):
        """A request was accepted that this credential signed. now: unix seconds, not 0."""
        if credential.used_at == 0:
            self.credentials.append((store.name, credential))
        credential.used_at = now

    def take(self, Py_ssize_t at_most):
        """What is not reported yet, at most so many of each kind; the rest is for the next call.

        Returns ([(key store, external key id, version, encryptions)], [(key store, access key id, unix seconds of its last use)]).
        """
        cdef ServedVersion version
        cdef ServedCredential credential
        keys = []
        while self.versions and len(keys) < at_most:
            store, external_key_id, version = self.versions.pop()
            keys.append((store, external_key_id.decode("ascii"), version.number, version.encryptions))
            version.encryptions = 0
        uses = []
        while self.credentials and len(uses) < at_most:
            store, credential = self.credentials.pop()
            uses.append((store, credential.access_key_id, credential.used_at))
            credential.used_at = 0
        return keys, uses

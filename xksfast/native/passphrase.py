# SPDX-License-Identifier: Apache-2.0
"""A key from a passphrase: argon2id of libargon2, through argon2-cffi's lowest door, which takes pointers.

Passphrase and key stay in our C buffers: argon2-cffi's other functions take and return Python bytes, which nobody can wipe.
libargon2 wipes its own memory (the 64 MiB) before it is freed. A newcomer's trap: two cffi modules meet here, and an address is all
that passes between them.
"""

from __future__ import annotations

from argon2 import low_level

from xksfast.errors import NativeError
from xksfast.native.crypto import Secret

KEY_BYTES = 32
ARGON2_OK = 0


def derive_key(passphrase: Secret, salt: bytes, *, memory_kib: int, iterations: int, parallelism: int) -> Secret:
    """argon2id, version 0x13, 32 bytes. salt: 8 bytes or more. NativeError when libargon2 refuses the numbers or has no memory."""
    foreign = low_level.ffi
    key, key_address = Secret.blank(KEY_BYTES)
    address, length = passphrase.view()
    salt_buffer = foreign.new("uint8_t[]", salt)
    context = foreign.new("argon2_context *")
    context.out, context.outlen = foreign.cast("uint8_t *", key_address), KEY_BYTES
    context.pwd, context.pwdlen = foreign.cast("uint8_t *", address), length
    context.salt, context.saltlen = salt_buffer, len(salt)
    context.t_cost, context.m_cost, context.lanes, context.threads = iterations, memory_kib, parallelism, parallelism
    context.version = low_level.ARGON2_VERSION
    code = low_level.core(context, low_level.Type.ID.value)
    if code != ARGON2_OK:
        raise NativeError(f"argon2id: {low_level.error_to_str(code)}")
    return key

# SPDX-License-Identifier: Apache-2.0
"""Wrapper for a TLS context; connections are made by the request path itself."""

from __future__ import annotations

import os

from xksfast.native.loader import check, error_buffer, ffi, lib

Path = str | os.PathLike[str]


class TlsContext:
    """Certificate, key and rules for the connections that are made from it. NativeError says which file is wrong and how."""

    def __init__(
        self, certificate: Path, private_key: Path, client_ca: Path | None = None, client_common_name: str | None = None
    ) -> None:
        kept = [
            ffi.new("char[]", os.fsencode(value)) if value else ffi.NULL
            for value in (certificate, private_key, client_ca, client_common_name)
        ]
        config = ffi.new("xks_tls_config *")
        config.certificate_file, config.private_key_file, config.client_ca_file, config.client_common_name = kept
        out, error = ffi.new("xks_tls_context **"), error_buffer()
        check(lib.xks_tls_context_new(config, out, error), error)
        self.pointer = ffi.gc(out[0], lib.xks_tls_context_free)
        self.address = int(ffi.cast("uintptr_t", self.pointer))

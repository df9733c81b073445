# SPDX-License-Identifier: Apache-2.0
"""A proxy in front of a real one that passes everything on, later if told to, and flips a bit in some ciphertexts."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class AlteringProxy(ThreadingHTTPServer):
    """every: 0 alters nothing, 1 every Encrypt answer, n each n-th."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, behind: str, every: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = behind.split("://")[1]
        self.every = every
        self.lock = threading.Lock()
        self.encrypts = self.connections = self.requests = 0
        self.delay_s = 0.0  # before every answer
        self.dies_after = 0  # 0: never; then every request's connection is closed without an answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def is_dead(self) -> bool:
        with self.lock:
            self.requests += 1
            return 0 < self.dies_after < self.requests

    def shall_alter(self) -> bool:
        with self.lock:
            self.encrypts += 1
            return self.every > 0 and self.encrypts % self.every == 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: AlteringProxy

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1
        self.upstream = http.client.HTTPConnection(self.server.behind, timeout=10)

    def finish(self) -> None:
        super().finish()
        self.upstream.close()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.is_dead():
            self.close_connection = True
            return
        self.upstream.request("POST", self.path, body, dict(self.headers.items()))
        response = self.upstream.getresponse()
        answer = response.read()
        if self.path.endswith("/encrypt") and response.status == 200 and self.server.shall_alter():
            document = json.loads(answer)
            ciphertext = bytearray(base64.b64decode(document["ciphertext"]))
            ciphertext[0] ^= 1
            document["ciphertext"] = base64.b64encode(ciphertext).decode()
            answer = json.dumps(document).encode()
        time.sleep(self.server.delay_s)
        self.send_response(response.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def altering_proxy(behind: str, every: int) -> Iterator[AlteringProxy]:
    """One that runs."""
    proxy = AlteringProxy(behind, every)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join(10)

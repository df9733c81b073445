# SPDX-License-Identifier: Apache-2.0
"""A node whose state is a file: read at the start and at SIGHUP, never written."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path

from xksfast import messages
from xksfast.admin.key_creation import create_local_keys, create_token_keys
from xksfast.admin.publisher import Publisher
from xksfast.config import Config
from xksfast.log import Log
from xksfast.state.delta import DeltaBuilder, covered_days
from xksfast.state.file_state import FileSecrets, state_of_file
from xksfast.state.local_keys import LocalKeyFiles
from xksfast.state.store_file import StoreFile, load_store_file

LOCAL_KEYS_DIRECTORY = "local-keys"


class FileNode:
    """Serves stores.toml."""

    def __init__(self, config: Config, log: Log) -> None:
        self._config = config
        self._log = log
        self._file = Path(config.state.store_file)
        self._local_keys = LocalKeyFiles(self._file.parent / LOCAL_KEYS_DIRECTORY, config.state.master_key_file)
        self._secrets = FileSecrets(self._local_keys)
        self._seq = int(time.time() * 1000)  # grows over restarts of this process as well
        builder = DeltaBuilder(self._secrets, lambda problem: log.error("key_not_served", problem=problem))
        self._publisher = Publisher(builder, log, on_use=lambda _: None)

    async def load(self, _: Config) -> messages.StateLoaded:
        """Read the file, create the keys that it wants created, serve it."""
        document = load_store_file(self._file, self._config)
        for label in create_local_keys(document, self._local_keys):
            self._log.info("key_created", key=f"local key {label}")
        await self._create_token_keys(document)
        state = state_of_file(document, self._seq + 1)
        self._secrets.check(state)
        self._seq += 1
        self._publisher.serve(lambda: nullcontext(state))
        return messages.StateLoaded(seq=state.seq, key_stores=len(state.key_stores), keys=len(state.keys))

    async def _create_token_keys(self, document: StoreFile) -> None:
        """What cannot be created is logged and not served; one token that is down must not keep the others from serving.

        Not tried again by itself: a token locks after a few wrong PINs.
        """
        async for answer in create_token_keys(self._config, document):
            for label in answer.created:
                self._log.info("key_created", key=f"token key {label}")
            if answer.problem:
                self._log.error("keys_not_created", problem=answer.problem, next="mend it, then send SIGHUP to try again")

    def link(self, worker: int, fd: int) -> None:
        """A worker was started."""
        self._publisher.link(worker, fd)

    async def tick(self) -> None:
        """New signing keys when the day changes."""
        if self._publisher.renew_signing_keys():
            self._log.info("signing_keys_renewed", seq=self._seq, days=covered_days(int(time.time())))

    def problems(self) -> tuple[str, ...]:
        """A file that was read is there for good."""
        return ()

    async def close(self, *, drained: bool) -> None:
        """Nothing is open."""

# SPDX-License-Identifier: Apache-2.0
"""A process that changes the state until it is killed, and prints each change once it is committed. Arguments: url, node."""

from __future__ import annotations

import os
import sys

from tests.state.making import DATA_KEY, a_key, a_secret, created
from xksfast.state.database import Database
from xksfast.state.events import Origin
from xksfast.state.store import Plan, StateStore


def main(url: str, node: str) -> None:
    database = Database.open(url)
    with database.write(node) as writer:
        writer.put_data_key(DATA_KEY)
    store = StateStore(database, node)
    store.open()
    number = 0
    while True:
        keys = [a_key("payments", f"{node}-{number}-{part}", description="x" * 200) for part in range(5)]
        plan = Plan(changes=[created(key) for key in keys], new_secrets=[a_secret(f"{node}-{number}")])
        store.transact(Origin(f"system:{node}"), lambda _state, plan=plan: plan)  # type: ignore[misc]
        os.write(1, f"{number}\n".encode())  # acknowledged: from here on it must never be lost
        number += 1


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

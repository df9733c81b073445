# SPDX-License-Identifier: Apache-2.0
"""A process that changes the state until it is killed, and prints each change once it is committed. Arguments: url, node."""

from __future__ import annotations

import os
import sys
import time

from tests.state.making import DATA_KEY, a_key, a_secret, created
from xksfast.state.database import Database
from xksfast.state.events import Origin
from xksfast.state.projection import State
from xksfast.state.records import Idempotency
from xksfast.state.store import Once, Plan, StateStore


def once(name: str) -> Once:
    """Its answer counts the keys that the change made."""

    def answer(state: State, _: object) -> Idempotency:
        made = sum(key.startswith(f"{name}-") for key in state.keys_of("payments"))
        return Idempotency(name, "system:test", "ab" * 32, 201, f"{name} with {made} keys".encode(), 1)

    return Once(name, answer)


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
        store.transact(Origin(f"system:{node}"), lambda _state, plan=plan: plan, once=once(f"{node}-{number}"))  # type: ignore[misc]
        os.write(1, f"{number}\n".encode())  # acknowledged: from here on it must never be lost
        number += 1
        time.sleep(0.005)  # SQLite's lock is not handed on in turn: who never lets go of it starves the others


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

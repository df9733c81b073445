# SPDX-License-Identifier: Apache-2.0
"""GetHealthStatus. Requirements 85 to 98."""

from __future__ import annotations

from typing import Any

from xksfast.probe.asking import Asking
from xksfast.probe.case import Broken, case
from xksfast.probe.cases.reach import REACHED

STATES = ("ACTIVE", "DEGRADED", "UNAVAILABLE")


@case(
    "health.answers", 14, 15, 17, 18, 118,
    says="A signed health request is answered with 200 and a JSON object.",
    why="Nothing else can be judged without it, and KMS creates and connects no key store.",
    do="With 401, check access key id, secret, region and clock; with 404, the path prefix; with 500 or 503, the key manager. "
    "When the connection ends without an answer, a client certificate may be wanted: --client-certificate.",
    after=REACHED,
)  # fmt: skip
def answers(asking: Asking) -> None:
    asking.expect_ok(asking.call("health"), "health")


@case(
    "health.members", 90, 91, 92, 94, 95, 96,
    says="Fleet size, vendors, models and 1 to 10 ekmFleetDetails with id, model and healthStatus are there.",
    why="KMS refuses to create or connect the key store when one is missing or of a wrong type.",
    do="Fill in all seven, fleet size above 0, ids unique, healthStatus ACTIVE, DEGRADED or UNAVAILABLE.",
)  # fmt: skip
def members(asking: Asking) -> None:
    document = asking.expect_ok(asking.call("health"), "health")
    size = document.get("xksProxyFleetSize")
    if type(size) is not int or size < 1:
        asking.wrong("xksProxyFleetSize is no whole number above 0")
    for name in ("xksProxyVendor", "xksProxyModel", "ekmVendor"):
        if not isinstance(document.get(name), str) or not document[name]:
            asking.wrong(f"{name} is no text")
    fleet = document.get("ekmFleetDetails")
    if not isinstance(fleet, list) or not 1 <= len(fleet) <= 10:
        raise Broken("ekmFleetDetails is no list of 1 to 10 entries")
    for i, entry in enumerate(fleet):
        _fleet_entry(asking, i, entry)
    ids = [entry.get("id") for entry in fleet if isinstance(entry, dict)]
    if len({str(one) for one in ids}) != len(ids):
        asking.wrong("two ekmFleetDetails have the same id")


def _fleet_entry(asking: Asking, i: int, entry: Any) -> None:
    if not isinstance(entry, dict):
        asking.wrong(f"ekmFleetDetails[{i}] is no object")
        return
    for name in ("id", "model"):
        if not isinstance(entry.get(name), str) or not entry[name]:
            asking.wrong(f"ekmFleetDetails[{i}].{name} is no text")
    if entry.get("healthStatus") not in STATES:
        asking.wrong(f"ekmFleetDetails[{i}].healthStatus is none of {', '.join(STATES)}")


@case(
    "health.key-managers", 85, 98,
    says="At least one key manager can serve.",
    why="When all are UNAVAILABLE, KMS neither creates nor connects the key store.",
    do="Look at the key manager: the proxy itself says that it cannot use it.",
)  # fmt: skip
def key_managers(asking: Asking) -> None:
    fleet = asking.expect_ok(asking.call("health"), "health").get("ekmFleetDetails")
    states = [entry.get("healthStatus") for entry in fleet if isinstance(entry, dict)] if isinstance(fleet, list) else []
    if states and all(state == "UNAVAILABLE" for state in states):
        asking.wrong("every key manager is UNAVAILABLE")
    elif any(state != "ACTIVE" for state in states):
        asking.notes.append(f"{sum(state == 'ACTIVE' for state in states)} of {len(states)} key managers are ACTIVE")


@case(
    "health.unknown-operation", 35, 88,
    says="A health request with a kmsOperation that is not known yet is served.",
    why="KMS adds operations; a proxy that refuses them shows up as unhealthy.",
    do="Treat kmsOperation as opaque text.",
)  # fmt: skip
def unknown_operation(asking: Asking) -> None:
    for operation in ("CreateCustomKeyStore", "ConnectCustomKeyStore", "UpdateCustomKeyStore", "SomethingNew"):
        document = asking.document("health")
        document["requestMetadata"]["kmsOperation"] = operation
        asking.expect_ok(asking.call("health", document), f"health with kmsOperation {operation}")

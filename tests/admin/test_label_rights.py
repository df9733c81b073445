# SPDX-License-Identifier: Apache-2.0
"""Labels that the program needs for itself, in every partition group that shares a partition with their own."""

from __future__ import annotations

import pytest

from xksfast.admin.actors import Actor
from xksfast.admin.label_rights import LabelRights
from xksfast.admin.refusals import Refused
from xksfast.config import Config, PartitionGroup
from xksfast.config import State as StateConfig
from xksfast.state.projection import State

RIGHTS = LabelRights(
    Config(
        state=StateConfig(master_key_partition="p0", master_key_label="master"),
        partition_groups={
            "main": PartitionGroup(partitions=("p0", "p1"), health_check_key="health", transport_key="transport"),
            "beside": PartitionGroup(partitions=("p1",), health_check_key="pulse", transport_key="carrier"),
            "apart": PartitionGroup(partitions=("p2",), transport_key="carrier-apart"),
        },
    )
)
ADMIN, OPERATOR = (Actor(f"operator:{role}", role) for role in ("admin", "operator"))  # type: ignore[arg-type]


def refused(actor: Actor, place: str, label: str) -> str:
    """The rule, or ""."""
    try:
        RIGHTS.check(State(), actor, "payments", place, label, create=True)
    except Refused as refusal:
        return refusal.rule
    return ""


@pytest.mark.parametrize("label", ["master", "transport", "carrier", "xksfast-pending:orders"])
@pytest.mark.parametrize("actor", [ADMIN, OPERATOR])
def test_what_protects_all_keys_is_no_key_for_anybody(actor: Actor, label: str) -> None:
    assert refused(actor, "main", label) == "label-reserved"


@pytest.mark.parametrize("label", ["health", "pulse"])
def test_a_health_check_key_is_an_admins_to_use(label: str) -> None:
    assert refused(OPERATOR, "main", label) == "label-reserved"
    assert refused(ADMIN, "main", label) == ""


@pytest.mark.parametrize(
    ("place", "label"),
    [("apart", "transport"), ("apart", "master"), ("local", "master"), ("beside", "master"), ("main", "masters")],
)
def test_what_is_reserved_elsewhere_is_a_label_like_any_other(place: str, label: str) -> None:
    assert refused(OPERATOR, place, label) == ""


def test_a_label_that_is_made_up_is_never_refused() -> None:
    assert refused(Actor("operator:ci", "operator", stores=("payments",)), "main", "") == ""

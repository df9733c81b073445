# SPDX-License-Identifier: Apache-2.0
"""A transport key on every partition of a group of soft tokens: made on the first, brought to the others under RSA-OAEP.

For each other partition: it makes an RSA pair that lives as long as its session, the first wraps the transport key under the public
half, the other unwraps. The key is never outside a token in the clear. That the public half is the other token's rests on this
process alone, which a soft token's files rest on anyway; how a transport key gets into hardware is its operator's ceremony, and so
refused here. A newcomer's trap: a transport key may only wrap and unwrap, so it is proven by sending a throw-away key with it.
"""

from __future__ import annotations

from xksfast.admin.partitions.link import PartitionFailure
from xksfast.admin.partitions.replica import PENDING, Replica, ReplicationProblem, compare
from xksfast.errors import OperatorError
from xksfast.native.partition import KeyTemplate, TokenKey

SOFT_PROFILES = ("softhsm", "nss")


class RefusedByRule(OperatorError):
    """The message names the rule. Exit code 3."""

    exit_code = 3


def make_transport_key(replicas: list[Replica], label: str) -> dict[str, str]:
    """Make it, or see that it is there and the same; by partition "made", "brought" or "present". Finishes or clears what was left."""
    hardware = [replica.name for replica in replicas if replica.profile not in SOFT_PROFILES]
    if hardware:
        raise RefusedByRule(
            f"--make-transport-key is for soft tokens ({', '.join(SOFT_PROFILES)}); the profile of {', '.join(hardware)} is another: "
            f"bring one AES-256 key {label!r} with CKA_WRAP and CKA_UNWRAP to each partition by the HSM's own means (cloning domain, "
            "key ceremony)"
        )
    finals = [(replica, replica.one(label)) for replica in replicas]
    holders = [(replica, key) for replica, key in finals if key is not None]
    if holders:
        return _complete(replicas, holders, label)
    for replica in replicas:
        _clear(replica, label)
    first, *others = replicas
    template = KeyTemplate(PENDING + label, wrap=True, unwrap=True, extractable=True)
    made = _found(first, label, first.link.generate(template))
    arrived = [(replica, _bring(first, made, replica, label)) for replica in others]
    first.link.lock_down(made.handle)
    for replica, key in [*arrived, (first, made)]:
        replica.link.rename(key.handle, label)
    return {first.name: "made", **{replica.name: "brought" for replica in others}}


def _complete(replicas: list[Replica], holders: list[tuple[Replica, TokenKey]], label: str) -> dict[str, str]:
    """Some have it. What an interrupted run has left on the others is proven and named; a key that is in use is not replaced."""
    reference, on_reference = holders[0]
    for replica, key in holders[1:]:
        if not _carries(reference, on_reference, replica, key):
            raise ReplicationProblem(f"the transport key {label!r} on {replica.name} is another key than on {reference.name}")
    steps = {replica.name: "present" for replica, _ in holders}
    for replica in replicas:
        left = replica.pending(label)
        if replica.name not in steps and len(left) == 1 and _carries(reference, on_reference, replica, left[0]):
            if left[0].extractable:
                replica.link.lock_down(left[0].handle)
            replica.link.rename(left[0].handle, label)
            steps[replica.name] = "brought"
            continue
        _clear(replica, label)
    missing = [replica.name for replica in replicas if replica.name not in steps]
    if missing:
        raise ReplicationProblem(
            f"the transport key {label!r} is on {', '.join(steps)}, not on {', '.join(missing)}, and it cannot leave a token any more: "
            "choose another label with transport_key of the group, and make that one"
        )
    return {replica.name: steps[replica.name] for replica in replicas}


def _bring(source: Replica, key: TokenKey, target: Replica, label: str) -> TokenKey:
    receiver, modulus = target.link.make_receiver()
    blob = source.link.wrap_for(modulus, key.handle)
    template = KeyTemplate(PENDING + label, wrap=True, unwrap=True)
    arrived = _found(target, label, target.link.unwrap_received(receiver, blob, template))
    target.link.destroy(receiver)
    if not _carries(source, key, target, arrived):
        target.link.destroy(arrived.handle)
        raise PartitionFailure(
            target.name, f"what arrived is not the transport key {label!r} of {source.name}, and was destroyed"
        )
    return arrived


def _carries(source: Replica, wrapping: TokenKey, target: Replica, unwrapping: TokenKey) -> bool:
    """Whether a throw-away key wrapped there comes out here as itself. Session objects only."""
    template = KeyTemplate("xksfast-probe", encrypt=True, decrypt=True, extractable=True, on_token=False)
    sent = source.link.generate(template)
    try:
        blob = source.link.wrap(wrapping.handle, sent, source.wrap_mechanism)
        try:
            got = target.link.unwrap(unwrapping.handle, blob, target.wrap_mechanism, template)
        except PartitionFailure:  # RFC 3394 checks integrity: another transport key does not unwrap
            return False
        same = compare(source, _probe(sent), target, _probe(got)) == "same"
        target.link.destroy(got)
        return same
    finally:
        source.link.destroy(sent)


def _probe(handle: int) -> TokenKey:
    return TokenKey(
        handle=handle,
        value_len=0,
        is_aes=True,
        can_encrypt=True,
        can_decrypt=True,
        can_wrap=False,
        can_unwrap=False,
        sensitive=True,
        extractable=True,
    )


def _found(replica: Replica, label: str, handle: int) -> TokenKey:
    found = [key for key in replica.pending(label) if key.handle == handle]
    if len(found) != 1:
        raise PartitionFailure(
            replica.name, f"the transport key {label!r} made just now is not found: does another run work on it?"
        )
    return found[0]


def _clear(replica: Replica, label: str) -> None:
    for key in replica.pending(label):
        replica.link.destroy(key.handle)

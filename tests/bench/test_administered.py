# SPDX-License-Identifier: Apache-2.0
"""The state that the benchmarks of administration write at once is one that a node serves and administers."""

from __future__ import annotations

from pathlib import Path

from bench.administered import Place, Size, running
from bench.administration import Watch
from bench.requests import encrypt_document, prove_encrypt


def test_a_state_written_at_once_is_served_and_administered(tmp_path: Path) -> None:
    place = Place.new(tmp_path)
    place.fill(Size(stores=3, keys_of_store=2))
    with running(place, last_store=2, last_key=1) as node, node.client() as client:
        answer = prove_encrypt(node.target(1), "k0", encrypt_document())
        assert answer["ciphertext"]
        assert [store["name"] for store in client.get("/v1/stores").json()["items"]] == ["s0", "s1", "s2"]
        assert client.get("/v1/events/verification").json()["ok"] is True
        watch = Watch(node, len(node.workers))
        client.post("/v1/stores/s0/keys/k1/disable").raise_for_status()
        watch.until(served=False)
        client.post("/v1/stores/s0/keys/k1/enable").raise_for_status()
        watch.until(served=True)
        watch.close()

# SPDX-License-Identifier: Apache-2.0
"""CPU per request of this checkout against another one: python -m bench.against TREE [--seconds 3] [--rounds 7] [--only WORD]

TREE is a second checkout of this project that `make build` has built, such as a worktree of the commit before a change. Both serve on
the same core, one after the other in turns that alternate, so that a busy moment of a shared machine hits both. What counts is the
median of the ratios of neighbouring runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

from bench.load import run_wrk
from bench.processes import Server, xksfast_dev
from bench.requests import Target, encrypt_document, prove_encrypt

CASES = {
    "local": ("local", False),
    "local, TLS": ("local", True),
    "NSS softoken": ("nss", False),
    "SoftHSM2": ("softhsm", False),
}


def main() -> int:
    """Run every case on both checkouts and print a table; 0 unless something was answered wrongly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    print("| case | CPU us/request, other | this | this / other |\n|---|---|---|---|")
    for name, (key_source, tls) in CASES.items():
        if options.only in name:
            other, this = _measure(options.tree.resolve(), key_source, tls, options.seconds, options.rounds)
            ratios = [after / before for before, after in zip(other, this, strict=True)]
            spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
            print(
                f"| {name} | {statistics.median(other):.2f} | {statistics.median(this):.2f} | "
                f"{statistics.median(ratios):.3f} ({spread}) |",
                flush=True,
            )
    return 0


def _measure(tree: Path, key_source: str, tls: bool, seconds: float, rounds: int) -> tuple[list[float], list[float]]:
    """CPU microseconds per request of the other checkout and of this one, a run each in every round."""
    document = encrypt_document()
    body = json.dumps(document, separators=(",", ":")).encode()
    found: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        servers = [stack.enter_context(xksfast_dev(key_source, tree=each)) for each in (tree, None)]
        for server in servers:
            prove_encrypt(_target(server, tls), _key(server), document)
        for number in range(rounds):
            for which in (0, 1) if number % 2 else (1, 0):
                server, target = servers[which], _target(servers[which], tls)
                path = target.path(_key(server), "encrypt")
                sample = run_wrk(server.pid, target.url, path, target.sign(path, body), body, seconds=seconds)
                found[which].append(sample.cpu_us)
    return found


def _target(server: Server, tls: bool) -> Target:
    return Target.from_dev(server.ready, tls=tls)


def _key(server: Server) -> str:
    return server.ready["keys"]["default"]  # type: ignore[index]


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Resident memory of a worker over a million requests: python -m bench.memory [--requests 1000000]

`local` keys, plain HTTP, 32 connections. The figure after a tenth of the requests and the one at the end must not differ by more than
noise: nothing is kept per request.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench.load import run_wrk
from bench.processes import resident_mib, xksfast_dev
from bench.requests import Target, encrypt_document, prove_encrypt

RESULTS = Path(__file__).parent / "results"
SLICE_S = 4


def main() -> int:
    """Load in slices until the number is reached; print the memory after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    options = parser.parse_args()
    served, rows = 0, []
    with xksfast_dev("local") as server:
        target, key, document = Target.from_dev(server.ready), server.ready["keys"]["default"], encrypt_document()  # type: ignore[index]
        prove_encrypt(target, key, document)
        body = json.dumps(document, separators=(",", ":")).encode()
        path = target.path(key, "encrypt")
        rows.append({"requests": 0, "rss_mib": resident_mib(server.pid)})
        while served < options.requests:
            served += run_wrk(server.pid, target.url, path, target.sign(path, body), body, seconds=SLICE_S).requests
            rows.append({"requests": served, "rss_mib": round(resident_mib(server.pid), 1)})
    print("| requests | RSS MiB (at most 60, not growing) |\n|---|---|")
    for row in rows:
        print(f"| {row['requests']:,} | {row['rss_mib']:.1f} |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.json").write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""CPU time of the pieces of a request, without Python around them, and of counting it: python -m bench.micro [--rounds 7]

Compiles bench/micro.c with the product's C at the product's optimisation, has it prove each result, and prints medians over rounds;
bench/results/micro.json keeps all.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import hmac
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.requests import Target, encrypt_document
from xksfast.proxy.metrics import Metrics

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
GOALS_NS = {"sigv4_verify": 1500}
COUNTED = 2_000_000


def compile_program(directory: Path) -> Path:
    """bench/micro.c and every C file of the product, as the product is compiled."""
    program = directory / "micro"
    sources = [str(path) for path in sorted((ROOT / "csrc").glob("*.c"))]
    subprocess.run(
        [
            "gcc", "-std=c11", "-O3", "-fvisibility=hidden", "-D_GNU_SOURCE", '-DXKS_VERSION="bench"', f"-I{ROOT / 'csrc'}",
            f"-I{ROOT / 'csrc/third_party/pkcs11-3.1'}", str(ROOT / "bench/micro.c"), *sources, "-lssl", "-lcrypto", "-lpthread",
            "-ldl", "-o", str(program),
        ],
        check=True,
    )  # fmt: skip
    return program


def request_lines() -> str:
    """A typical Encrypt, signed by botocore, as micro.c reads it."""
    target = Target("http://proxy.example", "/payments", "us-east-1", "A" * 20, "secret")
    body = json.dumps(encrypt_document(), separators=(",", ":")).encode()
    path = target.path("orders", "encrypt")
    headers = target.sign(path, body) | {"User-Agent": "bench", "Accept": "*/*", "Content-Length": str(len(body))}
    headers |= {"Connection": "keep-alive", "Accept-Encoding": "identity"}
    day = headers["X-Amz-Date"][:8]
    key = b"AWS4secret"
    for part in (day, "us-east-1", "kms-xks-proxy", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    now = datetime.datetime.strptime(headers["X-Amz-Date"] + "+0000", "%Y%m%dT%H%M%SZ%z")
    lines = [str(int(now.timestamp())), "A" * 20, day, "us-east-1", key.hex(), "POST", path, str(len(headers))]
    for name, value in headers.items():
        lines += [name, value]
    return "\n".join([*lines, body.decode()]) + "\n"


def count_request_ns() -> float:
    """One increment of the request counters and of the latency histogram, the clock read included."""
    metrics = Metrics()
    began, cpu = time.monotonic_ns(), time.thread_time_ns()
    metrics.count_many(COUNTED, began)
    took = (time.thread_time_ns() - cpu) / COUNTED
    counted = {(operation, result): count for operation, result, count in metrics.requests()}
    ((_, buckets, _),) = metrics.durations()
    assert counted["Encrypt", "ok"] == sum(buckets) == COUNTED
    return took


def main() -> int:
    """Measure and print; 1 when a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        program, lines = compile_program(Path(directory)), request_lines()
        for _ in range(options.rounds):
            done = subprocess.run([str(program)], input=lines, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                print(done.stderr, file=sys.stderr)
                return 1
            for line in done.stdout.splitlines():
                name, value = line.split()
                samples.setdefault(name, []).append(float(value))
            samples.setdefault("count_request", []).append(count_request_ns())
    print("| piece | CPU ns/call (median) | at most |\n|---|---|---|")
    for name, values in samples.items():
        print(f"| {name} | {statistics.median(values):.0f} | {GOALS_NS.get(name, '')} |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "micro.json").write_text(json.dumps(samples, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

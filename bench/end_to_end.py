# SPDX-License-Identifier: Apache-2.0
"""CPU per request of the whole path, beside nginx: python -m bench.end_to_end [--seconds 4] [--rounds 3] [--only WORD]

Server on one core, wrk on the other, 32 keep-alive connections, pre-signed Encrypt of 48 bytes with 64 bytes of AAD. nginx answers the
same request with a fixed body of the same size. The cases alternate, so that a busy moment of a shared machine hits all of them; the
medians go to bench/results/end_to_end.json and, as a table, to standard output.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.load import Sample, run_wrk
from bench.processes import Server, fill_softhsm, nginx, resident_mib, xksfast_dev
from bench.requests import Target, encrypt_document, prove_encrypt

RESULTS = Path(__file__).parent / "results"
EXTRA_KEYS = 196  # beside the four of `xksfast dev`: 200 on the token


@dataclass
class Case:
    """What is loaded: a server and the URL that reaches it; `proof` names the key source whose answer is checked first."""

    name: str
    server: Server
    target: Target
    key: str
    goal: str
    samples: list[Sample] = field(default_factory=list)

    @property
    def cpu_us(self) -> float:
        return statistics.median(sample.cpu_us for sample in self.samples)


def main() -> int:
    """Run every case; 0 unless something was answered wrongly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    with ExitStack() as stack:
        cases = [case for case in _start(stack) if options.only in case.name]
        document = encrypt_document()
        body = json.dumps(document, separators=(",", ":")).encode()
        for case in cases:
            if case.server.ready:
                prove_encrypt(case.target, case.key, document)
        for round_number in range(options.rounds):
            for case in cases:
                path = case.target.path(case.key, "encrypt")
                headers = case.target.sign(path, body)
                sample = run_wrk(case.server.pid, case.target.url, path, headers, body, seconds=options.seconds)
                case.samples.append(sample)
                print(f"round {round_number + 1}/{options.rounds}  {case.name:28} {sample.cpu_us:6.2f} us", file=sys.stderr)
        memory = {case.name: resident_mib(case.server.pid) for case in cases}
    _report(cases, memory, options.seconds)
    return 0


def _start(stack: ExitStack) -> list[Case]:
    """Every server, idle: an idle process costs the others nothing."""
    full = Path(stack.enter_context(TemporaryDirectory(prefix="xksfast-bench-")))
    with xksfast_dev("softhsm", data=full):
        pass
    fill_softhsm(full, EXTRA_KEYS)
    servers = {
        "local": stack.enter_context(xksfast_dev("local")),
        "NSS softoken": stack.enter_context(xksfast_dev("nss")),
        "SoftHSM2, 1 key": stack.enter_context(xksfast_dev("softhsm")),
        "SoftHSM2, 200 keys": stack.enter_context(xksfast_dev("softhsm", data=full)),
    }
    local = servers["local"]
    key = local.ready["keys"]["default"]  # type: ignore[index]
    answer = prove_encrypt(Target.from_dev(local.ready), key, encrypt_document())
    certificates = Path(local.ready["ca_file"]).parent
    yardstick = stack.enter_context(
        nginx(
            18180,
            json.dumps(answer, separators=(",", ":")).encode(),
            (18543, certificates / "server.pem", certificates / "server.key"),
        )
    )
    plain, secure = Target.from_dev(local.ready), Target.from_dev(local.ready, tls=True)
    nginx_plain = Target("http://127.0.0.1:18180", plain.prefix, plain.region, plain.access_key_id, plain.secret_access_key)
    nginx_tls = Target("https://127.0.0.1:18543", plain.prefix, plain.region, plain.access_key_id, plain.secret_access_key)
    return [
        Case("nginx return 200", yardstick, nginx_plain, key, ""),
        Case("local", local, plain, key, "<= 14 us, <= 2.0 x nginx"),
        Case("nginx return 200, TLS 1.3", yardstick, nginx_tls, key, ""),
        Case("local, TLS 1.3", local, secure, key, "<= 17 us, <= 1.25 x local, <= 1.9 x nginx TLS"),
        Case("NSS softoken", servers["NSS softoken"], Target.from_dev(servers["NSS softoken"].ready), key, "<= 18 us"),
        Case("SoftHSM2, 1 key", servers["SoftHSM2, 1 key"], Target.from_dev(servers["SoftHSM2, 1 key"].ready), key, "<= 23 us"),
        Case(
            "SoftHSM2, 200 keys",
            servers["SoftHSM2, 200 keys"],
            Target.from_dev(servers["SoftHSM2, 200 keys"].ready),
            key,
            "<= 23 us, within 10 % of 1 key",
        ),
    ]


def _report(cases: list[Case], memory: dict[str, float], seconds: float) -> None:
    """The table on standard output, everything in bench/results/end_to_end.json."""
    by_name = {case.name: case for case in cases}
    print("| case | CPU us/request | x nginx | requests/s (one core) | p50 ms | p99 ms | RSS MiB | at least |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for case in cases:
        nginx_name = "nginx return 200, TLS 1.3" if "TLS" in case.name else "nginx return 200"
        yardstick = by_name.get(nginx_name)
        ratio = case.cpu_us / yardstick.cpu_us if yardstick else None
        middle = sorted(case.samples, key=lambda sample: sample.cpu_us)[len(case.samples) // 2]
        shown = f"{ratio:.2f}" if ratio else "-"
        print(
            f"| {case.name} | {case.cpu_us:.1f} | {shown} | {middle.rps:,.0f} | {middle.p50_ms:.2f} | {middle.p99_ms:.2f} | "
            f"{memory[case.name]:.0f} | {case.goal} |"
        )
        rows.append(
            {
                "case": case.name,
                "cpu_us": case.cpu_us,
                "ratio_to_nginx": ratio,
                "rss_mib": memory[case.name],
                "samples": [vars(sample) for sample in case.samples],
            }
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "end_to_end.json").write_text(json.dumps({"seconds": seconds, "cases": rows}, indent=1))


if __name__ == "__main__":
    sys.exit(main())

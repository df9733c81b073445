# SPDX-License-Identifier: Apache-2.0
"""No wrong answer while an HSM flips bits: python -m bench.integrity [--requests 100000] [--rate 800] [--flips-ppm 20000]

Two partitions of the fault shim flip a bit in so many of a million outputs of C_Encrypt and C_Decrypt. Every Encrypt asks for the
integrity value, so that the proxy checks each ciphertext by decrypting it. Then the bits stop flipping, and every answer that was a 200
is decrypted and compared with what was sent. Exit code 1 when one was wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.fleet import Fleet, Plan, serving
from bench.open_loop import Call, Generator, Load, make_calls
from bench.requests import prove_answer
from bench.tokens import compile_with_product, make_token

RESULTS = Path(__file__).parent / "results"
BATCH = 1000  # the generator keeps 1,024 answers


def main() -> int:
    """Encrypt, decrypt, compare, in batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=800)
    parser.add_argument("--flips-ppm", type=int, default=20_000)
    options = parser.parse_args()
    statuses: Counter[str] = Counter()
    caught = compared = wrong = 0
    with TemporaryDirectory(prefix="xksfast-bench-") as name:
        directory = Path(name)
        generator = Generator(directory)
        token = make_token("nss", directory / "token", 1, compile_with_product("token.c"))
        with serving(Plan(partitions=2), token, directory / "serve") as fleet:
            assert fleet.control is not None
            (call,) = make_calls(fleet.target(), fleet.key_ids(), {"cdiv": 1})
            while sum(statuses.values()) < options.requests:
                count = min(BATCH, options.requests - sum(statuses.values()))
                for slot in fleet.control.slots():
                    slot.flip_bits(encrypt_ppm=options.flips_ppm, decrypt_ppm=options.flips_ppm)
                load = Load(options.rate, count / options.rate, "constant", samples=2 * count)
                run, answers = generator.send([call], load)
                statuses += run.statuses()
                for slot in fleet.control.slots():
                    slot.flip_bits()
                more, bad = _compare(call, [json.loads(body) for _, body in answers])
                compared, wrong = compared + more, wrong + bad
                done = sum(statuses.values())
                if done % (10 * BATCH) == 0 or done >= options.requests:
                    print(
                        f"{done:,} of {options.requests:,}: {compared:,} compared, {wrong} wrong", file=sys.stderr, flush=True
                    )
            caught = _caught(fleet)
    print("| Encrypts | flips that were caught | answered 200 | compared | wrong |\n|---|---|---|---|---|")
    print(f"| {sum(statuses.values()):,} | {caught:,} | {statuses['ok']:,} | {compared:,} | {wrong} |")
    RESULTS.mkdir(exist_ok=True)
    document = {"statuses": statuses, "caught": caught, "compared": compared, "wrong": wrong}
    (RESULTS / "integrity.json").write_text(json.dumps(document))
    return 1 if wrong or compared < statuses["ok"] or not caught else 0


def _compare(call: Call, answers: list[dict[str, str]]) -> tuple[int, int]:
    """(answers that were decrypted and compared, those of them that were wrong)."""

    def is_right(answer: dict[str, str]) -> bool:
        assert call.document is not None
        try:
            prove_answer(call.target, call.key, call.document, answer, patience_s=5)
        except AssertionError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        right = sum(pool.map(is_right, answers))
    return len(answers), len(answers) - right


def _caught(fleet: Fleet) -> int:
    """Calls whose result the partition itself, or another one, was found to contradict; a flipped bit is the only fault here."""
    text = urllib.request.urlopen(fleet.health_url + "/metrics", timeout=5).read().decode()
    names = ("xksfast_partition_faults_total", "xksfast_engine_failed_checks_total")
    return sum(int(float(line.split()[-1])) for line in text.splitlines() if line.startswith(names))


if __name__ == "__main__":
    sys.exit(main())

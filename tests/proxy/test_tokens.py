# SPDX-License-Identifier: Apache-2.0
"""PKCS#11 tokens behind `xksfast serve`: keys that come and go, faults of the token, deadlines. Real SoftHSM; faults by the shim."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client import Client, b64
from tests.servers import Process, wait_until
from tests.setups import SOFTHSM, Faults, Setup
from xksfast.errors import NativeError
from xksfast.native.schedule import SHORTEST_US, set_slice

requirement = pytest.mark.requirement

CKR_DEVICE_REMOVED, CKR_SESSION_HANDLE_INVALID, CKR_KEY_HANDLE_INVALID, CKR_USER_NOT_LOGGED_IN = 0x32, 0xB3, 0x60, 0x101
CKR_PIN_INCORRECT, CKR_GENERAL_ERROR = 0xA0, 0x5


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    setup = Setup(tmp_path)
    setup.use_softhsm()
    return setup


@pytest.fixture
def faults(setup: Setup) -> Faults:
    faults = Faults(setup.directory)
    setup.use_softhsm(module=str(faults.module), environment=faults.environment, sessions=1)
    setup.stores["key_stores"]["one"]["keys"]["k1"]["create"] = False
    pkcs11_tool(setup, "--keygen", "--key-type", "AES:32", "--label", "k1", "--sensitive")
    return faults


@pytest.fixture
def running(setup: Setup, faults: Faults) -> Iterator[tuple[Process, Client]]:
    with setup.running() as process:
        client = setup.client()
        yield process, client
        faults.set()
        client.close()


def pkcs11_tool(setup: Setup, *arguments: str) -> None:
    subprocess.run(
        ["pkcs11-tool", "--module", SOFTHSM, "--token-label", "t0", "--login", "--pin", "1234", *arguments],
        env={**os.environ, **setup.softhsm_environment},
        check=True,
        capture_output=True,
    )


def test_the_loop_and_the_engine_s_threads_have_short_slices(running) -> None:  # type: ignore[no-untyped-def]
    process, _ = running
    try:
        kernels_own = set_slice(0)
    except NativeError as error:
        pytest.skip(f"a sandbox forbids it: {error}")
    if not kernels_own or "se.slice" not in Path("/proc/self/sched").read_text():
        pytest.skip("this kernel knows of no slices, or does not show them")
    (worker,) = process.children("_worker")
    slices = {int(task.name): (task / "sched").read_text() for task in Path(f"/proc/{worker}/task").iterdir()}
    short = [
        thread for thread, text in slices.items() if re.search(rf"^se\.slice +: +{1000 * SHORTEST_US}$", text, re.MULTILINE)
    ]
    assert worker in short, "the loop"
    assert len(short) >= 2, "and the one session's thread"


@requirement(12, 114)
def test_a_token_that_is_too_slow_is_a_dependency_timeout_within_the_deadline(running, faults: Faults) -> None:  # type: ignore[no-untyped-def]
    _, client = running
    faults.set(delay_ms=600)
    began = time.monotonic()
    answer = client.call("encrypt")
    took = time.monotonic() - began
    assert (answer.status, answer.error) == (503, "DependencyTimeoutException")
    assert 0.15 < took < 0.25
    faults.set()
    wait_until(lambda: client.call("encrypt").status == 200, "the token serves again")


@requirement(112)
def test_more_jobs_than_may_wait_are_throttled_at_once(setup: Setup, faults: Faults) -> None:
    setup.config["proxy"]["max_queued"] = 1
    with setup.running():
        clients = [setup.client() for _ in range(6)]
        faults.set(delay_ms=600)
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda client: client.call("encrypt"), clients))
        faults.set()
        errors = sorted(answer.error for answer in answers)
        assert set(errors) <= {"DependencyTimeoutException", "ThrottlingException"}
        assert {answer.status for answer in answers if answer.error == "ThrottlingException"} == {429}
        for client in clients:
            client.close()


@requirement(115, 117)
@pytest.mark.parametrize("operation", ["encrypt", "decrypt"])
def test_a_token_that_fails_is_an_internal_error_and_never_a_bad_ciphertext(running, faults: Faults, operation: str) -> None:  # type: ignore[no-untyped-def]
    _, client = running
    document = client.valid(operation)
    for rv in (CKR_DEVICE_REMOVED, CKR_GENERAL_ERROR):
        faults.set(rv=rv)
        answer = client.call(operation, document)
        assert (answer.status, answer.error) in ((500, "InternalException"), (503, "DependencyTimeoutException"))
        faults.set()
        wait_until(lambda: client.call(operation, document).status == 200, "the token serves again")


@pytest.mark.parametrize("rv", [CKR_SESSION_HANDLE_INVALID, CKR_KEY_HANDLE_INVALID, CKR_USER_NOT_LOGGED_IN])
def test_what_the_token_forgot_is_repaired_without_a_failed_request(running, faults: Faults, rv: int) -> None:  # type: ignore[no-untyped-def]
    _, client = running
    for _ in range(5):
        faults.set(rv=rv, times=1)
        assert client.call("encrypt").status == 200


def test_a_wrong_pin_is_tried_exactly_once(setup: Setup, faults: Faults) -> None:
    faults.set(login_rv=CKR_PIN_INCORRECT)
    setup.config["proxy"]["workers"] = 2
    process = setup.start(ready=False)
    assert process.popen.wait(20) == 2
    assert "tried once and will not be tried again" in process.log_file.read_text()
    assert faults.logins == 1


def test_a_token_that_is_absent_at_the_start_is_named_and_serves_as_soon_as_it_is_there(setup: Setup) -> None:
    setup.stores["key_stores"]["one"]["keys"]["k1"]["create"] = False
    pkcs11_tool(setup, "--keygen", "--key-type", "AES:32", "--label", "k1", "--sensitive")
    tokens = setup.directory / "tokens"
    (away,) = (path for path in tokens.iterdir() if path.is_dir())
    away.rename(setup.directory / "away")
    with setup.running() as process:
        client = setup.client()
        answer = client.call("encrypt")
        assert answer.status in (500, 503), "no partition could be asked for the key, so nobody may say that it does not exist"
        (line,) = wait_until(lambda: process.events("key_manager_health"), "named in the log")
        assert (line["key_manager"], line["status"]) == ("p0", "UNAVAILABLE")
        assert "there is no token with the label 't0'" in line["reason"]
        (setup.directory / "away").rename(away)
        wait_until(lambda: client.call("encrypt").status == 200, "served", 40)
        assert process.popen.poll() is None
        client.close()


def test_garbage_from_a_caller_does_not_take_the_partition_down(running) -> None:  # type: ignore[no-untyped-def]
    process, client = running
    garbage = client.valid("decrypt") | {"authenticationTag": b64(bytes(16))}
    for _ in range(50):
        assert client.call("decrypt", garbage).error == "InvalidCiphertextException"
    assert client.call("encrypt").status == 200
    assert process.events("key_manager_health") == []


@pytest.mark.parametrize("fault", ["absent", "ambiguous", "wrong type", "short", "rights"])
def test_a_key_that_cannot_be_served_is_named_and_the_others_are_served(setup: Setup, fault: str) -> None:
    keys = setup.stores["key_stores"]["one"]["keys"]
    keys["k2"] = {"label": "k2"}
    match fault:
        case "ambiguous":
            pkcs11_tool(setup, "--keygen", "--key-type", "AES:32", "--label", "k2", "--id", "01")
            pkcs11_tool(setup, "--keygen", "--key-type", "AES:32", "--label", "k2", "--id", "02")
            expected = "several secret keys"
        case "wrong type":
            pkcs11_tool(setup, "--keygen", "--key-type", "GENERIC:32", "--label", "k2")
            expected = "is not AES with 256 bits"
        case "short":
            pkcs11_tool(setup, "--keygen", "--key-type", "AES:16", "--label", "k2")
            expected = "is not AES with 256 bits"
        case "rights":
            keys["k1"] |= {"usage": ["ENCRYPT"]}
            keys["k2"] = {"label": "k1"}
            expected = "CKA_DECRYPT = false"
        case _:
            expected = "has no secret key with the label 'k2'"
    with setup.running() as process:
        (line,) = process.events("key_not_served")
        assert expected in line["problem"]
        assert "key k2" in line["problem"]
        client = setup.client()
        assert client.call("encrypt").status == 200
        answer = client.call("encrypt", key="k2")
        assert answer.error == ("KeyNotFoundException" if fault == "absent" else "InternalException")
        client.close()


def test_a_key_deleted_on_the_token_is_served_no_more(setup: Setup) -> None:
    with setup.running():
        client = setup.client()
        assert client.call("encrypt").status == 200
        pkcs11_tool(setup, "--delete-object", "--type", "secrkey", "--label", "k1")
        answer = wait_until(lambda: (a := client.call("encrypt")).error and a, "refused", 15)
        assert (answer.status, answer.error) == (404, "KeyNotFoundException")
        client.close()


@requirement(86)
def test_keys_made_for_us_cannot_leave_the_token(setup: Setup) -> None:
    with setup.running():
        listed = subprocess.run(
            ["pkcs11-tool", "--module", SOFTHSM, "--token-label", "t0", "--login", "--pin", "1234", "--list-objects"],
            env={**os.environ, **setup.softhsm_environment},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    assert listed.count("label:") == 1, "the health check key is a session key, never one behind a KMS key"
    assert "label:      k1" in listed
    assert "sensitive" in listed
    assert "never extractable" in listed


@requirement(56, 63)
def test_other_programs_agree_with_our_ciphertext(setup: Setup) -> None:
    """pkcs11-tool makes the same key stream in the same token; python-pkcs11 opens the whole with the composed AAD."""
    plaintext = b"sixteen bytes ok"
    with setup.running():
        client = setup.client()
        encrypted = client.call("encrypt", plaintext=b64(plaintext), additionalAuthenticatedData=b64(b"abc")).document
        client.close()
    iv, ciphertext, tag = (
        base64.b64decode(encrypted[name]) for name in ("initializationVector", "ciphertext", "authenticationTag")
    )
    counter, stream = setup.directory / "counter", setup.directory / "stream"
    counter.write_bytes(iv + b"\0\0\0\2")
    pkcs11_tool(
        setup,
        "--encrypt",
        "--label",
        "k1",
        "--mechanism",
        "AES-ECB",
        "--input-file",
        str(counter),
        "--output-file",
        str(stream),
    )
    assert bytes(a ^ b for a, b in zip(stream.read_bytes(), ciphertext, strict=False)) == plaintext

    script = f"""
import pkcs11
token = pkcs11.lib({SOFTHSM!r}).get_token(token_label="t0")
with token.open(user_pin="1234") as session:
    key = session.get_key(label="k1", object_class=pkcs11.ObjectClass.SECRET_KEY)
    params = pkcs11.GCMParams(bytes.fromhex({iv.hex()!r}), aad=b"\\0\\3abc\\0", tag_bits=128)
    opened = key.decrypt(bytes.fromhex({(ciphertext + tag).hex()!r}), mechanism=pkcs11.Mechanism.AES_GCM, mechanism_param=params)
    assert opened == {plaintext!r}
"""
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **setup.softhsm_environment}, check=True)


@requirement(97)
def test_health_follows_the_token_within_the_probe_interval(running, faults: Faults) -> None:  # type: ignore[no-untyped-def]
    process, client = running
    assert client.call("health").document["ekmFleetDetails"][0]["healthStatus"] == "ACTIVE"
    faults.set(rv=CKR_DEVICE_REMOVED)

    def status() -> str:
        return str(client.call("health").document["ekmFleetDetails"][0]["healthStatus"])

    wait_until(lambda: status() == "UNAVAILABLE", "seen", 10)
    faults.set()
    wait_until(lambda: status() == "ACTIVE", "seen", 10)
    assert [line["status"] for line in process.events("key_manager_health")][-1] == "ACTIVE"


def test_a_token_key_is_used_through_a_session_copy_with_the_same_rights(setup: Setup) -> None:
    script = f"""
import os, json
os.environ.update({setup.softhsm_environment!r})
from xksfast.native.crypto import Secret
from xksfast.native.engine import Engine, ensure_token_key
pin = Secret.from_bytes(b"1234")
for label, encrypt, decrypt in (("both", True, True), ("enc", True, False), ("dec", False, True)):
    assert ensure_token_key(module_path={SOFTHSM!r}, token_label="t0", pin=pin, profile="softhsm", label=label,
        can_encrypt=encrypt, can_decrypt=decrypt)
engine = Engine(max_queued=10, probe_interval_s=1)
p = engine.add_partition(name="p", module=engine.add_module({SOFTHSM!r}), token_label="t0", pin=pin, profile="softhsm", sessions=2)
group = engine.add_group([p])
engine.start()
keys = {{label: engine.key_add(group, label) for label in ("both", "enc", "dec")}}
assert engine.wait_settled(10)
print(json.dumps({{label: vars(engine.key_status(key, p)) for label, key in keys.items()}}))
assert engine.close() == 0
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for label, (encrypt, decrypt) in {"both": (True, True), "enc": (True, False), "dec": (False, True)}.items():
        status = json.loads(done.stdout)[label]
        assert status["state"] == "usable"
        assert status["session_copy"] is True
        assert status["extractable"] is False
        assert (status["can_encrypt"], status["can_decrypt"]) == (encrypt, decrypt)


def test_two_modules_may_want_different_values_of_one_variable(setup: Setup, tmp_path: Path) -> None:
    """Two copies of the SoftHSM library, each with a configuration of its own: two HSMs, two stores."""
    other = Setup(tmp_path / "other")
    other.use_softhsm()
    copy = tmp_path / "softhsm-copy.so"
    copy.write_bytes(Path(SOFTHSM).read_bytes())
    setup.config["modules"]["second"] = {"path": str(copy), "environment": other.softhsm_environment}
    setup.config["partitions"]["p1"] = {**setup.config["partitions"]["p0"], "module": "second"}
    setup.config["partition_groups"]["second"] = {"partitions": ["p1"]}
    setup.stores["key_stores"]["two"] = {
        **setup.stores["key_stores"]["one"],
        "uri_path_prefix": "/two",
        "partition_group": "second",
    }
    with setup.running():
        one, two = setup.client("one"), setup.client("two")
        encrypted = one.call("encrypt").document
        assert two.call("encrypt").status == 200
        assert one.call("decrypt", one.decrypt_document(encrypted)).status == 200
        assert two.call("decrypt", two.decrypt_document(encrypted)).error == "InvalidCiphertextException"
        one.close()
        two.close()


@pytest.mark.parametrize(
    ("profile", "said"), [("nshield", "encrypted with the same IV"), ("luna_fips", "C_Encrypt returned a wrong length")]
)
def test_a_token_that_would_reuse_ivs_is_refused_at_start(setup: Setup, profile: str, said: str) -> None:
    """SoftHSM makes no IVs: under a profile that leaves them to the HSM it would encrypt everything under a zero IV."""
    setup.config["partitions"]["p0"]["profile"] = profile
    process = setup.start(ready=False)
    assert process.popen.wait(20) == 2
    assert said in process.log_file.read_text()


def test_a_call_that_hangs_does_not_hold_up_the_jobs_behind_it(setup: Setup, faults: Faults) -> None:
    setup.config["partitions"]["p0"]["sessions"] = 2
    with setup.running(), concurrent.futures.ThreadPoolExecutor(1) as pool:
        hung, other = setup.client(), setup.client()
        for _ in range(50):
            assert hung.call("encrypt").status == other.call("encrypt").status == 200
        faults.set(delay_ms=700)
        first = pool.submit(hung.call, "encrypt")
        time.sleep(0.05)  # the call is inside the token now
        faults.set()
        began = time.monotonic()
        assert other.call("encrypt").status == 200
        assert time.monotonic() - began < 0.1
        assert first.result().error == "DependencyTimeoutException"
        hung.close()
        other.close()

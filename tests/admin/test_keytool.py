# SPDX-License-Identifier: Apache-2.0
"""The key tool as a process, on real tokens: SoftHSM through python-pkcs11, NSS softoken through our own C."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from xksfast.admin.dev import NSS_MODULES, SOFTHSM_MODULES
from xksfast.admin.partitions.keytool import KeyRequest, KeyToolAnswer, KeyToolRequest
from xksfast.admin.partitions.tool_process import tool_start

SOFTHSM = next((path for path in SOFTHSM_MODULES if Path(path).exists()), "")
NSS = next((path for path in NSS_MODULES if Path(path).exists()), "")
PIN = "314159"
BOTH = KeyRequest(label="orders", encrypt=True, decrypt=True)


class Token:
    """A token in a directory of its own, and the key tool's request for it."""

    def __init__(self, directory: Path, request: KeyToolRequest) -> None:
        self.directory = directory
        self.request = request

    def ask(self, *keys: KeyRequest, **changes: object) -> KeyToolAnswer:
        request = msgspec.structs.replace(self.request, keys=list(keys), **changes)
        command, environment = tool_start("_keytool", request)
        done = subprocess.run(
            command,
            input=msgspec.json.encode(request),
            env=environment,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        assert b"Traceback" not in done.stderr
        assert PIN.encode() not in done.stdout + done.stderr
        return msgspec.json.decode(done.stdout, type=KeyToolAnswer)

    def pkcs11_tool(self, *arguments: str) -> str:
        done = subprocess.run(
            ["pkcs11-tool", "--module", SOFTHSM, "--token-label", "t0", "--login", "--pin", PIN, *arguments],
            env={**os.environ, **self.request.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    def attributes(self, label: str) -> set[str]:
        """Usage and access words that pkcs11-tool shows of the one key with this label."""
        text = self.pkcs11_tool("--list-objects", "--type", "secrkey")
        blocks = [block for block in text.split("Secret Key Object") if f"label:      {label}\n" in block]
        assert len(blocks) == 1, text
        lines = dict(line.strip().split(":", 1) for line in blocks[0].splitlines()[1:] if ":" in line)
        assert "AES length 32" in blocks[0]
        return {word.strip() for name in ("Usage", "Access") for word in lines.get(name, "").split(",")} - {"", "none"}


@pytest.fixture
def token(tmp_path: Path) -> Token:
    if not SOFTHSM or not shutil.which("softhsm2-util"):
        pytest.skip("SoftHSM2 is not installed")
    (tmp_path / "tokens").mkdir()
    conf = tmp_path / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {tmp_path / 'tokens'}\nlog.level = ERROR\n")
    environment = {"SOFTHSM2_CONF": str(conf)}
    for label in ("t0", "t1"):
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "12345678"],
            env={**os.environ, **environment},
            check=True,
            capture_output=True,
        )
    pin = tmp_path / "pin"
    pin.write_text(PIN + "\n")
    pin.chmod(0o600)
    request = KeyToolRequest(
        name="p0",
        module_path=SOFTHSM,
        profile="softhsm",
        keys=[],
        token_label="t0",
        pin_file=str(pin),
        environment=environment,
    )
    return Token(tmp_path, request)


def test_a_key_is_made_once_with_exactly_the_rights_asked_for(token: Token) -> None:
    keys = [
        BOTH,
        KeyRequest(label="in", encrypt=True, decrypt=False),
        KeyRequest(label="out", encrypt=False, decrypt=True),
        KeyRequest(label="no", encrypt=False, decrypt=False),
    ]
    assert token.ask(*keys) == KeyToolAnswer(created=["orders", "in", "out", "no"])
    assert token.ask(*keys) == KeyToolAnswer(created=[])
    access = {"always sensitive", "never extractable", "local", "sensitive"}
    assert token.attributes("orders") == {"encrypt", "decrypt"} | access
    assert token.attributes("in") == {"encrypt"} | access
    assert token.attributes("out") == {"decrypt"} | access
    assert token.attributes("no") == access


def test_only_the_named_token_gets_the_key(token: Token) -> None:
    token.ask(BOTH)
    assert token.ask(BOTH, token_label="t1").created == ["orders"]


def test_a_token_is_found_by_serial_and_by_slot(token: Token) -> None:
    token.ask(BOTH)
    shown = subprocess.run(
        ["softhsm2-util", "--show-slots"],
        env={**os.environ, **token.request.environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    block = next(part for part in shown.split("\nSlot ") if "Label:            t0" in part)
    slot = int(block.split()[0])
    serial = next(line.split(":")[1].strip() for line in block.splitlines() if "Serial number:" in line)
    assert token.ask(BOTH, token_label=None, serial=serial) == KeyToolAnswer()
    assert token.ask(BOTH, token_label=None, slot=slot) == KeyToolAnswer()


def test_a_pin_from_the_environment_works(token: Token) -> None:
    environment = {**token.request.environment, "TEST_PIN": PIN}
    assert token.ask(BOTH, pin_file=None, pin_env="TEST_PIN", environment=environment).created == ["orders"]


def test_a_wrong_pin_is_said_and_tried_once(token: Token) -> None:
    (token.directory / "pin").write_text("999999\n")
    answer = token.ask(BOTH)
    assert "token 't0' refuses the PIN" in answer.problem
    assert "will not be tried again" in answer.problem
    assert answer.created == []


def test_a_pin_file_that_others_can_read_is_refused(token: Token) -> None:
    (token.directory / "pin").chmod(0o644)
    assert f"chmod 600 {token.directory / 'pin'}" in token.ask(BOTH).problem


def test_an_unknown_token_is_said_with_those_there_are(token: Token) -> None:
    problem = token.ask(BOTH, token_label="t9").problem
    assert "there is no token 't9'" in problem
    assert "'t0'" in problem
    assert "'t1'" in problem


def test_no_login_is_said(token: Token) -> None:
    problem = token.ask(BOTH, pin_file=None).problem
    assert "'orders'" in problem
    assert "'t0'" in problem


def test_a_label_that_another_kind_of_key_has_is_refused(token: Token) -> None:
    token.pkcs11_tool("--keygen", "--key-type", "AES:16", "--label", "orders")
    assert "'orders' on token 't0' is not AES-256" in token.ask(BOTH).problem


def test_a_label_that_two_keys_have_is_refused(token: Token) -> None:
    for number in ("01", "02"):
        token.pkcs11_tool("--keygen", "--key-type", "AES:32", "--label", "orders", "--id", number)
    assert "several secret keys with the label 'orders'" in token.ask(BOTH).problem


@pytest.mark.parametrize("path", ["/nonexistent.so", "/etc/passwd"])
def test_a_module_that_cannot_be_loaded_is_said(token: Token, path: str) -> None:
    assert f"the PKCS#11 module {path} cannot be loaded" in token.ask(BOTH, module_path=path).problem


def test_logins_at_the_same_time_all_succeed(token: Token) -> None:
    token.ask(BOTH)
    with ThreadPoolExecutor(6) as pool:  # SoftHSM 2.6 refuses some logins while processes start together
        answers = list(pool.map(lambda _: token.ask(BOTH), range(12)))
    assert answers == [KeyToolAnswer()] * 12


def test_nss_softoken_keys_are_made_through_our_own_c(tmp_path: Path) -> None:
    if not NSS or not shutil.which("certutil"):
        pytest.skip("NSS is not installed")
    database = tmp_path / "nss"
    database.mkdir()
    subprocess.run(["certutil", "-N", "-d", f"sql:{database}", "--empty-password"], check=True, capture_output=True)
    request = KeyToolRequest(
        name="p0",
        module_path=NSS,
        profile="nss",
        keys=[],
        token_label="nss",
        parameters=f"configdir='sql:{database}' certPrefix='' keyPrefix='' secmod='' dbTokenDescription='nss' flags=",
    )
    token = Token(tmp_path, request)
    no = KeyRequest(label="no", encrypt=False, decrypt=False)
    assert token.ask(BOTH, no) == KeyToolAnswer(created=["orders", "no"])
    assert token.ask(BOTH, no) == KeyToolAnswer()
    assert "there is no token" in token.ask(BOTH, token_label="other").problem

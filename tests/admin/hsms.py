# SPDX-License-Identifier: Apache-2.0
"""Two SoftHSM2 tokens with a configuration each, as two HSMs, and one of NSS softoken; `xksfast partition` on them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.setups import SOFTHSM, toml

NSS = "/usr/lib/x86_64-linux-gnu/libsoftokn3.so"
PIN = "271828"

# One request as python-pkcs11 does it: neither the tool under test nor its C has a part in it.
ONE_CALL = """
import sys, pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
module, token, pin, label, what, value = sys.argv[1:7]
with pkcs11.lib(module).get_token(token_label=token).open(rw=True, user_pin=pin) as session:
    if what == "generate":
        template = {Attribute.EXTRACTABLE: value == "extractable", Attribute.SENSITIVE: True}
        session.generate_key(KeyType.AES, 256, label=label, store=True, template=template)
    elif what == "show":
        names = ("EXTRACTABLE", "SENSITIVE", "PRIVATE", "ENCRYPT", "DECRYPT", "WRAP", "UNWRAP")
        for key in session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY}):
            print(key.label, *(name.lower() for name in names if key[getattr(Attribute, name)]))
    else:
        key = session.get_key(object_class=ObjectClass.SECRET_KEY, label=label)
        data, iv = bytes.fromhex(value), bytes(range(16))
        method = key.encrypt if what == "encrypt" else key.decrypt
        print(method(data, mechanism=Mechanism.AES_CBC, mechanism_param=iv).hex())
"""


class Hsms:
    """Partitions p0 and p1 (SoftHSM) in group "main"; p2 (NSS) after with_nss(). Change `config`, then write().

    like: others whose tokens these are copies of; None: new ones.
    """

    def __init__(self, directory: Path, like: Hsms | None = None) -> None:
        self.directory = directory
        self.file = directory / "xksfast.toml"
        self.config: dict[str, Any] = {"state": {"url": "file:stores.toml"}, "modules": {}, "partitions": {}}
        (directory / "pin").write_text(PIN + "\n")
        (directory / "pin").chmod(0o600)
        (directory / "stores.toml").write_text("")
        for number in (0, 1):
            conf = directory / f"hsm{number}.conf"
            if like is None:
                (directory / f"hsm{number}").mkdir()
            else:
                shutil.copytree(like.directory / f"hsm{number}", directory / f"hsm{number}")
            conf.write_text(f"directories.tokendir = {directory}/hsm{number}\nlog.level = ERROR\n")
            self.config["modules"][f"hsm{number}"] = {"path": SOFTHSM, "environment": {"SOFTHSM2_CONF": str(conf)}}
            self.config["partitions"][f"p{number}"] = {
                "module": f"hsm{number}", "token_label": f"t{number}", "pin_file": "pin", "profile": "softhsm", "sessions": 2
            }  # fmt: skip
            if like is None:
                self.init_token(number, f"t{number}")
        self.config["partition_groups"] = {"main": {"partitions": ["p0", "p1"]}}
        self.write()

    def init_token(self, hsm: int, label: str) -> None:
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "12345678"],
            env={**os.environ, **self.config["modules"][f"hsm{hsm}"]["environment"]},
            check=True,
            capture_output=True,
        )

    def with_nss(self) -> None:
        """Another partition, in the group as well."""
        database = self.directory / "nss"
        database.mkdir()
        subprocess.run(["certutil", "-N", "-d", f"sql:{database}", "--empty-password"], check=True, capture_output=True)
        parameters = f"configdir='sql:{database}' certPrefix='' keyPrefix='' secmod='' dbTokenDescription='t2' flags="
        self.config["modules"]["nss"] = {"path": NSS, "parameters": parameters}
        self.config["partitions"]["p2"] = {"module": "nss", "token_label": "t2", "profile": "nss", "sessions": 2}
        self.config["partition_groups"]["main"]["partitions"].append("p2")
        self.write()

    def write(self) -> None:
        """As a person writes it: no quotes where none are needed, no empty tables."""
        text = re.sub(r"^\[.*\]$", lambda header: header.group().replace('"', ""), toml(self.config), flags=re.M)
        text = re.sub(r'^"(\w+)" =', r"\1 =", text, flags=re.M)
        self.file.write_text(re.sub(r"^\[\w+\]\n(?=\[)", "", text, flags=re.M))

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """`xksfast partition …`; the exit code is checked, and that no PIN and no traceback is printed."""
        done = subprocess.run(
            [sys.executable, "-m", "xksfast", "partition", *arguments],
            env={**os.environ, "XKSFAST_CONFIG": str(self.file)},
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        assert PIN not in done.stdout + done.stderr
        return done

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code).stdout)

    def token(self, number: int, label: str, what: str, value: str = "") -> str:
        """One call on t0 or t1 by python-pkcs11."""
        done = subprocess.run(
            [sys.executable, "-c", ONE_CALL, SOFTHSM, f"t{number}", PIN, label, what, value],
            env={**os.environ, **self.config["modules"][f"hsm{number}"]["environment"]},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def labels(self, number: int) -> dict[str, set[str]]:
        """What is on t0 or t1: label -> attributes that are true."""
        return {line.split()[0]: set(line.split()[1:]) for line in self.token(number, "", "show").splitlines()}


def make_hsms(directory: Path, like: Hsms | None = None) -> Hsms:
    """Or skip where SoftHSM2 is not installed. like: see Hsms."""
    if not Path(SOFTHSM).exists() or not shutil.which("softhsm2-util"):
        pytest.skip("SoftHSM2 is not installed")
    return Hsms(directory, like)

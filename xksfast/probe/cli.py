# SPDX-License-Identifier: Apache-2.0
"""`xksfast test URL`. Exit codes: 0 all right, 1 something is wrong, 2 wrong usage, 4 right but too slow.

Secrets come from files or the environment, never from the command line, where every user of the machine can read them.
"""

from __future__ import annotations

import os
import re
import ssl
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from xksfast.errors import OperatorError
from xksfast.probe.target import Credential, Keys, Target, parse_url

SECRET_ENV = "XKSFAST_TEST_SECRET_ACCESS_KEY"
WIDTH_WITHOUT_TERMINAL = 160
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_WORD = re.compile(r"[A-Za-z0-9-]{1,128}")


def probe_command(
    url: Annotated[
        str, typer.Argument(help="https://host:port/prefix, what stands before /kms/xks/v1; port and prefix if any.")
    ],
    access_key_id: Annotated[str, typer.Option(envvar="XKSFAST_TEST_ACCESS_KEY_ID", help="Access key id of the key store.")],
    region: Annotated[str, typer.Option(envvar="XKSFAST_TEST_REGION", help="AWS Region that signs.")],
    secret_access_key_file: Annotated[
        Path | None, typer.Option(help=f"File with the secret access key, 0600; or set {SECRET_ENV}.")
    ] = None,
    key: Annotated[
        str, typer.Option(help="External key id of a key that may encrypt and decrypt; without it little is tried.")
    ] = "",
    encrypt_only_key: Annotated[str, typer.Option(help="External key id of a key that may only encrypt.")] = "",
    decrypt_only_key: Annotated[str, typer.Option(help="External key id of a key that may only decrypt.")] = "",
    no_usage_key: Annotated[str, typer.Option(help="External key id of a key that may do neither.")] = "",
    disabled_key: Annotated[str, typer.Option(help="External key id of a disabled key.")] = "",
    denied_key: Annotated[str, typer.Option(help="External key id of a key that a policy denies to --principal.")] = "",
    principal: Annotated[str, typer.Option(help="awsPrincipalArn of all requests.")] = "arn:aws:iam::123456789012:user/Alice",
    second_access_key_id: Annotated[str, typer.Option(help="Another valid access key id of the key store.")] = "",
    second_secret_access_key_file: Annotated[
        Path | None, typer.Option(help="Its secret; or set XKSFAST_TEST_SECOND_SECRET_ACCESS_KEY.")
    ] = None,
    foreign_access_key_id: Annotated[str, typer.Option(help="A valid access key id of another key store of the proxy.")] = "",
    foreign_secret_access_key_file: Annotated[
        Path | None, typer.Option(help="Its secret; or set XKSFAST_TEST_FOREIGN_SECRET_ACCESS_KEY.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="PEM file with the CAs to trust instead of the system's.")] = None,
    client_certificate: Annotated[Path | None, typer.Option(help="PEM file with a client certificate, for mTLS.")] = None,
    client_key: Annotated[Path | None, typer.Option(help="PEM file with its private key.")] = None,
    plaintext_http: Annotated[
        bool, typer.Option("--plaintext-http", help="Allow an http:// URL, behind a TLS terminator.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="A case, an area such as decrypt, or a pattern such as '*.altered-*'; may be repeated."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=5, max=10_000, help="Calls of each operation that latency is taken from.")] = 50,
    quota: Annotated[
        int, typer.Option(min=0, max=5000, help="Requests a second that the key store is limited to; is exceeded.")
    ] = 0,
    calls: Annotated[bool, typer.Option("--calls", help="Show every call with its status and times.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write a JUnit XML report to this file as well.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Sign and check any running XKS proxy against the API, strictly. Exit code 0: all right, 1: something is wrong, 4: too slow."""
    if bool(client_certificate) != bool(client_key):
        raise OperatorError("--client-certificate and --client-key belong together: give both or none")
    given = {"--key": key, "--encrypt-only-key": encrypt_only_key, "--decrypt-only-key": decrypt_only_key}
    given |= {"--no-usage-key": no_usage_key, "--disabled-key": disabled_key, "--denied-key": denied_key}
    _check_words(given, _KEY_ID, "is no external key id: 1 to 128 characters of A-Z a-z 0-9 - . _")
    words = {"--access-key-id": access_key_id, "--second-access-key-id": second_access_key_id, "--region": region}
    _check_words(words | {"--foreign-access-key-id": foreign_access_key_id}, _WORD, "must be of A-Z a-z 0-9 and -")
    target = Target(
        address=parse_url(url, plaintext_http=plaintext_http),
        region=region,
        credential=Credential(access_key_id, _secret(secret_access_key_file, "")),
        keys=Keys(key, encrypt_only_key, decrypt_only_key, no_usage_key, disabled_key, denied_key),
        second=_credential(second_access_key_id, second_secret_access_key_file, "second"),
        foreign=_credential(foreign_access_key_id, foreign_secret_access_key_file, "foreign"),
        ca_file=ca,
        client_certificate=client_certificate,
        client_key=client_key,
        principal=principal,
        rounds=rounds,
        quota=quota,
    )
    _check_files(target)

    from xksfast.probe import report as reports
    from xksfast.probe import run as runs

    with _progress(len(runs.chosen(only or ()))) as step:
        report = runs.run(target, only or (), step)
    if junit is not None:
        reports.write_junit(report, junit)
    if json:
        import orjson

        print(orjson.dumps(reports.as_document(report)).decode())
    else:
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL, highlight=False)
        console.print(reports.view(report, calls=calls))
    raise typer.Exit(report.exit_code)


def _check_words(given: dict[str, str], pattern: re.Pattern[str], problem: str) -> None:
    for option, text in given.items():
        if text and not pattern.fullmatch(text):
            raise OperatorError(f"{option} {text!r}: {problem}")


def _credential(access_key_id: str, file: Path | None, which: str) -> Credential | None:
    if not access_key_id:
        if file is not None:
            raise OperatorError(f"--{which}-secret-access-key-file is given without --{which}-access-key-id")
        return None
    return Credential(access_key_id, _secret(file, which))


def _secret(file: Path | None, which: str) -> str:
    """From the file, or else the environment. which: "", "second" or "foreign"."""
    option = f"--{which}-secret-access-key-file" if which else "--secret-access-key-file"
    variable = SECRET_ENV.replace("_TEST_", f"_TEST_{which.upper()}_") if which else SECRET_ENV
    if file is None:
        secret = os.environ.get(variable, "")
        if not secret:
            raise OperatorError(f"the secret access key is missing: name a file by {option}, or set {variable}")
        return secret
    try:
        mode = file.stat().st_mode
        secret = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"{option} {file}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    if stat.S_ISREG(mode) and mode & 0o077:
        raise OperatorError(f"{option} {file}: others can read it: chmod 600 {file}")
    if not secret:
        raise OperatorError(f"{option} {file}: is empty")
    return secret


def _check_files(target: Target) -> None:
    """What TLS will read, tried before anything runs."""
    named = {"--ca": target.ca_file, "--client-certificate": target.client_certificate, "--client-key": target.client_key}
    for option, path in named.items():
        if path is not None and not path.is_file():
            raise OperatorError(f"{option}: there is no file {path}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if target.ca_file is not None:
            context.load_verify_locations(str(target.ca_file))
    except ssl.SSLError:
        raise OperatorError(f"--ca {target.ca_file}: holds no certificate in PEM") from None
    try:
        if target.client_certificate is not None:
            context.load_cert_chain(str(target.client_certificate), str(target.client_key), password="")
    except (ssl.SSLError, ValueError):
        raise OperatorError(
            f"--client-certificate {target.client_certificate}: with --client-key it is no pair of PEM files without a passphrase"
        ) from None


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal's stderr."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda name: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True, no_color="NO_COLOR" in os.environ), transient=True) as bar:
        task = bar.add_task("test", total=total)
        yield lambda name: bar.update(task, advance=1, description=name)

# SPDX-License-Identifier: Apache-2.0
"""`xksfast import …`: from other proxies to this one. The reading is done in admin/, the applying by `xksfast apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import orjson
import typer

from xksfast.admin.aws_sample import read_sample
from xksfast.admin.aws_sample_files import write_files

import_app = typer.Typer(help="Take over from another proxy.", no_args_is_help=True)


@import_app.callback()
def importing() -> None:
    """Keep the name of what is imported a command of its own."""


@import_app.command("aws-sample")
def import_aws_sample(
    settings: Annotated[Path, typer.Argument(help="settings.toml of AWS's sample proxy.")],
    directory: Annotated[Path, typer.Option("--out", help="Where to write our files; nothing there is overwritten.")] = Path(
        "from-aws-sample"
    ),
    token_label: Annotated[
        str, typer.Option(help="Label of the token: the sample takes the first slot, which is no name.")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Write stores.toml, xksfast.toml and the secrets for what the sample served; its ciphertexts decrypt here.

    Nothing is changed in a running proxy: look at the files, then run xksfast apply.
    """
    plan = read_sample(settings)
    try:
        written = write_files(plan, directory, token_label=token_label)
    finally:
        plan.forget_secrets()
    keys = sum(len(store.keys) for store in plan.stores)
    if json:
        document = {
            "key_stores": len(plan.stores),
            "keys": keys,
            "stores_file": str(written.stores_file),
            "config_file": str(written.config_file),
            "findings": [{"level": finding.level, "key": finding.key, "text": finding.text} for finding in plan.findings],
        }
        print(orjson.dumps(document).decode())
        return
    print(f"{settings}: {len(plan.stores)} key stores, {keys} keys")
    for finding in plan.findings:
        print(f"  {finding}")
    print(
        f"Look at {written.config_file} and {written.stores_file}, start the proxy, then: xksfast apply {written.stores_file}"
    )

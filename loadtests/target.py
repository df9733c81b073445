# SPDX-License-Identifier: Apache-2.0
"""Which proxy is loaded: the JSON object that `xksfast dev --json` prints, kept in a file, or the same facts from the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from bench.requests import Target

ENVIRONMENT = {
    "url": "XKSFAST_LOAD_URL",
    "uri_path_prefix": "XKSFAST_LOAD_URI_PATH_PREFIX",
    "region": "XKSFAST_LOAD_REGION",
    "access_key_id": "XKSFAST_LOAD_ACCESS_KEY_ID",
    "secret_access_key": "XKSFAST_LOAD_SECRET_ACCESS_KEY",
    "ca_file": "XKSFAST_LOAD_CA_FILE",
    "key": "XKSFAST_LOAD_KEY",
}
OPTIONAL = ("ca_file",)


def read_target(file: str, environment: Mapping[str, str] = os.environ) -> tuple[Target, str]:
    """(the key store, the external key id) from a file ("" for none) with what the environment sets on top.

    ValueError names what is missing, and never a secret.
    """
    facts: dict[str, object] = {}
    if file:
        try:
            facts = json.loads(Path(file).read_text())
        except ValueError:
            raise ValueError(f"{file} is not a JSON object such as `xksfast dev --json` prints") from None
        keys = facts.get("keys")
        if isinstance(keys, dict):
            facts.setdefault("key", keys.get("default"))
    facts |= {name: environment[variable] for name, variable in ENVIRONMENT.items() if variable in environment}
    missing = [f"{name} ({ENVIRONMENT[name]})" for name in ENVIRONMENT if name not in OPTIONAL and facts.get(name) is None]
    if missing:
        raise ValueError(f"the key store is not known: {', '.join(missing)}; give --target FILE or set these variables")
    target = Target(
        str(facts["url"]).rstrip("/"),
        str(facts["uri_path_prefix"]),
        str(facts["region"]),
        str(facts["access_key_id"]),
        str(facts["secret_access_key"]),
        str(facts["ca_file"]) if facts.get("ca_file") else None,
    )
    return target, str(facts["key"])

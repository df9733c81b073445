# SPDX-License-Identifier: Apache-2.0
"""`partition add`: a token that is tried, compared with those that are configured, and only then written into the file."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import msgspec

from xksfast.admin.partitions.advice import Verdict
from xksfast.admin.partitions.link import partition_target
from xksfast.admin.partitions.listing import TokenReport, list_partitions
from xksfast.admin.partitions.testing import try_token
from xksfast.admin.partitions.toml_file import EditedFile, NewModule, NewPartition, module_name, shown_path
from xksfast.admin.partitions.transport import RefusedByRule
from xksfast.config import Config, Profile, load_config
from xksfast.errors import OperatorError
from xksfast.toml_reader import nearest

TRIAL_RUN_S = 0.1


class TokenFailure(OperatorError):
    """The token could not be tried. Exit code 1."""

    exit_code = 1


class Wanted(msgspec.Struct, frozen=True):
    """What was typed."""

    name: str
    module: str
    token_label: str | None
    serial: str | None
    slot: int | None
    pin_file: str | None
    profile: str
    sessions: int
    group: str | None
    environment: dict[str, str]
    parameters: str


class Added(msgspec.Struct, frozen=True):
    """file: the change, not written yet."""

    file: EditedFile
    token: TokenReport
    verdicts: list[Verdict]


def prepare(path: Path, wanted: Wanted) -> Added:
    """Everything but the writing. OperatorError when the token is not fit, or is configured already."""
    before = load_config(path)
    edited = EditedFile(path, _new_partition(before, path, wanted))
    config = edited.config
    report = try_token(partition_target(config, wanted.name), config.partitions[wanted.name], run_s=TRIAL_RUN_S)
    if report.level == "refuse":
        reasons = "; ".join(verdict.text for verdict in report.verdicts if verdict.level == "refuse")
        raise RefusedByRule(f"partition {wanted.name} is not added: {reasons}")
    if report.token is None or report.measured is None:
        raise TokenFailure(f"partition {wanted.name} is not added: {report.problem}")
    _refuse_twin(before, config, wanted, report.token)
    return Added(edited, report.token, report.verdicts)


def _new_partition(config: Config, path: Path, wanted: Wanted) -> NewPartition:
    directory = path.resolve().parent
    if wanted.name in config.partitions:
        raise OperatorError(f"there is a partition {wanted.name!r} already: choose another name")
    if wanted.profile not in get_args(Profile):
        raise OperatorError(f"unknown profile {wanted.profile!r}{nearest(wanted.profile, get_args(Profile))}")
    given = {
        field: value
        for field, value in (("token_label", wanted.token_label), ("serial", wanted.serial), ("slot", wanted.slot))
        if value is not None
    }
    if len(given) != 1:
        got = " and ".join(f"--{field.replace('_', '-')}" for field in given) or "none"
        raise OperatorError(f"exactly one of --token-label, --serial and --slot says which token, got {got}")
    if wanted.group is not None and wanted.group not in config.partition_groups:
        close = nearest(wanted.group, config.partition_groups)
        if close.startswith(": did you mean"):
            raise OperatorError(f"there is no partition group {wanted.group!r}{close}")
    module, name = _module(config, wanted)
    fields: dict[str, str | int] = {"module": name, **given}
    if wanted.pin_file is not None:
        fields["pin_file"] = shown_path(wanted.pin_file, directory)
    fields |= {"profile": wanted.profile, "sessions": wanted.sessions}
    return NewPartition(wanted.name, fields, module, wanted.group)


def _module(config: Config, wanted: Wanted) -> tuple[NewModule | None, str]:
    """A module to be made, if any, and its name."""
    if wanted.module in config.modules:
        if wanted.environment or wanted.parameters:
            raise OperatorError(f"--environment and --parameters are for a new module, and {wanted.module!r} is configured")
        return None, wanted.module
    if "/" not in wanted.module and not wanted.module.endswith(".so"):
        raise OperatorError(f"there is no module {wanted.module!r}{nearest(wanted.module, config.modules)}")
    for name, module in config.modules.items():
        if (module.path, module.environment, module.parameters) == (wanted.module, wanted.environment, wanted.parameters):
            return None, name
    if "/" in wanted.module and not Path(wanted.module).is_file():
        raise OperatorError(f"there is no file {wanted.module}: --module names a configured module or a PKCS#11 library")
    name = module_name(wanted.module, set(config.modules))
    path = str(Path(wanted.module).absolute()) if "/" in wanted.module else wanted.module
    return NewModule(name, path, wanted.parameters, wanted.environment), name


def _refuse_twin(before: Config, after: Config, wanted: Wanted, token: TokenReport) -> None:
    """The same token under two names would be two partitions that fail together."""
    for report in list_partitions(before):
        other = report.token
        if other is None or (other.serial, other.model, other.label) != (token.serial, token.model, token.label):
            continue
        if not token.serial.strip("0"):  # no serial number at all (NSS): then only the same module means the same token
            modules = after.modules[before.partitions[report.name].module], after.modules[after.partitions[wanted.name].module]
            if modules[0] != modules[1]:
                continue
        raise RefusedByRule(
            f"partition {wanted.name} is not added: partition {report.name!r} is the same token (serial number {token.serial}): keep "
            "one, with more sessions"
        )

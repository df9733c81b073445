# SPDX-License-Identifier: Apache-2.0
"""What would keep every worker from serving and can be seen before any call into a PKCS#11 module: looked at before one is made.

A token may be written during a login (SoftHSM does), so a start that must fail is to fail before that. `xksfast config check` asks the
same questions. What must not live here: the rules of the configuration itself (config.py), and anything that asks a token.
"""

from __future__ import annotations

import os

from xksfast.config import Config, missing_files
from xksfast.errors import OperatorError
from xksfast.toml_reader import Problems, join


def check_start(config: Config, source: str) -> None:
    """Raise OperatorError with all that start_problems() finds. source: the configuration file, for the text.

    It looks in a process of its own, since the supervisor, which calls this, never holds a private key or a PIN.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _look(config, source, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    if text:
        raise OperatorError(text)
    if status:
        raise OperatorError(f"the checks before the start ended early ({os.waitstatus_to_exitcode(status)}): try again")


def _look(config: Config, source: str, writing: int) -> None:
    """In the child, which never returns from here."""
    code = 1
    try:
        lines = [str(problem) for problem in start_problems(config, source).found]
        os.write(writing, "\n".join(lines).encode()[:60_000])  # less than a pipe holds
        code = 0
    except OperatorError as error:
        os.write(writing, str(error).encode())
        code = 0
    finally:
        os._exit(code)


def start_problems(config: Config, source: str) -> Problems:
    """Certificates and keys that do not go together, modules, PINs and further files that cannot be read."""
    from xksfast.native.crypto import Secret  # the supervisor itself does without native code
    from xksfast.native.tls import TlsContext

    problems = Problems(source)
    for problem in missing_files(config, source).found:
        if problem.key.startswith("modules."):
            problems.add(problem.key, f"the PKCS#11 module cannot be loaded: {problem.problem}")
        elif not problem.key.startswith("state."):
            problems.found.append(problem)
    keys = {problem.key for problem in problems.found}
    tls = config.proxy.tls
    if tls is not None and not any(key.startswith("proxy.tls.") for key in keys):
        try:
            TlsContext(tls.certificate, tls.private_key, tls.client_ca or None, tls.client_common_name or None)
        except OperatorError as error:
            problems.add("proxy.tls", str(error))
    for name, module in config.modules.items():
        key = join("modules", name) + ".path"
        if key not in keys and "/" in module.path and not os.access(module.path, os.R_OK):
            problems.add(key, f"{module.path} cannot be loaded: it is not readable")
    for name, partition in config.partitions.items():
        key = join("partitions", name) + (".pin_file" if partition.pin_file else ".pin_env")
        try:
            if partition.pin_file and key not in keys:
                Secret.from_file(partition.pin_file)
            elif partition.pin_env:
                Secret.from_environment(partition.pin_env)
        except OperatorError as error:
            problems.add(key, str(error))
    return problems

# SPDX-License-Identifier: Apache-2.0
"""A fake AWS KMS on 127.0.0.1: the operations of custom key stores and their keys, strict as AWS is, calling the proxy as KMS does.

Requests are checked against botocore's own service model and their SigV4 signature; external key stores are connected, and their keys
used, through real HTTPS calls to a real proxy. Time is short: what takes AWS minutes takes it `connect_s`. What it stands for is the
AWS KMS API Reference and the Developer Guide's chapters on external key stores; what those leave open is said in comments.
"""

from tests.fake_kms.account import Account, Host, VpcService
from tests.fake_kms.server import FakeKms

__all__ = ["Account", "FakeKms", "Host", "VpcService"]

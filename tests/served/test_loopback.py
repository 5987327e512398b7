"""What is loopback, in every notation: the look at a server's sockets goes by it (see `test_serving`)."""

from __future__ import annotations

import pytest

from tests.served.sockets import is_loopback


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.0.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("::ffff:0.0.0.0", False),
        ("10.0.0.4", False),
        ("fe80::1", False),
    ],
)
def test_an_address_is_told_from_loopback_in_every_notation(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback

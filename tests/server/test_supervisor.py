"""What the supervisor says and asks of its own addresses."""

from __future__ import annotations

import httpx
import pytest

from server.settings import ServerSettings, Settings
from server.supervisor import _address


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_its_own_address_stands_in_a_url_whatever_the_notation(host: str) -> None:
    settings = Settings(server=ServerSettings(host=host, port=8123))
    url = httpx.URL(f"http://{_address(settings, 'port')}/health")
    assert (url.host, url.port) == (host, 8123)

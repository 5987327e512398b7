"""The page as it is sent: one piece, nothing from elsewhere, nothing that may run but what was meant to."""

from __future__ import annotations

import base64
import hashlib
import json
import re

from server.config_problems import leaves
from server.console.form import form_fields
from server.console.page import page
from server.shaping.tunables import Tunables


def body() -> str:
    return page().body.decode()


def directives() -> dict[str, str]:
    parts = (part.strip().partition(" ") for part in page().headers["content-security-policy"].split(";"))
    return {name: value for name, _, value in parts}


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_script_and_style_are_those_that_the_policy_names() -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", body(), re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", body(), re.DOTALL)
    assert directives()["script-src"] == digest(script)
    assert directives()["style-src"] == digest(style)


def test_the_policy_allows_nothing_else() -> None:
    policy = directives()
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in page().headers["content-security-policy"]


def test_nothing_comes_from_elsewhere() -> None:
    links = re.findall(r"""(?:src|href)=["']([^"']*)""", body())
    assert [link for link in links if not link.startswith(("#", "data:"))] == []
    assert set(re.findall(r"https?://[^\s\"'`)]+", body())) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in body()


def test_no_element_has_a_handler_or_a_style_of_its_own() -> None:
    markup = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", body(), flags=re.DOTALL)
    assert not re.findall(r"\s(on\w+|style)=", markup)
    assert "innerHTML" not in body()
    assert "eval(" not in body()


def test_the_form_offers_every_setting_that_can_be_tuned() -> None:
    (block,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', body(), re.DOTALL)
    offered = json.loads(block)
    assert offered == form_fields()
    assert [field["key"] for field in offered] == [key for key, _ in leaves(Tunables) if key != "version"]
    assert all(field["about"] for field in offered)


def test_a_field_of_the_form_knows_its_kind_and_its_limits() -> None:
    fields = {field.pop("key"): field for field in form_fields()}
    for field in fields.values():
        del field["about"]
    assert fields["batching.max_rows"] == {"kind": "integer", "nullable": False, "min": 1, "max": 1024}
    assert fields["batching.latency_objective_ms"] == {
        "kind": "number", "nullable": True, "min": 1, "max": 3_600_000,
    }  # fmt: skip
    assert fields["shaping.policy"]["choices"] == ["off", "pin", "threshold", "percentile", "budget"]
    assert fields["shaping.pin_point"] == {"kind": "text", "nullable": True}

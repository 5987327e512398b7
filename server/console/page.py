"""The page as it is sent: HTML, style and scripts in one piece, and the policy that lets nothing else run.

No build step: the parts lie beside this file as they were written, and are put together when somebody asks first.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files

from server.console.form import form_fields

SCRIPTS = ("exposition.js", "figures.js", "draw.js", "panels.js", "tuning.js", "console.js")


@dataclass(frozen=True)
class Page:
    """The body (UTF-8) and its headers."""

    body: bytes
    headers: dict[str, str]


@functools.cache
def page() -> Page:
    """The page. Style and script are named in the policy by their digests, so that no other inline code would run,
    should any ever get in; data go to this server alone, and no other site may frame the page."""
    parts = files(__package__)
    style = parts.joinpath("console.css").read_text("utf-8")
    code = "\n".join(parts.joinpath(name).read_text("utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{code}}})();\n'
    html = parts.joinpath("console.html").read_text("utf-8")
    fields = json.dumps(form_fields()).replace("<", "\\u003c")  # a block of data ends at the first "</script"
    for mark, content in (("/*style*/", style), ("/*script*/", script), ("/*fields*/", fields)):
        html = html.replace(mark, content)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            "connect-src 'self'",
            "img-src data:",  # the icon
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    )
    return Page(
        html.encode(),
        {
            "content-security-policy": policy,
            "cache-control": "no-cache",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "cross-origin-opener-policy": "same-origin",
        },
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

"""Plain HTTP to servers on this machine, for whoever asks them again and again."""

from __future__ import annotations

import httpx

HTTP = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))
"""As `httpx.get` and its like, which read the machine's certificates anew at each call (20 ms of CPU time): a new
connection for each request, and safe in threads."""

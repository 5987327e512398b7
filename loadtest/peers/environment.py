"""Where the peers' packages live: in an environment of their own, so that ours stays small."""

from __future__ import annotations

from pathlib import Path

PEERS_PYTHON = Path(".venv-peers/bin/python")
"""`make peers` creates it from `loadtest/peers/requirements.lock`."""

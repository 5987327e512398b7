"""A real Prometheus server over blocks made of an OpenMetrics text, for tests that ask one."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from loadtest.http import HTTP

PATIENCE_S = 30.0

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus is not on PATH (Debian package prometheus)",
)


@contextmanager
def prometheus_of(folder: Path, exposition: str) -> Iterator[str]:
    """The address of a server that knows the samples (with times, closed by `# EOF`) of `exposition`."""
    (folder / "metrics.txt").write_text(exposition)
    data = folder / "data"
    blocks = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(folder / "metrics.txt"), str(data)]
    subprocess.run(blocks, check=True, capture_output=True, timeout=PATIENCE_S)
    (folder / "prometheus.yml").write_text("scrape_configs: []\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={data}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.retention.time=20y", "--log.level=error"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_ready(server, url)
        yield url
    finally:
        server.terminate()
        server.wait(PATIENCE_S)


def wait_ready(server: subprocess.Popen[bytes], url: str) -> None:
    """Until it answers queries."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            if HTTP.get(f"{url}/-/ready", timeout=1).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert server.poll() is None, "prometheus ended"
        assert time.monotonic() < deadline, "prometheus did not come up"
        time.sleep(0.1)

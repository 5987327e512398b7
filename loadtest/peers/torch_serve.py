"""TorchServe (Java front end, Python workers) with a handler for ONNX Runtime.

Settings: two workers of one thread each (one a core), batches of at most 16 that wait for at most 5 ms, a job queue
that holds every client, metrics in log mode as by default. Inference, management and metrics on loopback;
authorization by token off, since nothing else listens. Wants a Java runtime.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from loadtest.peers.contestant import Wire, tei_body
from loadtest.peers.model import MAX_ROWS, WORKERS, port_from_environment
from loadtest.peers.peer import Peer

PEER = Peer(
    name="TorchServe",
    packages=("ts", "model_archiver", "onnxruntime"),
    command=("-m", "loadtest.peers.torch_serve"),
    wire=Wire("/predictions/classifier", tei_body),
    programs=("java",),
    environment={"TEMP": "/tmp"},
)
HANDLER = Path(__file__).with_name("torch_serve_handler.py")


def configuration(port: int, other_ports: tuple[int, int]) -> str:
    """`config.properties`."""
    model = {
        "classifier": {
            "1.0": {
                "defaultVersion": True,
                "marName": "classifier.mar",
                "minWorkers": WORKERS,
                "maxWorkers": WORKERS,
                "batchSize": MAX_ROWS,
                "maxBatchDelay": 5,
                "responseTimeout": 60,
            }
        }
    }
    lines = {
        "inference_address": f"http://127.0.0.1:{port}",
        "management_address": f"http://127.0.0.1:{other_ports[0]}",
        "metrics_address": f"http://127.0.0.1:{other_ports[1]}",
        "disable_token_authorization": "true",
        "job_queue_size": "1000",
        "load_models": "classifier.mar",
        "models": json.dumps(model),
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def free_port() -> int:
    """A TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Pack the handler, then become TorchServe."""
    home = Path.cwd()
    store = home / "models"
    store.mkdir(exist_ok=True)
    pack = ["--model-name", "classifier", "--version", "1.0", "--handler", str(HANDLER), "--export-path", str(store)]
    binaries = Path(sys.executable).parent
    subprocess.run([binaries / "torch-model-archiver", *pack, "--force"], check=True, timeout=120)
    (home / "config.properties").write_text(configuration(port_from_environment(), (free_port(), free_port())))
    os.environ["PATH"] = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    # Its note of the process it started would stop a second TorchServe of this machine from starting.
    os.environ["TMPDIR"] = str(home)
    serve = ["--start", "--foreground", "--model-store", str(store), "--ts-config", str(home / "config.properties")]
    os.execv(binaries / "torchserve", ["torchserve", *serve, "--ncs", "--disable-token-auth"])


if __name__ == "__main__":
    main()

"""The wire contract is the public one, and the generated code is that of the .proto files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from server.rpc.proto import open_inference_pb2

PROTOS = Path(open_inference_pb2.__file__).parent


def fields_of(message: Any, prefix: str = "") -> dict[str, tuple[int, int, bool]]:
    """Number, wire type and repetition of each field of a message and of the messages in it."""
    found = {
        f"{prefix}{message.name}.{field.name}": (field.number, field.type, field.is_repeated)
        for field in message.fields
    }
    for nested in message.nested_types:
        found.update(fields_of(nested, f"{prefix}{message.name}."))
    return found


def test_names_numbers_and_types_are_those_of_the_public_protocol() -> None:
    ours, theirs = open_inference_pb2.DESCRIPTOR, service_pb2.DESCRIPTOR
    assert ours.package == theirs.package
    for name, message in ours.message_types_by_name.items():
        assert fields_of(message).items() <= fields_of(theirs.message_types_by_name[name]).items(), name
    service = theirs.services_by_name["GRPCInferenceService"]
    for method in ours.services_by_name["GRPCInferenceService"].methods:
        public = service.methods_by_name[method.name]
        assert method.input_type.full_name == public.input_type.full_name
        assert method.output_type.full_name == public.output_type.full_name


@pytest.mark.parametrize("name", ["open_inference", "predictor"])
def test_the_checked_in_code_is_what_make_protos_writes(name: str, tmp_path: Path) -> None:
    root = PROTOS.parents[2]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", f"--python_out={tmp_path}"]
    subprocess.run([*command, str(PROTOS / f"{name}.proto")], check=True, cwd=root, timeout=60)
    written = (tmp_path / "server/rpc/proto" / f"{name}_pb2.py").read_text()
    written = written.replace(
        "from google.protobuf import descriptor_pool as _descriptor_pool",
        "from server.rpc.proto.pool import POOL as _POOL",
    ).replace("_descriptor_pool.Default()", "_POOL")
    assert (PROTOS / f"{name}_pb2.py").read_text() == written

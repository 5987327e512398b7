"""Versions of the libraries that decide what compiling makes."""

from __future__ import annotations

import importlib.metadata

LIBRARIES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers", "numpy")


def library_versions() -> dict[str, str]:
    """Installed version by distribution name, without importing any; `absent` where there is none."""
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"

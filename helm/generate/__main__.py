"""`python -m helm.generate [FOLDER]`: writes the generated files of the chart (into FOLDER)."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

CHART = Path(__file__).parents[1] / "jouleserve"


def generated() -> dict[str, str]:
    """Path within the chart to content."""
    from helm.generate.boards import BOARDS
    from helm.generate.panels import to_json
    from helm.generate.schema import values_schema
    from server.pod import pod_environment

    environment = yaml.safe_dump(pod_environment(), sort_keys=True, width=200)
    return {
        "values.schema.json": json.dumps(values_schema(), indent=1) + "\n",
        "files/ray-environment.yaml": f"# Made by `python -m helm.generate` from server/pod.py.\n{environment}",
        **{f"dashboards/{name}.json": to_json(board) for name, board in BOARDS.items()},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write them all; says where."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    folder = Path(given[0]) if given else CHART
    tempfile.tempdir = "/tmp"  # that of the pods
    for name, content in generated().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        print(f"{path}: {len(content):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

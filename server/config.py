"""Reads the settings: defaults, then one YAML file, then the environment, then the command line; later wins.

`load` raises `SettingsError`, which lists every problem as `section.field: what is wrong; remedy`.
Environment variables are called `JOULESERVE_<SECTION>__<FIELD>`. The schema is `server.settings`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource
from pydantic_settings.exceptions import SettingsError as EnvironmentProblem

from server.config_problems import SettingsError, leaves, problems_of
from server.settings import ENV_PREFIX, Settings

__all__ = ["EffectiveValue", "LoadedSettings", "Settings", "SettingsError", "load", "nested"]

DEFAULT_FILE = Path("jouleserve.yaml")
# Variables with our prefix that belong to the compiler and the tests.
OTHER_VARIABLES = {"JOULESERVE_STORE", "JOULESERVE_WORK", "JOULESERVE_TEST_DATA"}


@dataclass(frozen=True)
class EffectiveValue:
    """One setting in force: dotted key, printable value (secrets masked), where it came from, what it
    trades."""

    key: str
    value: str
    origin: str
    description: str


@dataclass(frozen=True)
class LoadedSettings:
    """Settings with the origin of every value that is not a default."""

    settings: Settings
    origins: Mapping[str, str]

    def effective(self) -> list[EffectiveValue]:
        """Every setting in force, in the order of the sections."""
        dumped, usual = self.settings.model_dump(mode="json"), Settings().model_dump(mode="json")
        return [
            EffectiveValue(
                key,
                _show(_at(dumped, key)),
                self.origins.get(key, "default" if _at(dumped, key) == _at(usual, key) else "implied by others"),
                " ".join((field.description or "").split()),
            )
            for key, field in leaves(Settings)
        ]

    def explain(self) -> str:
        """The settings in force as commented YAML: value, origin, and what each trades."""
        lines: list[str] = []
        section = ""
        for row in self.effective():
            head, _, name = row.key.partition(".")
            if head != section:
                section = head
                lines += ["", f"{head}:"] if lines else [f"{head}:"]
            *parents, leaf = name.split(".")
            for depth, parent in enumerate(parents, 1):
                if (line := f"{'  ' * depth}{parent}:") not in lines:
                    lines.append(line)
            pad = "  " * (len(parents) + 1)
            lines += [f"{pad}# {row.description}", f"{pad}{leaf}: {row.value}  # {row.origin}"]
        return "\n".join(lines) + "\n"


def load(
    config: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    folder: Path | None = None,
) -> LoadedSettings:
    """Read the settings: `config` (or `jouleserve.yaml` in `folder`, if there), the environment, `overrides`.

    `overrides` maps dotted keys (`server.port`) to values. Raises SettingsError with every problem found.
    """
    path = config
    if path is None and (default := (folder or Path()) / DEFAULT_FILE).is_file():
        path = default
    origins: dict[str, str] = {}
    merged: dict[str, Any] = {}
    if path is not None:
        _overlay(merged, _read_yaml(path), origins, lambda _: f"file {path}")
    _overlay(merged, _read_env(), origins, lambda key: f"env {ENV_PREFIX}{key.upper().replace('.', '__')}")
    _overlay(merged, nested(overrides or {}), origins, lambda _: "command line")
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        raise SettingsError(problems_of(error, Settings, origins)) from None
    if problems := _missing_files(settings):
        raise SettingsError(problems)
    return LoadedSettings(settings, origins)


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Turn `{"a.b": 1}` into `{"a": {"b": 1}}`; the text `null` stands for none."""
    tree: dict[str, Any] = {}
    for key, value in dotted.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise SettingsError([f"{key}: '{parent}' is given a value of its own too; give one of the two"])
            node = child
        node[leaf] = None if value == "null" else value
    return tree


def _overlay(
    base: dict[str, Any],
    layer: Mapping[str, Any],
    origins: dict[str, str],
    origin: Callable[[str], str],
    prefix: str = "",
) -> None:
    """Lay `layer` over `base` in place and record where each value came from."""
    for name, value in layer.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            if not isinstance(base.get(name), dict):
                base[name] = {}
            _overlay(base[name], value, origins, origin, f"{key}.")
        else:
            base[name] = value
            origins[key] = origin(key)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError([f"config: {path} does not exist; give the path of a YAML settings file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"config: {path} cannot be read ({error}); give a readable UTF-8 file"]) from None
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise SettingsError([f"config: {path} is not YAML ({where}); mend it there"]) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError([f"config: {path} holds no mapping; write sections such as 'server:' with fields below"])
    # A section with every field commented out reads as null.
    return {str(name): {} if value is None else value for name, value in tree.items()}


def _read_env() -> dict[str, Any]:
    sections = {name.upper() for name in Settings.model_fields}
    strangers = [
        name
        for name in sorted(os.environ)
        if name.upper().startswith(ENV_PREFIX)
        and name.upper() not in OTHER_VARIABLES
        and ("__" not in name or _section_of(name) not in sections)
    ]
    if strangers:
        known = ", ".join(sorted(s.lower() for s in sections))
        raise SettingsError(
            [f"{n}: names no setting; write {ENV_PREFIX}<SECTION>__<FIELD>, sections are {known}" for n in strangers]
        )
    try:
        return dict(EnvSettingsSource(Settings)())
    except EnvironmentProblem as error:
        raise SettingsError([f"environment: {error}; set one field per variable, {ENV_PREFIX}SECTION__FIELD"]) from None


def _section_of(variable: str) -> str:
    return variable[len(ENV_PREFIX) :].split("__")[0].upper()


def _missing_files(settings: Settings) -> list[str]:
    grid = settings.grid
    files = {
        "grid.replay_path": (grid.replay_path, "give the path of a CSV or .csv.gz file"),
        "grid.replay_forecast_path": (grid.replay_forecast_path, "give the path of a CSV or .csv.gz file"),
        "grid.history_path": (grid.history_path, "give the path of a CSV or .csv.gz file"),
        "grid.secret_file": (grid.secret_file, "give the path of a file that holds the secret"),
        "energy.calibration": (settings.energy.calibration, "run `jouleserve calibrate` to write it"),
    }
    return [
        f"{name}: {path} does not exist; {remedy}"
        for name, (path, remedy) in files.items()
        if path is not None and not path.is_file()
    ]


def _at(tree: dict[str, Any], key: str) -> Any:
    for name in key.split("."):
        tree = tree[name]
    return tree


def _show(value: Any) -> str:
    return "null" if value is None else str(yaml.safe_dump(value, default_flow_style=True)).split("\n")[0]

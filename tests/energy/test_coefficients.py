from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import yaml

from energy.coefficients import DEFAULT_PATH, SECOND_HAND, CoefficientError, load_coefficients
from energy.procfs import CpuModel


def cpu(vendor: str, family: int, model: int, stepping: int = 1) -> CpuModel:
    return CpuModel(vendor, family, model, stepping, "")


def test_every_number_names_a_unit_and_a_dated_source() -> None:
    tree = yaml.safe_load(DEFAULT_PATH.read_text())
    numbers = [*tree["families"], tree["default"], tree["memory"]["watts_per_gib"], *tree["uncertainty"].values()]
    for entry in numbers:
        assert entry["unit"]
        assert tree["sources"][entry["source"]]["date"]


def test_each_source_says_when_it_was_compared_or_that_its_figures_are_second_hand() -> None:
    sources = yaml.safe_load(DEFAULT_PATH.read_text())["sources"]
    assert {key for key, row in sources.items() if row["checked"] == SECOND_HAND} == {"khan-2018", "davy-2021"}
    assert all(row["checked"] == SECOND_HAND or row["checked"] >= row["date"] for row in sources.values())
    assert load_coefficients().sources["davy-2021"].endswith("(2021-09-22, second-hand)")


def test_the_default_is_the_median_of_the_families() -> None:
    table = load_coefficients()
    families = {row.coefficients.family: row.coefficients for row in table.rows}.values()
    assert table.default.min_watts == pytest.approx(statistics.median(f.min_watts for f in families), abs=6e-4)
    assert table.default.max_watts == pytest.approx(statistics.median(f.max_watts for f in families), abs=6e-4)


@pytest.mark.parametrize(
    ("model", "family"),
    [
        (cpu("GenuineIntel", 6, 85, 4), "skylake"),
        (cpu("GenuineIntel", 6, 85, 7), "cascade-lake"),
        (cpu("GenuineIntel", 6, 106), "ice-lake"),
        (cpu("AuthenticAMD", 25, 17), "epyc-4th-gen"),
        (cpu("AuthenticAMD", 25, 1), "epyc-3rd-gen"),
        (cpu("arm-0x41", 8, 0xD40), "neoverse"),
        (cpu("SomebodyElse", 1, 1), "unknown"),
    ],
)
def test_a_processor_gets_its_own_family(model: CpuModel, family: str) -> None:
    assert load_coefficients().for_cpu(model).family == family


def test_a_family_may_be_named_and_a_wrong_name_lists_the_right_ones() -> None:
    assert load_coefficients().for_family("haswell").max_watts == 5.595
    with pytest.raises(CoefficientError, match="epyc-4th-gen"):
        load_coefficients().for_family("z80")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("unit: W/GiB", "unit: W", "memory.watts_per_gib.unit"),
        ("min_watts: 2.212", "min_watts: 9.9", "sandy-bridge"),
        ("source: ccf-method", "source: hearsay", "hearsay"),
        ("families:", "groups:", "families"),
    ],
)
def test_a_damaged_table_names_the_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    damaged = tmp_path / "coefficients.yaml"
    text = DEFAULT_PATH.read_text()
    assert old in text
    damaged.write_text(text.replace(old, new, 1))
    with pytest.raises(CoefficientError, match=message):
        load_coefficients(damaged)

from __future__ import annotations

import pytest

from energy.coefficients import load_coefficients
from energy.sci import HOURS_PER_YEAR, Hardware, assumed_hardware, score

SERVER = Hardware(1000.0, 4.0, 0.5, 0.5, "a maker")


def test_embodied_emissions_are_total_times_time_share_times_resource_share() -> None:
    assert SERVER.embodied_grams(HOURS_PER_YEAR) == pytest.approx(1_000_000 / 4 * 0.5)


def test_the_score_is_operational_and_embodied_over_the_functional_units() -> None:
    found = score(300.0, 0.1, SERVER, HOURS_PER_YEAR / 1000, 5)
    assert found is not None
    assert found.grams_per_unit == pytest.approx((300 + 125) / 5)
    # Independent errors: 30 g and 62.5 g of 425 g.
    assert found.relative_uncertainty == pytest.approx((30**2 + 62.5**2) ** 0.5 / 425)


def test_without_a_functional_unit_there_is_no_score() -> None:
    assert score(300.0, 0.1, SERVER, 1.0, 0) is None


def test_the_published_model_adds_processors_and_memory_to_a_base_server() -> None:
    found = assumed_hardware(load_coefficients(), 2, 116.0, 1.0)
    assert found.total_kg == pytest.approx(1000 + 100 + 139)
    assert "Davy" in found.source

"""Accuracy bounds, the cost fit, break-even and the CPU description."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.measure.accuracy import wilson_lower
from compile.measure.cpu import fit_cost, nonnegative_least_squares, this_cpu
from models.manifest import LatencyCell


@given(rows=st.integers(1, 5000), data=st.data())
def test_the_lower_bound_lies_below_the_share_and_above_zero(rows: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, rows))
    bound = wilson_lower(right, rows)
    assert 0.0 <= bound <= right / rows + 1e-12
    assert wilson_lower(right * 10, rows * 10) >= bound - 1e-12


def test_the_lower_bound_of_a_known_case() -> None:
    # 90 of 100: the score interval's one-sided 95 % bound solves |0.9 - p| = 1.645 * sqrt(p (1 - p) / 100).
    bound = wilson_lower(90, 100)
    assert (0.9 - bound) / (bound * (1 - bound) / 100) ** 0.5 == pytest.approx(1.6448536, abs=1e-6)


@given(
    fixed=st.floats(0, 1e6),
    linear=st.floats(1e3, 1e5),
    quadratic=st.floats(0, 100),
    rows=st.sampled_from([(1,), (4, 16)]),
)
def test_a_cost_without_noise_is_found_again(
    fixed: float, linear: float, quadratic: float, rows: tuple[int, ...]
) -> None:
    cells = [
        LatencyCell(rows=r, tokens=n, cpu_ms_per_text=(fixed + linear * n + quadratic * n * n) / 1e6)
        for r in rows
        for n in (8, 16, 32, 64, 128, 256)
    ]
    cost = fit_cost(cells)
    for cell in cells:
        assert cost.weight(cell.tokens) == pytest.approx(cell.cpu_ms_per_text * 1e6, rel=1e-4)


@given(st.lists(st.floats(0.01, 100), min_size=6, max_size=6))
def test_coefficients_are_never_negative(costs: list[float]) -> None:
    cells = [
        LatencyCell(rows=4, tokens=n, cpu_ms_per_text=c) for n, c in zip((8, 16, 32, 64, 128, 256), costs, strict=True)
    ]
    cost = fit_cost(cells)
    assert min(cost.fixed_ns, cost.linear_ns, cost.quadratic_ns) >= 0
    assert cost.weight(1) > 0


def test_least_squares_that_would_go_negative_stay_at_zero() -> None:
    columns = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert nonnegative_least_squares(columns, np.array([3.0, 2.0, 1.0])) == pytest.approx([2.0, 0.0])
    assert nonnegative_least_squares(columns, np.array([-1.0, -2.0, -3.0])) == pytest.approx([0.0, 0.0])


def test_break_even_counts_requests_until_compiling_is_paid_for() -> None:
    pytest.importorskip("torch")
    from compile.publish import break_even

    # 500 J spent; 20 - 8 = 12 J saved per 1,000 requests.
    assert break_even(500.0, 20.0, 8.0) == 41_667
    assert break_even(500.0, 8.0, 8.0) is None
    assert break_even(None, 20.0, 8.0) is None


@pytest.mark.parametrize(
    ("flags", "vnni", "reduce_range"),
    [("avx2 avx512f avx512_vnni", True, False), ("avx2 avx_vnni", True, False), ("avx2 avx512f", False, True)],
)
def test_seven_bit_weights_are_for_cpus_without_8_bit_dot_products(
    tmp_path: Path, flags: str, vnni: bool, reduce_range: bool
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\n")
    cpu = this_cpu(cpuinfo)
    assert (cpu.model, cpu.vnni, cpu.reduce_range) == ("Some CPU", vnni, reduce_range)
    assert cpu.flags == tuple(flag for flag in cpu.flags if flag in flags.split())

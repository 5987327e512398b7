from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy import attribution
from energy.attribution import (
    LATE_RECORD,
    NO_CPU_TIME,
    OTHER_PROCESSES,
    UNCLAIMED_DEVICE,
    Attribution,
    DomainEnergy,
    Window,
    attribute,
    largest_remainder,
)
from energy.domains import Domain

CPU = Domain("package", "package-0", "fake")
DRAM = Domain("dram", "package-0", "fake")
PSYS = Domain("psys", "psys", "fake", overlaps=True)
GPU = Domain("gpu", "gpu-0", "fake", on_cpu=False)
AMOUNT = st.integers(0, 10**13)

windows = st.builds(
    Window,
    domains=st.lists(
        st.builds(DomainEnergy, domain=st.sampled_from([CPU, DRAM, PSYS, GPU]), energy_uj=AMOUNT, idle_uj=AMOUNT),
        max_size=5,
    ),
    busy_cpu_ns=AMOUNT,
    serving_cpu_ns=AMOUNT,
    claims_cpu_ns=st.dictionaries(st.integers(0, 30), AMOUNT, max_size=12),
    late_cpu_ns=AMOUNT,
)


def check_the_law(window: Window[int]) -> Attribution[int]:
    """attributed + idle + overhead + other == measured, in integer microjoules, and no part is negative."""
    result = attribute(window)
    counted = [entry for entry in window.domains if not entry.domain.overlaps]
    assert [split.energy_uj for split in result.splits] == [entry.energy_uj for entry in counted]
    for split in result.splits:
        other_uj = sum(split.other_uj.values())
        attributed_uj = sum(split.attributed_uj.values())
        assert attributed_uj + split.idle_uj + split.overhead_uj + other_uj == split.energy_uj == split.parts_uj
        assert min([split.idle_uj, split.overhead_uj, *split.attributed_uj.values(), *split.other_uj.values()]) >= 0
    return result


@given(windows)
@settings(max_examples=2000)
def test_the_parts_add_up_to_the_meter_exactly(window: Window[int]) -> None:
    result = check_the_law(window)
    late = min(window.late_cpu_ns, window.serving_cpu_ns)
    claimed = sum(window.claims_cpu_ns.values())
    assert sum(result.excess_cpu_ns.values()) == max(claimed - (window.serving_cpu_ns - late), 0)
    for key, excess in result.excess_cpu_ns.items():
        assert 0 < excess <= window.claims_cpu_ns[key]


def rounds_down(amount: int, weights: Sequence[int]) -> list[int]:
    total = sum(weights) or 1
    return [amount * weight // total for weight in weights]


def rounds_up(amount: int, weights: Sequence[int]) -> list[int]:
    total = sum(weights) or 1
    return [-(-amount * weight // total) for weight in weights]


def forgets_one(amount: int, weights: Sequence[int]) -> list[int]:
    return [*largest_remainder(amount, weights)[:-1], 0]


@pytest.mark.parametrize("broken", [rounds_down, rounds_up, forgets_one])
def test_the_law_notices_a_split_that_is_broken(monkeypatch: pytest.MonkeyPatch, broken: object) -> None:
    window = Window([DomainEnergy(CPU, 100, 0)], 30, 20, {1: 7, 2: 4})
    check_the_law(window)
    monkeypatch.setattr(attribution, "largest_remainder", broken)
    with pytest.raises(AssertionError):
        check_the_law(window)


@given(AMOUNT, st.lists(AMOUNT, max_size=20))
def test_every_share_is_its_exact_quota_rounded_down_or_up(amount: int, weights: list[int]) -> None:
    shares = largest_remainder(amount, weights)
    total = sum(weights)
    if total == 0:
        assert shares == [0] * len(weights)
        return
    assert sum(shares) == amount
    for share, weight in zip(shares, weights, strict=True):
        assert share * total - total < amount * weight < share * total + total


def test_a_negative_amount_is_refused() -> None:
    with pytest.raises(ValueError):
        largest_remainder(-1, [1])
    with pytest.raises(ValueError, match="claims"):
        attribute(Window([], 1, 1, {"a": -1}))
    with pytest.raises(ValueError, match="domains"):
        attribute(Window([DomainEnergy(CPU, -1, 0)], 1, 1, {}))
    with pytest.raises(ValueError, match="CPU times"):
        attribute(Window([], -1, 1, {}))


def test_dynamic_energy_follows_cpu_time() -> None:
    window = Window([DomainEnergy(CPU, 1100, 100)], 100, 70, {"a": 30, "b": 20})
    (split,) = attribute(window).splits
    assert (split.idle_uj, split.overhead_uj) == (100, 200)
    assert dict(split.attributed_uj) == {"a": 300, "b": 200}
    assert dict(split.other_uj) == {OTHER_PROCESSES: 300}


def test_idle_never_exceeds_what_was_measured() -> None:
    (split,) = attribute(Window([DomainEnergy(CPU, 50, 80)], 10, 10, {"a": 10})).splits
    assert (split.idle_uj, split.parts_uj) == (50, 50)


def test_claims_beyond_the_serving_tree_are_scaled_and_the_excess_is_counted() -> None:
    result = attribute(Window([DomainEnergy(CPU, 1000, 0)], 100, 50, {"a": 60, "b": 40}))
    (split,) = result.splits
    assert dict(split.attributed_uj) == {"a": 300, "b": 200}
    assert dict(split.other_uj) == {OTHER_PROCESSES: 500}
    assert dict(result.excess_cpu_ns) == {"a": 30, "b": 20}


def test_a_serving_tree_busier_than_the_machine_takes_everything_and_no_more() -> None:
    (split,) = attribute(Window([DomainEnergy(CPU, 1000, 0)], 40, 50, {"a": 25})).splits
    assert (split.attributed_uj["a"], split.overhead_uj, dict(split.other_uj)) == (500, 500, {})


def test_a_late_replica_takes_its_share_out_of_overhead_not_out_of_others_claims() -> None:
    (split,) = attribute(Window([DomainEnergy(CPU, 1000, 0)], 100, 80, {"a": 30}, late_cpu_ns=40)).splits
    assert (split.attributed_uj["a"], split.overhead_uj) == (300, 100)
    assert dict(split.other_uj) == {LATE_RECORD: 400, OTHER_PROCESSES: 200}


def test_energy_without_cpu_time_or_of_an_unclaimed_device_has_a_reason() -> None:
    window: Window[str] = Window([DomainEnergy(CPU, 10, 4), DomainEnergy(GPU, 20, 5)], 0, 0, {})
    cpu, gpu = attribute(window).splits
    assert dict(cpu.other_uj) == {NO_CPU_TIME: 6}
    assert dict(gpu.other_uj) == {UNCLAIMED_DEVICE: 15}


def test_overlapping_domains_are_not_split_twice() -> None:
    result = attribute(Window([DomainEnergy(CPU, 10, 0), DomainEnergy(PSYS, 90, 0)], 5, 5, {"a": 5}))
    assert [split.domain for split in result.splits] == [CPU]


def test_a_gpu_is_split_by_who_kept_it_busy_and_not_by_cpu_time() -> None:
    window = Window(
        [DomainEnergy(GPU, 1100, 100)],
        busy_cpu_ns=50,
        serving_cpu_ns=50,
        claims_cpu_ns={"a": 50},
        device_claims={GPU.device: {"a": 20, "b": 30}},
        device_busy={GPU.device: 100},
    )
    (split,) = attribute(window).splits
    assert (split.idle_uj, dict(split.attributed_uj)) == (100, {"a": 200, "b": 300})
    assert dict(split.other_uj) == {OTHER_PROCESSES: 500}
    assert split.parts_uj == 1100


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.lists(st.integers(0, 10**6), max_size=5), st.integers(0, 10**7))
def test_a_gpus_parts_add_up_whatever_keeps_it_busy(energy: int, idle: int, claims: list[int], busy: int) -> None:
    owed = {str(index): claim for index, claim in enumerate(claims)}
    entry = DomainEnergy(GPU, energy, idle)
    window = Window([entry], 0, 0, {}, device_claims={GPU.device: owed}, device_busy={GPU.device: busy})
    (split,) = attribute(window).splits
    assert split.parts_uj == energy

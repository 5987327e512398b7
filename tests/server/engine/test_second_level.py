"""What is read from a shared cache is an answer, whole and unchanged, or nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.engine.second_level import decode_answer, encode_answer

rows = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40)


@given(rows, st.integers(0, 60_000), st.integers(0, 2**63), st.floats(0, 1e6))
def test_an_answer_survives_the_way_there_and_back(row: list[float], rank: int, cpu_ns: int, age_s: float) -> None:
    logits = np.array(row, dtype=np.float32)
    data = encode_answer(rank, logits, cpu_ns, 1e9)
    found = decode_answer(data, rank, len(row), 1e9 + age_s)
    assert found is not None
    assert found.logits.tolist() == logits.tolist()
    assert (found.rank, found.cpu_ns) == (rank, cpu_ns)
    assert abs(found.age_s - age_s) < 0.002


@given(rows, st.data())
def test_a_single_changed_byte_makes_it_nothing(row: list[float], data: st.DataObject) -> None:
    whole = bytearray(encode_answer(1, np.array(row, dtype=np.float32), 5, 1e9))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    assert decode_answer(bytes(whole), 1, len(row), 1e9) is None


@given(st.binary(max_size=200), st.integers(0, 40))
def test_other_bytes_are_nothing(data: bytes, labels: int) -> None:
    assert decode_answer(data, 0, labels, 0.0) is None


def test_an_answer_of_another_point_or_with_other_labels_or_not_finite_is_nothing() -> None:
    data = encode_answer(1, np.zeros(3, dtype=np.float32), 5, 0.0)
    assert decode_answer(data, 1, 3, 0.0) is not None
    assert decode_answer(data, 0, 3, 0.0) is None
    assert decode_answer(data, 1, 4, 0.0) is None
    poisonous = encode_answer(1, np.array([1, np.nan, 2], dtype=np.float32), 5, 0.0)
    assert decode_answer(poisonous, 1, 3, 0.0) is None

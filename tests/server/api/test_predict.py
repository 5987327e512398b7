"""Bodies of `/predict` are read in text-embeddings-inference's shape, and replies are written in it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.errors import ERRORS, BodyTooLarge, MalformedRequest, error_row
from server.api.predict import (
    FIELDS,
    PredictRequest,
    answer_headers,
    parse_predict,
    parse_quality,
    render_predictions,
)
from server.api.told import tell
from server.engine.engine import Answer
from server.engine.errors import BackendFailure, ClientGone, EmptyInput, EngineError, InputTooLarge
from server.engine.family import Family
from server.engine.tokenizer import Text
from server.shaping.policy import CLASSES

MOST_TEXTS = 64


def parse(body: Any) -> PredictRequest:
    return parse_predict(orjson.dumps(body), MOST_TEXTS)


@pytest.mark.parametrize(
    ("inputs", "texts", "batch"),
    [
        ("a", [Text("a")], False),
        (["a"], [Text("a")], False),
        (["a", "b"], [Text("a", "b")], False),
        ([["a"]], [Text("a")], True),
        ([["a"], ["b", "c"]], [Text("a"), Text("b", "c")], True),
        ([["a", "b"], ["c"]], [Text("a", "b"), Text("c")], True),
    ],
)
def test_inputs_are_a_text_a_pair_or_a_batch_of_them(inputs: Any, texts: list[Text], batch: bool) -> None:
    request = parse({"inputs": inputs})
    assert (request.texts, request.batch) == (texts, batch)


def test_without_flags_scores_are_probabilities_and_nothing_is_cut() -> None:
    request = parse({"inputs": "a"})
    assert (request.raw_scores, request.truncate) == (False, None)


@pytest.mark.parametrize(
    ("flags", "truncate"),
    [
        ({"truncate": True}, "right"),
        ({"truncate": True, "truncation_direction": "left"}, "left"),
        ({"truncate": True, "truncation_direction": "Left"}, "left"),
        ({"truncate": True, "truncation_direction": "Right"}, "right"),
        ({"truncation_direction": "left"}, None),
        ({"truncate": False, "truncation_direction": "left"}, None),
        ({"truncate": None}, None),
    ],
)
def test_a_direction_counts_only_together_with_truncate(flags: dict[str, Any], truncate: str | None) -> None:
    assert parse({"inputs": "a", **flags}).truncate == truncate


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{", "body: not JSON"),
        (b"\xff", "body: not JSON"),
        (b"[]", "body: not a JSON object"),
        (b"{}", "inputs: missing"),
        (b'{"inputs": null}', "inputs: must be"),
        (b'{"inputs": 5}', "inputs: must be"),
        (b'{"inputs": ["a", 5]}', "inputs: must be"),
        (b'{"inputs": ["a", "b", "c"]}', "inputs: must be"),
        (b'{"inputs": [["a"], "b"]}', r"inputs\[1\]: must be"),
        (b'{"inputs": [["a"], []]}', r"inputs\[1\]: must be"),
        (b'{"inputs": [["a", "b", "c"]]}', r"inputs\[0\]: must be"),
        (b'{"inputs": [{"text": "a"}]}', r"inputs\[0\]: must be"),
        (b'{"inputs": "a", "raw_score": true}', "raw_score: unknown field; known are inputs"),
        (b'{"inputs": "a", "raw_scores": 1}', "raw_scores: must be true or false"),
        (b'{"inputs": "a", "truncate": "yes"}', "truncate: must be true or false"),
        (b'{"inputs": "a", "truncation_direction": "up"}', "truncation_direction: must be 'left' or 'right'"),
        (b'{"inputs": "a", "truncation_direction": ["left"]}', "truncation_direction: must be"),
    ],
)
def test_what_is_wrong_is_named_with_its_field(body: bytes, named: str) -> None:
    with pytest.raises(MalformedRequest, match=f"^{named}"):
        parse_predict(body, MOST_TEXTS)


@pytest.mark.parametrize("body", [b"", b'{"inputs": []}'])
def test_nothing_to_classify_is_said_to_be_empty(body: bytes) -> None:
    with pytest.raises(EmptyInput):
        parse_predict(body, MOST_TEXTS)


DEEP = 200_000
HOSTILE = [
    b"[" * DEEP,
    b"[" * DEEP + b"]" * DEEP,
    b'{"inputs":' * DEEP,
    b'{"inputs": ' + b"[" * 500 + b'"a"' + b"]" * 500 + b"}",
    b'{"inputs": 1' + b"0" * 5_000 + b"}",
    b'{"inputs": 1e999999}',
    b'{"inputs": -1' + b"0" * 5_000 + b"e-5000}",
    b'{"inputs": NaN}',
    b'{"inputs": "\\ud800"}',
    b'{"inputs": "\\udc00\\ud800"}',
    b'{"\\ud800": 1, "inputs": "a"}',
    b'{"inputs": "\xed\xa0\x80"}',
    b'{"inputs": "\xff\xfe"}',
    b'\xff\xfe{\x00"\x00',
    b"\xef\xbb\xbf{}",
    b'{"inputs": "a\x00b"}',
    b"\x00",
    b'{"inputs": "a"} {"inputs": "b"}',
    b'{"' + b"x" * 100_000 + b'": 1, "inputs": "a"}',
]


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_body_is_malformed_and_nothing_worse(body: bytes) -> None:
    with pytest.raises(MalformedRequest) as error:
        parse_predict(body, MOST_TEXTS)
    assert len(str(error.value)) < 300


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)
near_misses = st.fixed_dictionaries({}, optional={name: anything | st.booleans() for name in sorted(FIELDS)})


def outcome(body: bytes) -> PredictRequest | int:
    """The request, or the status of the engine error."""
    try:
        return parse_predict(body, MOST_TEXTS)
    except EngineError as error:
        return error_row(error).http_status


@given(st.one_of(anything, near_misses).map(lambda value: json.dumps(value).encode()) | st.binary())
def test_any_body_is_a_request_or_an_engine_error(body: bytes) -> None:
    result = outcome(body)
    if isinstance(result, PredictRequest):
        assert result.texts
        assert result.batch or len(result.texts) == 1
    else:
        assert result in (400, 422)


@pytest.mark.parametrize("quality", CLASSES)
def test_the_class_is_read_whatever_its_case(quality: str) -> None:
    assert parse_quality(f" {quality.upper()} ".encode()) == quality


def test_without_a_class_a_request_is_standard() -> None:
    assert parse_quality(None) == "standard"


@given(st.binary().filter(lambda value: value.decode("latin-1").strip().lower() not in CLASSES))
def test_an_unknown_class_is_malformed(value: bytes) -> None:
    with pytest.raises(MalformedRequest, match="X-Quality"):
        parse_quality(value)


def answer(logits: list[float], point: str = "full", cache: Any = "miss", cpu_ns: int = 2_000_000) -> Answer:
    return Answer(np.array(logits, dtype=np.float32), f"v-{point}", point, "pin", cache, cpu_ns)


rows = st.lists(st.tuples(*[st.floats(-1e4, 1e4, width=32)] * 3), min_size=1, max_size=4)


@given(rows)
def test_scores_are_probabilities_of_every_label_best_first(family: Family, logits: list[tuple[float, ...]]) -> None:
    request = PredictRequest([Text("a")] * len(logits), True, False, None)
    results = orjson.loads(render_predictions(request, [answer(list(row)) for row in logits], family.manifest))
    assert len(results) == len(logits)
    for row, result in zip(logits, results, strict=True):
        scores = [one["score"] for one in result]
        assert sorted(one["label"] for one in result) == sorted(family.manifest.labels)
        assert abs(sum(scores) - 1) < 1e-9
        assert scores == sorted(scores, reverse=True)
        by_label = {one["label"]: one["score"] for one in result}
        best = max(by_label.values())
        assert by_label[family.manifest.labels[int(np.argmax(row))]] == best


@given(rows)
def test_raw_scores_are_the_logits_themselves(family: Family, logits: list[tuple[float, ...]]) -> None:
    request = PredictRequest([Text("a")] * len(logits), True, True, None)
    results = orjson.loads(render_predictions(request, [answer(list(row)) for row in logits], family.manifest))
    for row, result in zip(logits, results, strict=True):
        assert {one["label"]: one["score"] for one in result} == dict(zip(family.manifest.labels, row, strict=True))


def test_a_single_text_gets_one_list_and_a_batch_of_one_a_list_of_lists(family: Family) -> None:
    one = PredictRequest([Text("a")], False, False, None)
    batch = PredictRequest([Text("a")], True, False, None)
    single = orjson.loads(render_predictions(one, [answer([1, 0, 0])], family.manifest))
    assert orjson.loads(render_predictions(batch, [answer([1, 0, 0])], family.manifest)) == [single]
    assert isinstance(single[0], dict)


def test_headers_name_every_point_once_and_add_the_joules_up() -> None:
    answers = [answer([1], "full"), answer([1], "lite", "hit"), answer([1], "full")]
    headers = dict(answer_headers(tell(answers, 50.0, ("rapl", "estimated"), "0001-abc", 4.0)))
    assert headers[b"x-jouleserve-point"] == b"full,lite"
    assert headers[b"x-jouleserve-variant"] == b"v-full,v-lite"
    assert headers[b"x-jouleserve-cache"] == b"mixed"
    assert float(headers[b"x-jouleserve-joules"]) == pytest.approx(3 * 0.002 * 50)
    assert headers[b"x-jouleserve-joules-source"] == b"rapl+estimated"
    assert float(headers[b"x-jouleserve-joules-loaded"]) == pytest.approx(3 * 0.002 * 50 * 4)


def test_what_was_saved_adds_up_to_joules_as_what_was_spent_does() -> None:
    answers = [replace(answer([1]), saved_ns=saved_ns) for saved_ns in (6_000_000, 0, -1_000_000)]
    headers = dict(answer_headers(tell(answers, 50.0, ("rapl",), "0001-abc")))
    assert float(headers[b"x-jouleserve-saved-joules"]) == pytest.approx(0.005 * 50)
    more = dict(answer_headers(tell(answers[2:], 50.0, ("rapl",), "0001-abc")))
    assert float(more[b"x-jouleserve-saved-joules"]) == pytest.approx(-0.001 * 50)


def test_what_was_saved_is_absent_where_nothing_was_or_nothing_measures_it() -> None:
    nothing = dict(answer_headers(tell([answer([1])], 50.0, ("rapl",), "0001-abc")))
    unmeasured = dict(answer_headers(tell([replace(answer([1]), saved_ns=10**6)], None, (), "0001-abc")))
    assert b"x-jouleserve-saved-joules" not in nothing.keys() | unmeasured.keys()


def test_joules_are_absent_where_nothing_measures_them() -> None:
    headers = dict(answer_headers(tell([answer([1])], None, (), "0001-abc")))
    assert not any(b"joules-" in name or name.endswith(b"joules") for name in headers)
    unloaded = dict(answer_headers(tell([answer([1])], 50.0, ("rapl",), "0001-abc")))
    assert b"x-jouleserve-joules" in unloaded
    assert b"x-jouleserve-joules-loaded" not in unloaded


def test_every_engine_error_has_its_row_in_the_table() -> None:
    kinds = {*EngineError.__subclasses__(), BodyTooLarge, MalformedRequest}
    assert kinds - {ClientGone} == set(ERRORS)  # to a client that left nothing can be said


def test_an_error_of_an_unknown_kind_is_a_failure_of_the_backend() -> None:
    assert error_row(EngineError("new")) == ERRORS[BackendFailure]


def test_too_many_texts_are_refused_before_they_are_looked_at() -> None:
    inputs = [["a"]] * MOST_TEXTS + [5]
    with pytest.raises(InputTooLarge, match=r"inputs: 65 texts .* limit is 64"):
        parse({"inputs": inputs})
    assert len(parse({"inputs": inputs[:-1]}).texts) == MOST_TEXTS


def test_the_parsers_own_limit_of_nesting_is_told_in_words() -> None:
    with pytest.raises(MalformedRequest, match="nested too deeply"):
        parse_predict(b"[" * 100_000, MOST_TEXTS)

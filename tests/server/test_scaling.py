"""The number of replicas follows what their engines have in flight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from ray.serve.config import AutoscalingConfig

from server.scaling import IN_FLIGHT, autoscaling_config, by_requests_in_flight
from server.settings import ServerSettings


@dataclass
class Context:
    """What the policy looks at of Serve's context."""

    aggregated_metrics: Any
    config: AutoscalingConfig
    target_num_replicas: int = 2


def config(**changes: Any) -> AutoscalingConfig:
    made = autoscaling_config(ServerSettings(**{"max_replicas": 8, **changes}))
    assert made is not None
    return AutoscalingConfig(**made)


def test_without_a_maximum_the_number_is_fixed() -> None:
    assert autoscaling_config(ServerSettings(replicas=3)) is None


def test_serve_takes_the_bounds_the_target_and_the_policy_of_the_settings() -> None:
    made = config(replicas=2, target_requests_in_flight=10)
    assert (made.min_replicas, made.max_replicas, made.get_target_ongoing_requests()) == (2, 8, 10)
    assert made.policy.get_policy()(Context({IN_FLIGHT: {"a": 30.0}}, made)) == (3.0, {})


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=9), st.floats(0.5, 1e3))
def test_so_many_replicas_are_wanted_that_each_has_the_target_in_flight(flights: list[float], target: float) -> None:
    reported = {IN_FLIGHT: dict(enumerate(flights))}
    wanted, state = by_requests_in_flight(Context(reported, config(target_requests_in_flight=target)))
    assert wanted * target == pytest.approx(sum(flights))
    assert state == {}


@pytest.mark.parametrize("reported", [None, {}, {"other": {"a": 5.0}}, {IN_FLIGHT: {}}])
def test_as_long_as_nobody_has_reported_the_number_stays(reported: Any) -> None:
    assert by_requests_in_flight(Context(reported, config())) == (2, {})


def test_a_maximum_below_the_minimum_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValidationError, match=r"max_replicas: 1 is below server.replicas 3"):
        ServerSettings(replicas=3, max_replicas=1)

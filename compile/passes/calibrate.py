"""Temperatures, cascades and their front: chosen on validation texts, judged on test texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compile.artifact import Artifact
from compile.bootstrap import Flags, relative_accuracy_lower
from compile.cascade import (
    Answers,
    Logits,
    Point,
    added,
    choose,
    confidence,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    rate,
)
from compile.errors import RequirementFailed
from compile.graph.sessions import open_session
from compile.measure.accuracy import graph_logits, wilson_lower
from compile.measure.cpu import served_cpu_seconds
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.evaluate import PREDICTIONS
from compile.passes.export import FILE
from compile.passes.versions import VERSIONS
from compile.recipe import MeasureSpec
from compile.specs.calibrate import CalibrateSpec
from compile.text import Encoded

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

VALIDATION = "validation.npz"
_ROUNDING_NATS = 1e-9


def calibrate_inputs(
    data: Artifact, measured: Artifact, made: Mapping[str, tuple[Artifact | None, Artifact | None]]
) -> dict[str, Artifact]:
    """The inputs of `Calibrate` by role; `made`: graph and evaluation of every variant that passed, by its name."""
    inputs = {"data": data, "measured": measured}
    for name, (graph, evaluation) in made.items():
        assert graph is not None
        assert evaluation is not None
        inputs |= {_graph(name): graph, _evaluation(name): evaluation}
    return inputs


def _graph(name: str) -> str:
    return f"graph/{name}"


def _evaluation(name: str) -> str:
    return f"evaluation/{name}"


class Calibrate(Pass):
    """graphs and evaluations of all variants, measured costs -> temperatures, cascades rated and judged.

    Temperatures, thresholds and the front come from validation texts alone. What is chosen is then run as a server
    would: the first variant on all test texts, the second on those that escalate, batched among themselves (int8
    answers depend on batch-mates, and unsure texts may be longer than others), its CPU time beside that of the second
    variant alone.
    """

    name = "calibrate"
    version = VERSIONS["calibrate"]

    def __init__(
        self, spec: CalibrateSpec, measure: MeasureSpec, names: Sequence[str], reference: str, seed: int
    ) -> None:
        """`names`: the variants, full quality first; `reference`: the fp32 teacher; `measure`: how costs were taken."""
        self.spec, self.measure, self.names, self.reference, self.seed = spec, measure, tuple(names), reference, seed

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        return {
            **self.spec.model_dump(),
            "measure": self.measure.model_dump(),
            "names": list(self.names),
            "reference": self.reference,
            "seed": self.seed,
        }

    def requires(self, inputs: Inputs, context: Context) -> None:
        """Confidence needs labels to choose from."""
        if len(context.dataset.labels) < 2:
            raise RequirementFailed(
                "calibrate: a task with one output has no confidence. Remedy: calibrate.enabled: false."
            )

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Calibrate, rate, choose, judge."""
        truth = context.dataset.validation.labels
        logits = self._validation_logits(inputs, context)
        kept: dict[str, Any] = {f"logits/{name}": found for name, found in logits.items()}
        np.savez(out / VALIDATION, **kept)
        teacher_right = logits[self.reference].argmax(-1) == truth
        temperatures = {name: fit_temperature(logits[name], truth) for name in self.names}
        costs = inputs["measured"].meta["variants"]
        answers = [
            Answers(name, logits[name], costs[name]["cpu_seconds_per_1k"], costs[name]["joules_per_1k"])
            for name in self.names
        ]
        points = rate(answers, temperatures, truth, teacher_right, self.seed)
        chosen, why = choose(points, self.names[0], self.spec.max_points)
        judge = _Judge(self, inputs, context, temperatures)
        return {
            "temperatures": {name: judge.calibration(name, logits[name]) for name in self.names},
            "rated": [asdict(point) for point in points],
            "left_out": why,
            "judged": judge.cascades([point for point in chosen if point.first is not None]),
        }

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """No temperature makes the validation texts less likely."""
        added_nats = max((t["nll_after"] - t["nll_before"] for t in meta["temperatures"].values()), default=0.0)
        return [Gate("nats that calibrating adds", added_nats, _ROUNDING_NATS, at_most=True)]

    def _validation_logits(self, inputs: Inputs, context: Context) -> dict[str, Logits]:
        made = {}
        everyone = (self.reference, *self.names)
        for at, name in enumerate(everyone):
            context.progress(at / (2 * len(everyone)), f"validation answers of {name}")
            session = open_session(inputs[_graph(name)].path / FILE, context.threads)
            made[name] = graph_logits(session, context.validation, context.pad, self.measure.batch_rows)
        return made


class _Judge:
    """Looks at the test split, and chooses nothing."""

    def __init__(self, a_pass: Calibrate, inputs: Inputs, context: Context, temperatures: Mapping[str, float]) -> None:
        self._pass, self._inputs, self._context, self._temperatures = a_pass, inputs, context, temperatures
        self._truth = context.dataset.test.labels
        self._logits = {
            name: np.load(inputs[_evaluation(name)].path / PREDICTIONS)["logits"]
            for name in (a_pass.reference, *a_pass.names)
        }
        self._teacher_right = self._right(self._logits[a_pass.reference])

    def _right(self, logits: Logits) -> Flags:
        flags: Flags = logits.argmax(-1) == self._truth
        return flags

    def calibration(self, name: str, validation: Logits) -> dict[str, float]:
        """Likelihood and calibration error before and after, on validation texts (fitted) and test texts (judged)."""
        temperature, truth, logits = (
            self._temperatures[name],
            self._context.dataset.validation.labels,
            self._logits[name],
        )
        right, judged = validation.argmax(-1) == truth, self._right(logits)
        return {
            "temperature": temperature,
            "nll_before": negative_log_likelihood(validation, truth, 1.0),
            "nll_after": negative_log_likelihood(validation, truth, temperature),
            "ece_before": expected_calibration_error(confidence(validation, 1.0), right),
            "ece_after": expected_calibration_error(confidence(validation, temperature), right),
            "test_ece_before": expected_calibration_error(confidence(logits, 1.0), judged),
            "test_ece_after": expected_calibration_error(confidence(logits, temperature), judged),
        }

    def _bounds(self, right: Flags) -> dict[str, float]:
        teacher = float(self._teacher_right.mean())
        count = int(right.sum())
        return {
            "accuracy": count / len(right),
            "accuracy_lower": wilson_lower(count, len(right)),
            "relative_accuracy": count / len(right) / teacher if teacher else 0.0,
            "relative_accuracy_lower": relative_accuracy_lower(right, self._teacher_right, self._pass.seed),
        }

    def cascades(self, points: Sequence[Point]) -> dict[str, dict[str, Any]]:
        """Accuracy and cost of every chosen cascade, by name, as run on the test texts."""
        costs = self._inputs["measured"].meta["variants"]
        shares = self._cost_shares(points)
        made = {}
        for at, point in enumerate(points):
            self._context.progress(0.75 + at / (4 * len(points)), f"test answers of {point.name}")
            assert point.first is not None
            rows = self._escalated(point)
            right = self._right(self._logits[point.first])
            if rows:
                session = open_session(self._inputs[_graph(point.variant)].path / FILE, self._context.threads)
                texts = _take(self._context.test, rows)
                answers = graph_logits(session, texts, self._context.pad, self._pass.measure.batch_rows)
                right[rows] = answers.argmax(-1) == self._truth[rows]
            first, second, share = costs[point.first], costs[point.variant], shares[point.name]
            made[point.name] = {
                **self._bounds(right),
                "test_escalated_share": len(rows) / len(right),
                "share_of_second_cost": share,
                "cpu_seconds_per_1k": first["cpu_seconds_per_1k"] + share * second["cpu_seconds_per_1k"],
                "joules_per_1k": added(first["joules_per_1k"], share, second["joules_per_1k"]),
            }
        return made

    def _escalated(self, point: Point) -> list[int]:
        assert point.first is not None
        unsure = confidence(self._logits[point.first], point.temperature) < point.threshold
        return [int(row) for row in np.flatnonzero(unsure)]

    def _cost_shares(self, points: Sequence[Point]) -> dict[str, float]:
        """CPU time of the second variant on the texts that escalate / on all of them, by point, in turns."""
        everything = range(len(self._context.test))
        rows = {point.name: self._escalated(point) for point in points}
        sessions = {p.variant: open_session(self._inputs[_graph(p.variant)].path / FILE) for p in points}
        whole: dict[str, list[float]] = {variant: [] for variant in sessions}
        parts: dict[str, list[float]] = {point.name: [] for point in points}
        repeats = self._pass.measure.repeats
        for at in range(repeats):
            self._context.progress(0.5 + at / (4 * repeats), "cost of what escalates")
            for variant, session in sessions.items():
                whole[variant].append(self._spent(session, everything))
            for point in points:
                parts[point.name].append(self._spent(sessions[point.variant], rows[point.name]))
        return {point.name: min(parts[point.name]) / min(whole[point.variant]) for point in points}

    def _spent(self, session: InferenceSession, rows: Sequence[int]) -> float:
        """CPU-seconds of answering the rows in batches as served, scaled up from a sample where there are many."""
        context, measure = self._context, self._pass.measure
        if not rows:
            return 0.0
        texts = _take(context.test, rows[:: -(-len(rows) // measure.texts)])
        per_1k = served_cpu_seconds({"second": session}, texts, context.pad, measure.batch_rows, 1)["second"]
        return per_1k * len(rows) / 1000


def _take(encoded: Encoded, rows: Sequence[int]) -> Encoded:
    types = None if encoded.types is None else tuple(encoded.types[row] for row in rows)
    return Encoded(tuple(encoded.ids[row] for row in rows), types)

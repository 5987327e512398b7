"""The compile line of one recipe: which passes run, in which order, on what. Imports torch (see `pipeline`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from compile.artifact import Artifact, Spent
from compile.errors import CompileError, FloorError, GateFailed, RequirementFailed
from compile.measure.cpu import this_cpu
from compile.passes.answer import Answer
from compile.passes.average import Average
from compile.passes.base import Inputs, Pass
from compile.passes.calibrate import Calibrate, calibrate_inputs
from compile.passes.distil import Distil
from compile.passes.drop_layers import DropLayers
from compile.passes.evaluate import Evaluate
from compile.passes.export import Export
from compile.passes.finetune import Finetune
from compile.passes.low_rank import LowRank
from compile.passes.measure import Measure
from compile.passes.probe_forms import ProbeForms
from compile.passes.prune_units import PruneUnits
from compile.passes.qat import Qat
from compile.passes.quantize import Quantize
from compile.passes.reconstruct import Reconstruct
from compile.passes.teach import Teach
from compile.passes.time_widths import TimeWidths
from compile.progress import Work, past_seconds
from compile.recipe import REFERENCE, Recipe, VariantSpec
from compile.runner import Runner
from compile.steps import Handed
from models.manifest import TargetCpu

ALL = "all variants"
# Recipe field of a floor -> the figure of an evaluation that it limits.
_FIGURES = {"min_relative_accuracy": "relative_accuracy_lower", "quantize.min_agreement": "agreement"}
_SHARED: Mapping[Handed, str] = {"lessons": "teach", "widths": "time_widths"}
# Pass name in a recipe -> the pass that does it, of its settings and the recipe.
MAKE: Mapping[str, Callable[[Any, Recipe], Pass]] = {
    "drop_layers": lambda spec, recipe: DropLayers(spec, recipe.seed),
    "prune_units": lambda spec, recipe: PruneUnits(spec, recipe.seed),
    "reconstruct": lambda spec, recipe: Reconstruct(spec, recipe.seed),
    "low_rank": lambda spec, recipe: LowRank(spec, recipe.seed, this_cpu(), recipe.measure.batch_rows),
    "qat": lambda spec, recipe: Qat(spec, recipe.seed),
    "finetune": lambda spec, recipe: Finetune(spec, recipe.pooling, recipe.seed, recipe.max_tokens),
    "distil": lambda spec, recipe: Distil(spec, recipe.seed),
}


@dataclass
class Candidate:
    """One variant on its way: its graph and evaluation, the artifacts it is made of, or why it failed."""

    name: str
    graph: Artifact | None = None
    evaluation: Artifact | None = None
    fp32_evaluation: Artifact | None = None
    lineage: list[Artifact] = field(default_factory=list)
    reason: str | None = None

    def keep(self, made: Artifact | None) -> None:
        """Remember what a pass made that missed a gate: it cost what it cost, and what it is worth can be measured."""
        if made is None:
            return
        if made.pass_name == Evaluate.name:
            self.evaluation = made
            return
        self.lineage.append(made)
        if made.pass_name == Quantize.name:
            self.graph = made

    @property
    def spent(self) -> Spent:
        """What making it cost, the teacher it comes from included."""
        total = Spent(0.0, 0.0)
        for artifact in self.lineage:
            total = total + artifact.spent
        return total


@dataclass
class Outcome:
    """All candidates of a run, the fp32 teacher first, and the joint measurement of those that came to a graph."""

    candidates: list[Candidate]
    measured: Artifact
    form_costs: Mapping[str, Any]
    calibrated: Artifact | None = None
    """Temperatures and cascades, unless the recipe wants none or answers are real numbers."""
    answered: Artifact | None = None
    """What answers cost from the text on."""

    @property
    def passed(self) -> list[Candidate]:
        """Candidates that met every gate."""
        return [c for c in self.candidates if c.reason is None]


class Line:
    """Runs a recipe's passes. A gate that fails drops its variant; a failing teacher or first variant ends the run."""

    def __init__(self, recipe: Recipe, runner: Runner, cpu: TargetCpu, data: Artifact, base: Artifact) -> None:
        self.recipe, self.runner, self.cpu, self.data, self.base = recipe, runner, cpu, data, base

    def run(self) -> Outcome:
        """Compile every variant; raises CompileError if full quality cannot be had."""
        recipe = self.recipe
        self.runner.reporter.planned(plan(recipe), past_seconds(self.runner.cache))
        stages = self.teacher_stages()
        teacher = stages[-1]
        probe = ProbeForms(
            recipe.export.forms,
            recipe.export.opset,
            self.cpu.reduce_range,
            recipe.measure.repeats,
            self.cpu.model,
            recipe.measure.batch_rows,
        )
        forms = self._run("teacher", probe, {"data": self.data, "teacher": teacher})
        reference = Candidate(REFERENCE, lineage=[*stages, forms])
        reference.graph = self._export(reference, teacher, forms)
        reference.evaluation = self._evaluate(reference, reference.graph, {}, (recipe.quantize.min_agreement, 0.0))
        candidates, failures = [reference], dict[str, GateFailed | RequirementFailed]()
        for spec in recipe.variants:
            candidate = Candidate(spec.name, lineage=list(stages))
            try:
                self._compile(candidate, spec, teacher, forms, reference)
            except (GateFailed, RequirementFailed) as error:
                if spec is recipe.variants[0] and not _misses_floor(error):
                    raise
                candidate.reason = str(error)
                candidate.keep(error.made if isinstance(error, GateFailed) else None)
                failures[spec.name] = error
                self.runner.reporter.dropped(spec.name, candidate.reason)
            candidates.append(candidate)
        if recipe.variants[0].name in failures:
            raise _nothing_meets(failures, candidates)
        self._evaluate_failed(candidates, reference)
        graphs = {c.name: c.graph for c in candidates if c.graph is not None}
        measure = Measure(recipe.measure, recipe.max_tokens, self.cpu.model)
        measured = self._run(ALL, measure, {"data": self.data, **graphs}, graphs)
        outcome = Outcome(candidates, measured, forms.meta["cpu_seconds_per_1k"])
        outcome.calibrated = self._calibrate(outcome)
        served = {c.name: graphs[c.name] for c in outcome.passed if c.name != REFERENCE}
        answer = Answer(recipe.measure, recipe.max_tokens, self.cpu.model)
        outcome.answered = self._run(ALL, answer, {"data": self.data, **served}, served)
        return outcome

    def _evaluate_failed(self, candidates: list[Candidate], reference: Candidate) -> None:
        """Judge the graphs that missed a gate before their answers were, so that it is known what was left out."""
        for candidate in candidates:
            graph, fp32, teacher = candidate.graph, candidate.fp32_evaluation, reference.evaluation
            if candidate.evaluation is None and graph is not None and fp32 is not None and teacher is not None:
                with suppress(GateFailed):  # answers that are no numbers
                    references = {"fp32": fp32, "teacher": teacher}
                    candidate.evaluation = self._evaluate(candidate, graph, references, (0.0, 0.0))

    def teacher_stages(self) -> list[Artifact]:
        """The teacher after each stage of its training, the finished one last."""
        recipe = self.recipe
        made: list[Artifact] = []
        for spec in recipe.finetune:
            begin = {"model": made[-1]} if made else {"base": self.base}
            stage = Finetune(spec, recipe.pooling, recipe.seed, recipe.max_tokens)
            made.append(self._run("teacher", stage, {"data": self.data, **begin}))
        if recipe.average_stages:
            stages = {f"stage {at}": stage for at, stage in enumerate(made)}
            made.append(self._run("teacher", Average(), {"data": self.data, **stages}))
        return made

    def _calibrate(self, outcome: Outcome) -> Artifact | None:
        recipe = self.recipe
        if not recipe.calibrates:
            return None
        made = {c.name: (c.graph, c.evaluation) for c in outcome.passed}
        names = [name for name in made if name != REFERENCE]
        calibrate = Calibrate(recipe.calibrate, recipe.measure, names, REFERENCE, recipe.seed)
        return self._run("all variants", calibrate, calibrate_inputs(self.data, outcome.measured, made))

    def _compile(
        self, candidate: Candidate, spec: VariantSpec, teacher: Artifact, forms: Artifact, reference: Candidate
    ) -> None:
        model, fp32_graph, fp32_evaluation = teacher, reference.graph, reference.evaluation
        if spec.model_steps:
            model = self._student(candidate, spec, teacher, forms)
            candidate.lineage.append(forms)
            fp32_graph = self._export(candidate, model, forms)
            fp32_evaluation = self._evaluate(candidate, fp32_graph, {}, (self.recipe.quantize.min_agreement, 0.0))
        elif fp32_graph is not None:
            candidate.lineage += [forms, fp32_graph]
        assert fp32_graph is not None
        assert fp32_evaluation is not None
        assert reference.evaluation is not None
        candidate.fp32_evaluation = fp32_evaluation
        settings = spec.quantize_spec(self.recipe.quantize)
        floor = spec.min_relative_accuracy
        quantize = Quantize(settings, self.recipe.seed, self.cpu.reduce_range, self.recipe.measure.batch_rows, floor)
        candidate.graph = self._run(spec.name, quantize, {"data": self.data, "graph": fp32_graph, "teacher": teacher})
        candidate.lineage.append(candidate.graph)
        references = {"fp32": fp32_evaluation, "teacher": reference.evaluation}
        floors = (settings.min_agreement, floor)
        candidate.evaluation = self._evaluate(candidate, candidate.graph, references, floors)

    def _student(self, candidate: Candidate, spec: VariantSpec, teacher: Artifact, forms: Artifact) -> Artifact:
        """Run the variant's passes in their order; what each one is handed says `compile.steps`."""
        have: dict[Handed, Artifact] = {"data": self.data, "teacher": teacher, "model": teacher, "uncut": teacher}
        for wanted in _shared(spec):
            have[wanted] = self._run("teacher", *self._shared_pass(wanted, teacher, forms))
            candidate.lineage.append(have[wanted])
        for step in spec.model_steps:
            inputs = {role: have[handed] for role, handed in step.roles.items()}
            made = self._run(spec.name, MAKE[step.name](step.spec, self.recipe), inputs)
            if step.name == "prune_units":
                have["uncut"] = have["model"]
            have["model"] = made
            candidate.lineage.append(made)
        return have["model"]

    def _shared_pass(self, wanted: Handed, teacher: Artifact, forms: Artifact) -> tuple[Pass, Inputs]:
        inputs = {"data": self.data, "teacher": teacher}
        if wanted == "lessons":
            return Teach(), inputs
        recipe, cpu = self.recipe, self.cpu
        export, measured = recipe.export, recipe.measure
        timed = TimeWidths(export.opset, cpu.reduce_range, measured.repeats, cpu.model, measured.batch_rows)
        return timed, {**inputs, "forms": forms}

    def _export(self, candidate: Candidate, model: Artifact, forms: Artifact) -> Artifact:
        inputs = {"data": self.data, "model": model, "forms": forms}
        graph = self._run(candidate.name, Export(self.recipe.export.opset), inputs)
        candidate.lineage.append(graph)
        return graph

    def _evaluate(
        self, candidate: Candidate, graph: Artifact, references: Inputs, floors: tuple[float, float]
    ) -> Artifact:
        """`floors`: (agreement with fp32, relative accuracy), judged where `references` are given."""
        evaluate = Evaluate(self.recipe.measure.batch_rows, *floors)
        return self._run(candidate.name, evaluate, {"data": self.data, "graph": graph, **references})

    def _run(self, label: str, a_pass: Pass, inputs: Inputs, given: Inputs | None = None) -> Artifact:
        return self.runner.run(label, a_pass, inputs, given)


def plan(recipe: Recipe) -> list[Work]:
    """Every (label, pass name) that a run of the recipe does if no variant fails, in order."""
    works = [("teacher", "finetune") for _ in recipe.finetune]
    works += [("teacher", "average")] * recipe.average_stages
    works += [("teacher", "probe_forms"), (REFERENCE, "export"), (REFERENCE, "evaluate")]
    for spec in recipe.variants:
        works += [work for wanted in _shared(spec) if (work := ("teacher", _SHARED[wanted])) not in works]
        made = [step.name for step in spec.model_steps]
        names = [*made, "export", "evaluate"] if made else []
        works += [(spec.name, name) for name in (*names, "quantize", "evaluate")]
    return [*works, (ALL, "measure"), *([(ALL, "calibrate")] if recipe.calibrates else []), (ALL, "answer")]


def _shared(spec: VariantSpec) -> list[Handed]:
    """What the variant's passes are handed that is made once for all variants."""
    handed = {handed for step in spec.model_steps for handed in step.roles.values()}
    return [wanted for wanted in _SHARED if wanted in handed]


def _misses_floor(error: Exception) -> bool:
    return isinstance(error, GateFailed) and error.floor is not None


def _nothing_meets(failures: Mapping[str, CompileError], candidates: list[Candidate]) -> FloorError:
    """The first variant misses a floor: say by how much, and which candidate came nearest.

    Nothing may be published without full quality; the other variants were made to see what is near, and are cached.
    """
    first = next(iter(failures))
    misses = {name: e.floor for name, e in failures.items() if isinstance(e, GateFailed) and e.floor is not None}
    wanted = misses[first]
    reached = {name: miss.measured for name, miss in misses.items() if miss.field == wanted.field}
    for candidate in candidates:
        if candidate.reason is None and candidate.evaluation is not None and candidate.name != REFERENCE:
            reached[candidate.name] = candidate.evaluation.meta[_FIGURES[wanted.field]]
    nearest = max(reached, key=lambda name: reached[name])
    field = wanted.field if "." in wanted.field else f"variants.0.{wanted.field}"
    problem = (
        f"no candidate for '{first}' meets the floor: {wanted.described}; nothing is published. "
        f"The nearest miss is '{nearest}' with {reached[nearest]:.4f} of {wanted.limit:.4f}"
    )
    return FloorError(field, problem, "lower the floor to what was reached, or train longer or on more rows")

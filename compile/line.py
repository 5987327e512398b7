"""The compile line of one recipe: which passes run, in which order, on what. Imports torch (see `pipeline`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compile.errors import GateFailed, RequirementFailed
from compile.passes.base import Artifact, Inputs, Pass, Spent
from compile.passes.distil import Distil
from compile.passes.drop_layers import DropLayers
from compile.passes.evaluate import Evaluate
from compile.passes.export import Export
from compile.passes.finetune import Finetune
from compile.passes.measure import Measure
from compile.passes.probe_forms import ProbeForms
from compile.passes.quantize import Quantize
from compile.passes.teach import Teach
from compile.recipe import Recipe, VariantSpec
from compile.runner import Runner
from models.manifest import TargetCpu

REFERENCE = "fp32"


@dataclass
class Candidate:
    """One variant on its way: its graph and evaluation, the artifacts it is made of, or why it failed."""

    name: str
    graph: Artifact | None = None
    evaluation: Artifact | None = None
    fp32_evaluation: Artifact | None = None
    lineage: list[Artifact] = field(default_factory=list)
    reason: str | None = None

    @property
    def spent(self) -> Spent:
        """What making it cost, the teacher it comes from included."""
        total = Spent(0.0, 0.0)
        for artifact in self.lineage:
            total = total + artifact.spent
        return total


@dataclass
class Outcome:
    """All candidates of a run, the fp32 teacher first, and the joint measurement of those that passed."""

    candidates: list[Candidate]
    measured: Artifact
    form_costs: Mapping[str, Any]

    @property
    def passed(self) -> list[Candidate]:
        """Candidates that met every gate."""
        return [c for c in self.candidates if c.reason is None]


class Line:
    """Runs a recipe's passes. A gate that fails drops its variant; a failing teacher or first variant ends the run."""

    def __init__(self, recipe: Recipe, runner: Runner, cpu: TargetCpu, data: Artifact, base: Artifact) -> None:
        self.recipe, self.runner, self.cpu, self.data, self.base = recipe, runner, cpu, data, base
        self._lessons: Artifact | None = None

    def run(self) -> Outcome:
        """Compile every variant; raises CompileError if full quality cannot be had."""
        recipe = self.recipe
        tuned = Finetune(recipe.finetune, recipe.pooling, recipe.seed, recipe.max_tokens)
        teacher = self._run("teacher", tuned, {"data": self.data, "base": self.base})
        probe = ProbeForms(
            recipe.export.forms, recipe.export.opset, self.cpu.reduce_range, recipe.measure.repeats, self.cpu.model
        )
        forms = self._run("teacher", probe, {"data": self.data, "teacher": teacher})
        reference = Candidate(REFERENCE, lineage=[teacher, forms])
        reference.graph = self._export(reference, teacher, forms)
        reference.evaluation = self._evaluate(reference, reference.graph, {}, 0.0)
        candidates = [reference]
        for spec in recipe.variants:
            candidate = Candidate(spec.name, lineage=[teacher])
            try:
                self._compile(candidate, spec, teacher, forms, reference)
            except (GateFailed, RequirementFailed) as error:
                if spec is recipe.variants[0]:
                    raise
                candidate.reason = str(error)
            candidates.append(candidate)
        graphs = {c.name: c.graph for c in candidates if c.reason is None and c.graph is not None}
        measure = Measure(recipe.measure, recipe.max_tokens, self.cpu.model)
        measured = self._run("all variants", measure, {"data": self.data, **graphs}, graphs)
        return Outcome(candidates, measured, forms.meta["cpu_seconds_per_1k"])

    def _compile(
        self, candidate: Candidate, spec: VariantSpec, teacher: Artifact, forms: Artifact, reference: Candidate
    ) -> None:
        model, fp32_graph, fp32_evaluation = teacher, reference.graph, reference.evaluation
        if spec.layers is not None:
            model = self._student(candidate, spec, teacher)
            candidate.lineage.append(forms)
            fp32_graph = self._export(candidate, model, forms)
            fp32_evaluation = self._evaluate(candidate, fp32_graph, {}, 0.0)
        elif fp32_graph is not None:
            candidate.lineage += [forms, fp32_graph]
        assert fp32_graph is not None
        assert fp32_evaluation is not None
        assert reference.evaluation is not None
        candidate.fp32_evaluation = fp32_evaluation
        quantize = Quantize(self.recipe.quantize, self.cpu.reduce_range, self.recipe.measure.batch_rows)
        candidate.graph = self._run(spec.name, quantize, {"data": self.data, "graph": fp32_graph})
        candidate.lineage.append(candidate.graph)
        references = {"fp32": fp32_evaluation, "teacher": reference.evaluation}
        floor = spec.min_relative_accuracy
        candidate.evaluation = self._evaluate(candidate, candidate.graph, references, floor)

    def _student(self, candidate: Candidate, spec: VariantSpec, teacher: Artifact) -> Artifact:
        assert spec.layers is not None
        if self._lessons is None:
            self._lessons = self._run("teacher", Teach(), {"data": self.data, "teacher": teacher})
        short = self._run(spec.name, DropLayers(spec.layers), {"teacher": teacher})
        inputs = {"data": self.data, "student": short, "lessons": self._lessons}
        student = self._run(spec.name, Distil(spec.distil, self.recipe.seed), inputs)
        candidate.lineage += [self._lessons, short, student]
        return student

    def _export(self, candidate: Candidate, model: Artifact, forms: Artifact) -> Artifact:
        inputs = {"data": self.data, "model": model, "forms": forms}
        graph = self._run(candidate.name, Export(self.recipe.export.opset), inputs)
        candidate.lineage.append(graph)
        return graph

    def _evaluate(self, candidate: Candidate, graph: Artifact, references: Inputs, floor: float) -> Artifact:
        agreement = self.recipe.quantize.min_agreement
        evaluate = Evaluate(self.recipe.measure.batch_rows, agreement, floor)
        return self._run(candidate.name, evaluate, {"data": self.data, "graph": graph, **references})

    def _run(self, label: str, a_pass: Pass, inputs: Inputs, given: Inputs | None = None) -> Artifact:
        return self.runner.run(label, a_pass, inputs, given)

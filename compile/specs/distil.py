"""What a recipe may say about distilling."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from compile.specs.base import Precision, Share, Strict


class DistilSpec(Strict):
    """How a student is trained to answer as the teacher does.

    Hidden states and attention relations are off by default: the teacher's token vectors must be kept on disk for every
    training row, and comparing them costs about as much again as the student's own pass.
    """

    epochs: int = Field(default=3, ge=1, le=200)
    batch_rows: int = Field(default=32, ge=1, le=1024)
    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_share: Share = 0.1
    temperature: float = Field(default=2.0, gt=0)
    soft_weight: float = Field(default=1.0, ge=0)
    """Weight of the divergence from the teacher's softened answers."""
    hard_weight: float = Field(default=0.2, ge=0)
    """Weight of the loss against the true labels."""
    pooled_weight: float = Field(default=1.0, ge=0)
    """Weight of the distance between the pooled sentence vectors of student and teacher."""
    hidden_weight: float = Field(default=0.0, ge=0)
    """Weight of the distance between the token vectors that layers of student and teacher put out."""
    layer_map: tuple[tuple[int, int], ...] | Literal["uniform"] = "uniform"
    """Pairs (student's layer, teacher's layer) whose outputs are compared; `uniform` spreads the student's layers
    evenly over the teacher's, last on last."""
    relation_weight: float = Field(default=0.0, ge=0)
    """Weight of the divergence between the query, key and value relations of the last layers: how alike each token's
    vector is to every other's. Free of head counts: a student with fewer heads can be compared."""
    relation_heads: int = Field(default=12, ge=1, le=256)
    """Vectors are split into at most so many parts before tokens are compared (the most that divide both widths)."""
    precision: Precision = "float32"
    freeze_embeddings: bool = True

    @field_validator("layer_map")
    @classmethod
    def _distinct(
        cls, value: tuple[tuple[int, int], ...] | Literal["uniform"]
    ) -> tuple[tuple[int, int], ...] | Literal["uniform"]:
        if value == "uniform":
            return value
        students = [student for student, _ in value]
        if not value or len(set(students)) != len(students) or min(min(pair) for pair in value) < 0:
            raise ValueError("give pairs [student's layer, teacher's layer] from 0, each student's layer at most once")
        return value

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher itself must be run, not only its answers be known."""
        return self.hidden_weight > 0 or self.relation_weight > 0

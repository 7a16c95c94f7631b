"""The content of result.json, from what a run has prepared, trained and measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from recbole.config import Config

from recbole_prmkd.data.split import Split
from recbole_prmkd.preparation import Prepared, Steps
from recbole_prmkd.results.covered import covered_result
from recbole_prmkd.results.provenance import commit, package_versions
from recbole_prmkd.results.schema import CoveredResult, GuardResult, RunResult, StudentResult, TeacherResult
from recbole_prmkd.teachers.ensemble import ENSEMBLE
from recbole_prmkd.teachers.fit import FittedTeacher


@dataclass(frozen=True)
class Measured:
    """What one student's training and test gave; with `kd: ensemble` the teachers together.

    score, valid, test: RecBole's best validation score and result, and its test result. history: one dict of numbers
    per epoch of distillation. ranks: what `covered.student_ranks` gave.
    """

    student: StudentResult
    score: float
    valid: Any
    test: Any
    peak_memory_mb: float | None
    history: list[dict[str, float]] = field(default_factory=list)
    ranks: Any = None


def run_result(
    config: Config,
    prepared: Prepared,
    steps: Steps,
    measured: Measured,
    distillation: list[dict[str, float]],
    guard: GuardResult | None = None,
) -> RunResult:
    """The content of result.json.

    Args:
        measured: of the student that is kept. distillation: of the one that was distilled.
    """
    student = measured.student
    return RunResult(
        config=_plain_config(config),
        versions=package_versions(),
        seed=config["seed"],
        device=str(config["device"]),
        threads=torch.get_num_threads(),
        peak_memory_mb=measured.peak_memory_mb,
        commit=commit(),
        dataset=_counts(config, prepared.split),
        student=student,
        teachers={
            teacher.name: _teacher_result(
                teacher,
                stored.notes,
                covered_result(
                    teacher.covered_test,
                    teacher.covered,
                    None if config["kd"] == ENSEMBLE else student.test_unseen,
                    config,
                    prepared.split,
                    measured.ranks,
                ),
            )
            for teacher, stored in zip(prepared.teachers, prepared.folders, strict=True)
        },
        steps=steps.results,
        item_text=steps.item_text,
        guard=guard,
        distillation=distillation,
    )


def _plain_config(config: Config) -> dict[str, Any]:
    """Every setting as JSON can hold it."""
    simple = (str, int, float, bool, type(None), list, dict)
    return {key: value if isinstance(value, simple) else str(value) for key, value in config.final_config_dict.items()}


def _counts(config: Config, split: Split) -> dict[str, Any]:
    train, valid, test = split.sizes
    return {
        "name": config["dataset"],
        "users": len(split.user_tokens),
        "items": len(split.item_tokens),
        "train_rows": train,
        "valid_rows": valid,
        "test_rows": test,
    }


def _teacher_result(teacher: FittedTeacher, notes: Mapping[str, Any], covered: CoveredResult) -> TeacherResult:
    return TeacherResult(
        **teacher.metrics,
        parameters=teacher.parameters,
        seconds=teacher.seconds,
        holdout=teacher.holdout,
        peak_memory_mb=teacher.peak_memory_mb,
        checkpoint=str(teacher.checkpoint) if teacher.checkpoint else None,
        stored=teacher.stored,
        carried_over=teacher.carried_over,
        unknown_rows=notes["unknown_rows"],
        unknown_items=notes["unknown_items"],
        covered=covered,
        cut_items=teacher.cuts.get("cut_items"),
        cut_rows=teacher.cuts.get("cut_rows"),
        groups=teacher.groups,
    )

"""The schema of `result.json`, versioned; its keys are part of what users rely on.

A new field needs a default, so that results of an earlier version stay readable.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = "recbole_prmkd/1"

Metrics = dict[str, float]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Ranking(_Part):
    """Metrics as RecBole ranks, and with the user's earlier items left out of the ranking (`*_unseen`)."""

    valid: Metrics
    test: Metrics
    valid_unseen: Metrics
    test_unseen: Metrics


class GroupResult(_Part):
    """Metrics of some of the test examples; each counts by itself, also where RecBole averages over users."""

    examples: int
    test: Metrics = Field(description="empty where the test ranks samples")
    test_unseen: Metrics


class KDResult(_Part):
    """How the student was distilled: what was found out about its class, and the strength of kd_loss that follows."""

    traits: str = Field(description="class whose traits it has, or `probed`")
    family: str = Field(description="where its scores come from: factorised, loss, full or pairs")
    scores: str = Field(description="what it ranks by: logits, or what logits were made from")
    loss: str = Field(description="its own loss: full-softmax, pairwise or pointwise")
    weight: float = Field(description="of kd_loss beside the student's own loss, in force")
    temperature: float = Field(description="of the student's scores, in force")
    rows: int | None = Field(description="examples of a batch that kd_loss is computed on, at most; None: all")
    period: int = Field(description="kd_loss is computed every so many batches")
    teaching: float | None = Field(
        default=None,
        description="share of the examples with a kd_loss that had two candidates or more that a teacher covers, mean "
        "over the epochs; None in results of earlier versions",
    )


class CarriedOver(_Part):
    """What a student or teacher that goes on from an earlier run (`kd_student_checkpoint`) has taken over."""

    folder: str = Field(description="of the earlier run; of a teacher its stored folder")
    weights: int = Field(description="tensors that were taken over, whole or by their rows")
    users: int = Field(description="that both data sets have")
    new_users: int
    items: int = Field(description="that both data sets have")
    new_items: int


class StudentResult(Ranking):
    """The student, with the best epoch's weights; with `kd: ensemble` the teachers together, 0 epochs and seconds."""

    model: str
    parameters: int = Field(description="trainable numbers, equal to the stock model's")
    train_seconds: float = Field(description="wall time of RecBole's fit, validation included")
    epochs: int
    checkpoint: str | None = Field(description="file beside result.json; None if it was not to be saved")
    train_losses: list[float] = Field(description="sum over the batches, per epoch, as RecBole logs it")
    valid_scores: list[float] = Field(default=[], description="valid_metric at each validation")
    kd: KDResult | None = Field(default=None, description="None where kd_loss was not in use")
    carried_over: CarriedOver | None = Field(default=None, description="None without kd_student_checkpoint")
    groups: dict[str, GroupResult] = Field(
        default={},
        description="`cold_items`: test examples whose target has no training interaction; `short_histories`: those "
        "with at most 5 items before them. A group without an example is left out",
    )


class CoveredResult(_Part):
    """A teacher on the test examples that it covers (it has a history's and the target's vector), and the student."""

    share: float = Field(description="of the test examples")
    examples: int
    test: Metrics
    test_unseen: Metrics
    student_unseen: Metrics | None = Field(
        default=None,
        description="the student's `test_unseen` on the same examples; None without a student or full ranks",
    )


class TeacherResult(Ranking):
    """One teacher: its own metrics on the student's validation and test examples."""

    parameters: int
    seconds: float = Field(description="fine-tuning, as first measured")
    holdout: float = Field(description="its valid_metric on the holdout of the training split")
    peak_memory_mb: float | None = Field(default=None, description="most memory of the process that fine-tuned it")
    checkpoint: str | None = Field(default=None, description="the file of weights that it started from")
    stored: str | None = Field(default=None, description="its folder in kd_teacher_dir; None in earlier versions")
    carried_over: CarriedOver | None = Field(
        default=None, description="with kd_teacher_refresh continue or keep; None where it was fitted anew"
    )
    unknown_rows: int = Field(description="training examples that it does not cover (no history)")
    unknown_items: int = Field(description="items that it does not cover (no text)")
    covered: CoveredResult | None = Field(default=None, description="None in results of earlier versions")
    cut_items: int | None = Field(default=None, description="items whose own text it cuts (Recformer)")
    cut_rows: int | None = Field(default=None, description="training examples whose history it cuts to its tokens")
    groups: dict[str, GroupResult] = Field(default={}, description="as the student's")


class TextResult(_Part):
    """How the items' texts became vectors, in this run or in the one that stored them."""

    encoder: str = Field(description="its name or folder")
    pooling: str = Field(description="how token states become a vector, for example `mean, Normalize`")
    encoder_limit: int | None = Field(description="tokens that the encoder's files allow; None: they do not say")
    max_tokens: int = Field(description="of a text, in force")
    items: int
    texts: int = Field(description="items with text")
    cut: int = Field(description="items whose text is longer than max_tokens")


class StepResult(_Part):
    """Wall time of one step, and whether its product was taken from an earlier run (None: it makes none)."""

    seconds: float
    reused: bool | None


class GuardResult(_Part):
    """What `kd_guard` has compared: the `kd` of each student that was trained, and which one is `student`."""

    kept: str = Field(description="the best on validation; of equal ones the first of `none`, `warm_start`, the run's")
    valid: dict[str, float | None] = Field(description="best valid_metric of each; None where no validation gave one")
    students: dict[str, Ranking] = Field(
        default={}, description="metrics of each, those of `student` too; empty in results of earlier versions"
    )


class RunResult(BaseModel):
    """The whole of result.json."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_: str = Field(default=SCHEMA, alias="schema")
    config: dict[str, Any] = Field(description="every setting in force")
    versions: dict[str, str]
    seed: int
    device: str
    threads: int | None = Field(default=None, description="torch threads of the process")
    peak_memory_mb: float | None = Field(
        default=None, description="most memory of the process in the student's training and test; on CUDA the GPU's"
    )
    commit: str | None = Field(default=None, description="of this package's checkout; None where it is installed")
    dataset: dict[str, Any] = Field(description="name and counts after filtering and splitting")
    student: StudentResult
    teachers: dict[str, TeacherResult]
    steps: dict[str, StepResult]
    item_text: TextResult | None = Field(default=None, description="None where no text was encoded")
    guard: GuardResult | None = Field(default=None, description="None without kd_guard")
    distillation: list[dict[str, float]] = Field(description="one entry per epoch; empty without distillation")

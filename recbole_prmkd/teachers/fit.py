"""Fine-tune a teacher on the training split with RecBole's own trainer, or take the one that is stored.

A stored teacher is reused when everything that its weights depend on is equal: its settings, the seed, the text (and
image) vectors, the item numbering, the examples it learnt from, the checkpoint it started from, and the versions of the
code, torch and transformers. Validation and test examples are not among them: a holdout of the training split decides
when to stop.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader, TrainDataLoader
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.trainer import Trainer
from recbole.utils import calculate_valid_score, get_trainer, init_seed
from torch import Tensor

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.errors import NotFinite, UserError
from recbole_prmkd.recbole_host.finite import overflow_explained, watch_loss, weights_are_finite, weights_sentence
from recbole_prmkd.recbole_host.keys import kind_of, teacher_settings
from recbole_prmkd.recbole_host.memory import forget_peak_memory, peak_memory_mb
from recbole_prmkd.recbole_host.run_files import quiet_trainer
from recbole_prmkd.results.evaluation import evaluate_unseen, plain
from recbole_prmkd.results.groups import groups_of_examples, noted_ranks
from recbole_prmkd.results.schema import CarriedOver, GroupResult
from recbole_prmkd.storage import store
from recbole_prmkd.students.causal_check import why_not_shared
from recbole_prmkd.students.windows import WindowLoader, shared_prefixes
from recbole_prmkd.teachers import Teacher, teacher_class
from recbole_prmkd.teachers.clock import TimeIsUp, clock
from recbole_prmkd.teachers.data import TeacherData, shuffled_items, teacher_config
from recbole_prmkd.teachers.holdout import SCORES, Ranked, rank_or_load
from recbole_prmkd.teachers.pretrained import start
from recbole_prmkd.teachers.recbole_model import RecBoleTeacher
from recbole_prmkd.teachers.refresh import Earlier, start_from_earlier

# Raise them when the same teacher, data and settings give other weights (of the training here), or other metrics.
VERSION = "1.0"
RANKING_VERSION = "1.2"
_PARTS = ("valid", "test", "valid_unseen", "test_unseen")


@dataclass
class FittedTeacher:
    """A frozen teacher, ready to encode; what it cost and how good it is.

    digest: hash of its weights and side information. checkpoint: the file of weights it started from, if any.
    seconds, peak_memory_mb: of fine-tuning, as first measured.
    ranked: on the holdout. metrics: its own on `valid`, `test` and their unseen twins, under RecBole's keys.
    covered_test: [N] which test examples it covers; covered: its metrics on these, `test` and `test_unseen`.
    groups: its metrics on groups of the test examples, as `results.groups` has them.
    stored: its folder in kd_teacher_dir. carried_over: what it has taken over of an earlier run (`kd_teacher_refresh`).
    cuts: how much of its input it cuts, as `Teacher.cuts` counts it on all training examples.
    """

    name: str
    model: Teacher
    config: Config
    digest: str
    checkpoint: Path | None
    seconds: float
    reused: bool
    holdout: float
    peak_memory_mb: float | None
    metrics: dict[str, dict[str, float]]
    ranked: Ranked
    covered_test: Tensor
    covered: dict[str, dict[str, float]]
    groups: dict[str, GroupResult] = field(default_factory=dict)
    stored: str | None = None
    carried_over: CarriedOver | None = None
    cuts: dict[str, int] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """All numbers it holds, its frozen text table included."""
        return sum(tensor.numel() for tensor in self.model.parameters())


# Settings of the student that a teacher's weights depend on too; part of the identity unless they are the default.
_SHARED_WITH_STUDENT = {"enable_amp": False, "metric_decimal_place": 4}


def fit_or_load(name: str, run: Config, data: TeacherData) -> FittedTeacher:
    """The named teacher for this split, fine-tuned now or loaded, in evaluation mode and frozen.

    Raises:
        UserError: there is nothing that it could learn from. NotFinite: its loss or weights became NaN or infinite.
    """
    config, kind = teacher_config(name, run), kind_of(name)
    root = Path(run["kd_teacher_dir"]) / run["dataset"]
    if teacher_class(name).learns and len(data.fit) == 0:
        raise UserError(
            f"No training example has a history that {name} could learn from: lower the filters, or take a data "
            "set with more interactions of a user."
        )
    config["eval_batch_size"] = max(1, min(config["eval_batch_size"], SCORES // len(data.canonical)))
    init_seed(config["seed"], config["reproducibility"])
    model = teacher_class(name)(config, data.dataset(config, data.fit)).to(config["device"])
    earlier = start_from_earlier(model, name, run, data)
    checkpoint = earlier.file if earlier else start(model, name, run)
    identity = _identity(name, config, data, model, checkpoint, earlier)
    stored = None if run["kd_rebuild"] else store.find(root, f"teacher-{kind}", identity)
    reused = stored is not None
    if stored is None:
        store.check_room(root)
        forget_peak_memory(config["device"])
        seconds, score = _fit(model, config, data, name, earlier)
        notes = {"seconds": seconds, "holdout": score, "peak_memory_mb": peak_memory_mb(config["device"])}
        stored = store.save(root, f"teacher-{kind}", identity, {"weights": learnt_weights(model)}, notes)
    model.load_state_dict(stored.weights("weights"), strict=False)  # cold and warm runs read the same file
    model.eval().requires_grad_(False)
    digest = store.digest([identity, stored.files["weights.safetensors"]["sha256"]])
    covered = covered_examples(model, config, data, data.test)
    metrics = _metrics(kind, model, config, data, root, digest, covered)
    return FittedTeacher(
        name=name,
        model=model,
        config=config,
        digest=digest,
        checkpoint=checkpoint,
        seconds=stored.notes["seconds"],
        reused=reused,
        holdout=stored.notes["holdout"],
        peak_memory_mb=stored.notes.get("peak_memory_mb"),  # older folders have none
        metrics={part: metrics[part] for part in _PARTS},
        ranked=rank_or_load(model, config, data, root, kind, digest, shuffled_items(run, len(data.canonical), name)),
        covered_test=covered,
        covered={part: metrics.get(f"{part}_covered", {}) for part in ("test", "test_unseen")},
        groups={name: GroupResult(**entry) for name, entry in metrics["groups"].items()},
        stored=stored.path.relative_to(run["kd_teacher_dir"]).as_posix(),
        carried_over=earlier.carried_over if earlier else None,
        cuts=model.cuts(data.train),
    )


def _identity(
    name: str, config: Config, data: TeacherData, model: Teacher, checkpoint: Path | None, earlier: Earlier | None
) -> Mapping[str, Any]:
    return store.identity(
        code=f"{model.code_version} fine-tuning {VERSION}",
        teacher=kind_of(name),
        settings={key: config[key] for key in sorted(teacher_settings(name, {}))},
        context=config["kd_window_context"],
        seed=config["seed"],
        checkpoint=store.file_digest(checkpoint) if checkpoint else None,
        side_information=store.digest(tensor for _, tensor in sorted(given_tables(model).items())),
        items=store.digest(data.item_tokens),
        rows=data.fit.digest(),
        holdout=data.holdout.digest(),
        **({"refresh": earlier.identity} if earlier else {}),
        **model.depends_on(),
        **({"minutes": config["kd_teacher_minutes"]} if model.learns and config["kd_teacher_minutes"] else {}),
        **{key: config[key] for key, default in _SHARED_WITH_STUDENT.items() if config[key] != default},
    )


def given_tables(model: Teacher) -> dict[str, Tensor]:
    """Its frozen tables that come from the data set's text or images, not from training."""
    return {name: p for name, p in model.named_parameters() if name.split(".")[0] in model.side_information}


def learnt_weights(model: Teacher) -> dict[str, Tensor]:
    """Its state dict without the tables that come from the data set's text or images."""
    given = given_tables(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in given}


def _fit(model: Teacher, config: Config, data: TeacherData, name: str, earlier: Earlier | None) -> tuple[float, float]:
    """Train with RecBole's trainer, unless it keeps its weights; returns seconds and the best holdout score."""
    if not model.learns:
        started = time.time()
        model.solve(data)
        seconds = time.time() - started
        return seconds, model.holdout if isinstance(model, RecBoleTeacher) else _score(model, config, data)
    if earlier is not None and earlier.keep:
        started = time.time()
        model.complete_items(earlier.new_items)
        return time.time() - started, _score(model, config, data)
    dataset = data.dataset(config, data.fit)
    holdout = FullSortEvalDataLoader(config, data.dataset(config, data.holdout), None)
    reason = why_not_shared(model, config, data.fit)
    if reason is not None:
        getLogger().info(f"{config['model']} is trained without shared prefixes: {reason}.")
    started = time.time()
    with tempfile.TemporaryDirectory() as folder, nullcontext() if reason else shared_prefixes(model):
        train = (
            TrainDataLoader(config, dataset, None, shuffle=True) if reason else WindowLoader(config, dataset, data.fit)
        )
        trainer = quiet_trainer(get_trainer(config["MODEL_TYPE"], config["model"]), config, model, Path(folder))
        watch_loss(trainer, name)
        with overflow_explained(config, name), suppress(TimeIsUp):
            callback = clock(trainer, name, config["kd_teacher_minutes"])
            trainer.fit(train, holdout, show_progress=config["show_progress"], callback_fn=callback)
        # The best epoch's weights, read back as RecBole does before a test.
        score = _valid_score(trainer, holdout, best=True)
        if not weights_are_finite(model):
            raise NotFinite(weights_sentence(trainer, name))
    return time.time() - started, score


def _score(model: Teacher, config: Config, data: TeacherData) -> float:
    """Its valid_metric on the holdout, as it is."""
    holdout = FullSortEvalDataLoader(config, data.dataset(config, data.holdout), None)
    with tempfile.TemporaryDirectory() as folder:
        return _valid_score(quiet_trainer(Trainer, config, model, Path(folder)), holdout, best=False)


def _valid_score(trainer: Trainer, holdout: FullSortEvalDataLoader, best: bool) -> float:
    """valid_metric on the holdout; 0, with a message, where it is empty."""
    result = trainer.evaluate(holdout, load_best_model=best)
    if holdout.sample_size == 0:
        getLogger().warning(
            "No user has two training examples with a history: without a holdout the teacher trains to its last epoch."
        )
        return 0.0
    return float(calculate_valid_score(result, trainer.valid_metric))


@contextmanager
def encoded_once(model: Teacher) -> Iterator[None]:
    """Inside, a frozen teacher encodes its items once, and each batch of histories once, however often it is ranked."""
    encode_items, encode_batch = model.encode_items, model.encode_batch
    items: list[Tensor] = []
    batches: dict[str, Tensor] = {}

    def items_once() -> Tensor:
        if not items:
            items.append(encode_items())
        return items[0]

    def batch_once(interaction: Interaction, items: Tensor) -> Tensor:
        fields = (model.USER_ID, model.ITEM_ID, model.ITEM_SEQ, model.ITEM_SEQ_LEN)
        key = store.digest(interaction[field] for field in fields)
        if key not in batches:
            batches[key] = encode_batch(interaction, items)
        return batches[key]

    if model.scores_all_items:  # what would be kept grows with users x items
        batch_once = encode_batch
    model.encode_items, model.encode_batch = items_once, batch_once  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.encode_items, model.encode_batch


@torch.no_grad()
def covered_examples(model: Teacher, config: Config, data: TeacherData, examples: Examples) -> Tensor:
    """Which examples it can rank: it covers the target, and has a vector of the history, [N] bool."""
    covered = model.covered_items()[examples.targets]
    if not model.reads_examples:
        return covered & (examples.lengths > 0)
    dataset, items = data.dataset(config, examples), model.encode_items()
    index = torch.arange(len(examples)).split(config["eval_batch_size"])
    vectors = [model.encode_batch(dataset[part].to(items.device), items) for part in index]
    return covered & torch.cat([(vector != 0).any(dim=1).cpu() for vector in vectors] or [covered])


def _metrics(
    kind: str, model: Teacher, config: Config, data: TeacherData, root: Path, digest: str, covered: Tensor
) -> Mapping[str, Any]:
    """The teacher's own metrics on the student's validation and test examples; stored apart from its weights.

    covered: [N] which test examples it covers; those of the metrics on these alone end in `_covered`. `groups`: those
    on groups of the test examples.
    """
    identity = store.identity(
        code=f"{model.code_version} ranking {RANKING_VERSION}",
        teacher=digest,
        metrics=[config["metrics"], config["topk"], config["metric_decimal_place"]],
        valid=data.valid.digest(),
        test=data.test.digest(),
        **({"users": store.digest([data.valid.users, data.test.users])} if isinstance(model, RecBoleTeacher) else {}),
    )
    stored = store.find(root, f"metrics-{kind}", identity)
    if stored is None:
        store.check_room(root)
        groups: dict[str, GroupResult] = {}
        metrics = rankings(model, config, data, groups)
        alone = metrics
        if covered.any() and not covered.all():
            alone = rankings(model, config, replace(data, test=data.test.select(torch.nonzero(covered).squeeze(1))))
        if covered.any():
            metrics |= {f"{part}_covered": alone[part] for part in ("test", "test_unseen")}
        notes = {**metrics, "groups": {name: entry.model_dump() for name, entry in groups.items()}}
        stored = store.save(root, f"metrics-{kind}", identity, {}, notes)
    return stored.notes


def rankings(
    model: SequentialRecommender, config: Config, data: TeacherData, groups: dict[str, GroupResult] | None = None
) -> dict[str, dict[str, float]]:
    """Metrics of a frozen teacher, or of a model made of teachers, on validation and test examples, in both rankings.

    config: the model's own; says how long histories are, and which metrics. groups: takes the metrics of the test
    examples' groups.
    """
    metrics: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        trainer = quiet_trainer(Trainer, config, model, Path(folder))
        for part, examples in (("valid", data.valid), ("test", data.test)):
            if len(examples) == 0:  # training on everything
                metrics |= {part: {}, f"{part}_unseen": {}}
                continue
            dataset = data.dataset(config, examples)
            loader = FullSortEvalDataLoader(config, dataset, None)
            with ExitStack() as stack:
                for teacher in (module for module in model.modules() if isinstance(module, Teacher)):
                    stack.enter_context(encoded_once(teacher))
                with noted_ranks(trainer, config) as noted:
                    metrics[part] = plain(trainer.evaluate(loader, load_best_model=False))
                with noted_ranks(trainer, config) as unseen:
                    metrics[f"{part}_unseen"] = evaluate_unseen(trainer, config, loader, examples) or metrics[part]
            if groups is not None and part == "test":
                groups |= groups_of_examples(
                    config, len(data.item_tokens), data.train, examples, noted, unseen or noted
                )
    return metrics

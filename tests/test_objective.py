"""The objective's short cuts change no number: rows in blocks, 1.0 and 0.0 for bools, NaN for the unknown."""

from functools import partial
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recbole.utils import ModelType
from torch import Tensor
from torch.nn import functional

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.distil import method_steps
from recbole_prmkd.distil import objective as module
from recbole_prmkd.distil.baselines import BASELINES
from recbole_prmkd.distil.baselines.ranking import teacher_ranking
from recbole_prmkd.distil.candidates import SOURCES, candidate_mask, in_batch_items, target_columns
from recbole_prmkd.distil.losses import kd_loss
from recbole_prmkd.distil.objective import Objective
from recbole_prmkd.distil.trainer import PRMKDTrainer
from recbole_prmkd.distil.weighting import CONFIDENCE, CONSISTENCY, agreement, fuse, soft_targets
from recbole_prmkd.recbole_host.keys import defaults
from recbole_prmkd.students.defaults import StudentDefaults
from recbole_prmkd.students.positives import UserExamples
from recbole_prmkd.teacher_cache.scores import CachedVectors, TeacherCache
from recbole_prmkd.training import exclusions_of, top_items_of

N, ITEMS, PER_USER = 90, 40, 9
BATCH = torch.arange(0, N, 2)
RULES = [("probability", "std"), ("entropy", "outlier"), ("label_ce", "vote"), ("validation", "vote_uniform")]
CONFIG = {
    "kd_schedule_epochs": 10,
    **{key: value for key, value in defaults().items() if key.startswith("kd_rank_")},
    "seed": 1,
    "device": "cpu",
    "shuffle": True,
    "single_spec": True,
    "ITEM_ID_FIELD": "item_id",
    "kd_candidates": "batch",
    "kd_top_items": 6,
    "kd_pair_candidates": 4,
    "kd_max_candidates": None,
    "kd_max_rows": "auto",
    "kd_every": "auto",
    "kd_weight": 1.0,
    "kd_temperature": 2.0,
    "kd_loss": "kl",
    "kd_confidence": "probability",
    "kd_consistency": "std",
    "kd_consistency_damping": 0.5,
    "kd_fusion": "sum",
    "kd_false_negative_mask": True,
    "kd_history_mask": False,
    "kd_history_negatives": False,
    "kd_shuffled_teachers": False,
    "kd_rebuild": False,
    "dataset": "made-up",
    "kd_curriculum": "none",
    "MODEL_TYPE": ModelType.SEQUENTIAL,
}


class Student:
    """A student whose scores are a parameter [N, ITEMS]."""

    in_pairs, sequential, kd, family = False, True, StudentDefaults(), "decided"

    def __init__(self):
        self.table = torch.randn(N, ITEMS, generator=torch.Generator().manual_seed(2), requires_grad=True)

    def rec_loss(self, loss, interaction):
        return loss(interaction)

    def release(self):
        pass

    def positives(self, interaction, generator):
        return torch.arange(len(interaction["kd_example"])), interaction["kd_example"]

    def scores(self, interaction, positions, candidates):
        scores = self.table[interaction["kd_example"][positions]]
        return scores[:, candidates] if candidates.dim() == 1 else scores.gather(1, candidates)


def knowledge(gaps, widths=(12, 12, 7)):
    """Teachers of several widths; with gaps, all of them know nothing of row 4, and each of some rows and items."""
    rng = np.random.default_rng(0)

    def vectors(number, width):
        table = functional.normalize(torch.from_numpy(rng.normal(size=(number, width))), dim=-1).half()
        if gaps:
            table[torch.from_numpy(rng.random(number) < 0.2)] = 0
            table[4] = 0
        return table

    teachers = [
        CachedVectors(f"T{k}", 0.1 + 0.2 * k, 0.1 + k, vectors(ITEMS, width), vectors(N, width).numpy())
        for k, width in enumerate(widths)
    ]
    return TeacherCache(teachers, torch.arange(ITEMS).flip(0), torch.device("cpu"))


def objective(gaps, in_pairs=False, **more):
    items = torch.randint(1, ITEMS, (N,), generator=torch.Generator().manual_seed(3))
    first = torch.arange(N) // PER_USER * PER_USER
    train = Examples(torch.arange(N) // PER_USER, items, first, torch.arange(N), items)
    future = Examples(train.users, items, torch.arange(N) + 1, first + PER_USER, items)
    config, cache, student = {**CONFIG, **more}, knowledge(gaps), Student()
    student.in_pairs, student.sequential = in_pairs, config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    excluded = exclusions_of(config, train, future, student.sequential)
    top = None
    if "teacher" in SOURCES[config["kd_candidates"]]:
        with TemporaryDirectory() as folder:
            top = top_items_of({**config, "kd_cache_dir": folder}, cache, train, excluded)
    return Objective(config, cache, train, excluded, student, top)


def excluded_pairs(made: Objective, examples: Tensor) -> tuple[Tensor, Tensor]:
    """The user's future items of each example: positions and items."""
    items = made.train.items
    future = [items[n + 1 : n // PER_USER * PER_USER + PER_USER] for n in examples.tolist()]
    return torch.arange(len(examples)).repeat_interleave(torch.tensor([len(part) for part in future])), torch.cat(
        future
    )


def step(made: Objective) -> tuple[Tensor, Tensor, dict[str, float]]:
    """kd_loss, its gradient and the means after a batch."""
    loss = made({"kd_example": BATCH, "item_id": made.train.targets[BATCH]})
    loss.backward()
    return loss.detach(), made.student.table.grad, made.epoch_means()


@pytest.mark.parametrize(("confidence", "consistency"), RULES)
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_a_batch_equals_the_functions_on_bools(confidence: str, consistency: str, gaps: bool, damping: float) -> None:
    rules = {"kd_confidence": confidence, "kd_consistency": consistency, "kd_consistency_damping": damping}
    made = objective(gaps, **rules)
    loss, gradient, means = step(made)
    targets = made.train.targets[BATCH]
    items = in_batch_items(targets)
    columns = target_columns(items, targets)
    mask = candidate_mask(items, targets, excluded_pairs(made, BATCH))
    scores = made.teacher_cache.scores(BATCH, items)
    known = ~scores.isnan()
    soft = soft_targets(scores, made.teacher_cache.temperature, mask)
    agreed = agreement(soft, known.any(-1)).sum().item()
    soft = soft * ((known & mask).sum(-1) / mask.sum(-1)).unsqueeze(-1)  # the share of the candidates that it knows
    trust = CONFIDENCE[confidence](soft, columns, known.any(-1), made.teacher_cache.validation)
    marks = CONSISTENCY[consistency](soft, known, mask)
    target, weights = fuse(soft, trust, marks, damping, known, mask)
    table = made.student.table.detach().clone().requires_grad_()
    expected = kd_loss(table[BATCH][:, items], target, mask & known.any(0), 2.0, "kl")
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, table.grad, rtol=1e-5, atol=1e-8)
    taught = (target.sum(-1) != 0).sum().item()
    shares = (weights.sum(-1) / weights.sum((0, 2)).clamp(min=1)).sum(-1) / taught
    assert means == pytest.approx(
        {
            "kd_loss": expected.item(),
            "rows_without_knowledge": (target.sum(-1) == 0).float().mean().item(),
            "teaching": ((mask & known.any(0)).sum(-1) > 1).float().mean().item(),
            "inconsistent": (known & mask & ~marks).sum().item() / (known & mask).sum().item(),
            "agreement": agreed / taught,
            **{f"weight_T{k}": share for k, share in enumerate(shares.tolist())},
        },
        rel=1e-6,
    )
    assert (means["rows_without_knowledge"] > 0) == gaps and made.epoch_means() == {}
    assert sum(means[f"weight_T{k}"] for k in range(3)) == pytest.approx(1)  # whatever is unknown


@pytest.mark.parametrize("loss", ["kl", "ce", "mse", "rd", "rrd", "dllm2rec"])
def test_what_no_teacher_knows_is_not_taught(loss: str) -> None:
    """An item without a word of any teacher is not thereby a bad one, least of all as a row's own target."""
    made = objective(False, kd_loss=loss)
    unknown = made.train.targets[BATCH[0]]
    for teacher in made.teacher_cache.teachers:
        teacher.items[ITEMS - 1 - unknown] = 0
    made.teacher_cache = TeacherCache(made.teacher_cache.teachers, torch.arange(ITEMS).flip(0), torch.device("cpu"))
    gradient = step(made)[1]
    assert not gradient[:, unknown].any()
    assert gradient[BATCH].abs().sum(1).gt(0).all()  # all other candidates are


def test_a_baselines_list_can_be_filled_by_what_teachers_agree_on() -> None:
    same = objective(False, kd_candidates="teacher_top", kd_loss="rrd")
    kl = objective(False, kd_candidates="teacher_top")
    widths = [made.top_items.of(BATCH)[0].shape[1] for made in (same, kl)]
    assert widths == [3 * 6, 6]  # of three teachers, kd_top_items 6


def test_few_teachers_have_little_to_weigh() -> None:
    made = objective(False)
    teachers = made.teacher_cache.teachers
    for number, words in ((1, "= 1 with one teacher"), (2, "of two teachers both are consistent"), (3, "")):
        made.teacher_cache.teachers = teachers[:number]
        notes = [note for note in ("one teacher", "two teachers") if note in str(made)]
        assert words in str(made) and len(notes) == (number < 3)


def test_users_without_training_rows_are_not_taught_anothers() -> None:
    sampled = UserExamples(objective(False).train).sample(torch.tensor([9, 10, 25]), torch.Generator())
    assert sampled[0].tolist() == [0] and int(sampled[1]) // PER_USER == 9  # user 9 is the last


def test_one_teacher_agrees_with_itself_whatever_it_knows() -> None:
    made = objective(True)
    made.teacher_cache = TeacherCache(made.teacher_cache.teachers[:1], torch.arange(ITEMS).flip(0), torch.device("cpu"))
    assert step(made)[2]["agreement"] == pytest.approx(1)


def test_who_knows_few_candidates_is_not_the_surer_for_it() -> None:
    """Two teachers to whom all they know is equal: neither tells the target more probable than the other."""
    made = objective(False, kd_consistency="none", kd_max_candidates=None)
    scores = torch.zeros(2, 1, 257)
    scores[1, :, 5:] = torch.nan
    mask = torch.ones(1, 257, dtype=torch.bool)
    made.teacher_cache = SimpleNamespace(temperature=torch.ones(2), prior=torch.ones(2), validation=torch.ones(2))
    for rule in ("probability", "entropy", "label_ce"):
        made.config["kd_confidence"] = rule
        target, counted, shares, *_ = made.fuse(scores, torch.zeros(1, dtype=torch.int64), mask)
        torch.testing.assert_close(target, torch.full((1, 257), 1 / 257))
        assert counted.all() and shares[0, 1] < shares[0, 0]  # half of the five, none of the others
        torch.testing.assert_close(shares[0, 1], torch.tensor(5 / 2 / 257))


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("more", [{}, {"in_pairs": True}, {"kd_candidates": "teacher_top"}])
@pytest.mark.parametrize("size", [1, 500])  # row by row, and blocks of a few
def test_blocks_give_what_one_block_gives(size: int, more: dict, gaps: bool, monkeypatch) -> None:
    loss, gradient, means = step(objective(gaps, **more))
    monkeypatch.setattr(module, "_AT_ONCE", size)
    blocks = step(objective(gaps, **more))
    torch.testing.assert_close(blocks[0], loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(blocks[1], gradient, rtol=1e-5, atol=1e-8)
    assert blocks[2] == pytest.approx(means, rel=1e-6)


@pytest.mark.parametrize("gaps", [False, True])
def test_few_candidates_for_all_rows_give_what_they_give_row_by_row(gaps: bool) -> None:
    shared = step(objective(gaps, kd_max_candidates=4))
    by_row = step(objective(gaps, in_pairs=True))  # the same draw of 4, a list for each row
    torch.testing.assert_close(shared[0], by_row[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(shared[1], by_row[1], rtol=1e-5, atol=1e-8)
    assert shared[2] == pytest.approx(by_row[2], rel=1e-6)
    everything, capped = step(objective(gaps)), step(objective(gaps, kd_max_candidates=ITEMS))
    assert torch.equal(everything[0], capped[0])


@pytest.mark.parametrize("in_pairs", [False, True])
def test_a_few_rows_have_the_mean_loss_of_all(in_pairs: bool) -> None:
    settings = {"in_pairs": in_pairs, "kd_pair_candidates": ITEMS}
    everything = step(objective(gaps=False, **settings))[0]
    made = objective(gaps=False, kd_max_rows=5, **settings)
    losses, taught = [], []
    for _ in range(200):
        made.student.table.grad = None
        losses.append(made({"kd_example": BATCH, "item_id": made.train.targets[BATCH]}))
        losses[-1].backward()
        taught.append(tuple(torch.nonzero(made.student.table.grad.abs().sum(1)).squeeze(1).tolist()))
    spread = torch.stack(losses).std() / 200**0.5
    assert abs(torch.stack(losses).mean() - everything) < 4 * spread < 0.1 * everything
    assert {len(rows) for rows in taught} == {5} and len(set(taught)) > 150


def test_a_student_has_its_usual_rows_unless_told_otherwise(monkeypatch) -> None:
    def taught(own: int | None, **settings: object) -> int:
        monkeypatch.setattr(Student, "kd", StudentDefaults(rows=own))
        return int(torch.count_nonzero(step(objective(gaps=False, **settings))[1].abs().sum(1)))

    assert taught(None) == taught(5, kd_max_rows=None) == taught(5, kd_max_rows=10**6) == len(BATCH)
    assert taught(5) == 5 and taught(3, MODEL_TYPE=ModelType.GENERAL) == 3
    assert taught(5, kd_max_rows=7) == taught(None, kd_max_rows=7) == 7


@pytest.mark.parametrize(("every", "batches", "taught"), [(1, 3, 3), (2, 5, 3), (8, 5, 1), (8, 16, 2), ("auto", 5, 2)])
def test_some_batches_have_the_kd_loss_of_all(every: object, batches: int, taught: int, monkeypatch) -> None:
    made = objective(gaps=False, kd_every=every, kd_weight=3.0)
    batch = {"kd_example": BATCH, "item_id": made.train.targets[BATCH]}
    alone = objective(gaps=False)(batch).item()
    trainer = SimpleNamespace(objective=made, device="cpu")
    student = partial(PRMKDTrainer.compute_loss, trainer, lambda interaction: torch.tensor(0.5))
    parts = (torch.tensor(0.2), torch.tensor(0.3))
    in_parts = partial(PRMKDTrainer.compute_loss, trainer, lambda interaction: parts)
    made.student.kd = StudentDefaults(rows=2, every=1)  # until the first batch is seen
    made.student.family = None
    monkeypatch.setattr(
        module, "decide", lambda student, batch: vars(student).update(family="", kd=StudentDefaults(every=4))
    )
    for loss in (student, student, in_parts):  # each epoch anew
        made.begin(0, batches)
        made.epoch_means()
        losses = [loss(batch) for _ in range(batches)]
        if loss is in_parts:
            assert {len(parts) for parts in losses} == {3}
            losses = [sum(parts) for parts in losses]
        added = [value.item() - 0.5 for value in losses]
        assert [value > 0 for value in added] == [n % (4 if every == "auto" else every) == 0 for n in range(batches)]
        assert sum(value > 0 for value in added) == taught
        assert sum(added) == pytest.approx(3 * alone * batches, rel=1e-5)
        means = made.epoch_means()
        assert means["kd_loss"] == pytest.approx(alone, rel=1e-6) and means["rec_loss"] == pytest.approx(0.5)


def test_each_pass_of_an_epoch_has_its_kd_loss() -> None:
    made = objective(gaps=False, kd_every=4)
    made.begin(0, 6)
    assert [made.due() for _ in range(12)] == [True, False, False, False, True, False] * 2 and made.every_factor == 3


def test_which_batches_have_a_kd_loss_unless_told_otherwise() -> None:
    def due(own: int, **settings: object) -> list[int]:
        made = objective(gaps=False, **settings)
        made.student.kd = StudentDefaults(every=own)
        made.begin(0, 20)
        return [number for number in range(20) if made.due()]

    assert due(1) == due(16, kd_every=1) == due(16, shuffle=False) == [*range(20)]
    assert due(1, kd_every=5) == due(16, kd_every=5) == [0, 5, 10, 15]
    assert due(16) == [0, 16] and due(4) == [*range(0, 20, 4)]


def test_a_students_own_weight_is_that_of_losses_other_than_the_baselines() -> None:
    made, baseline = (objective(gaps=False, kd_weight=5.0, **more) for more in ({}, {"kd_loss": "rd"}))
    made.student.kd = baseline.student.kd = StudentDefaults(weight=0.1)
    assert made.weight == pytest.approx(0.5) and baseline.weight == 5
    assert str(made).startswith("loss = rec_loss + 0.5 x kl(")


def test_a_students_own_temperature_is_that_of_softmax_losses_alone() -> None:
    def loss(own: float, **settings: object) -> Tensor:
        made = objective(gaps=False, **settings)
        made.student.kd = StudentDefaults(temperature=own)
        return step(made)[0]

    assert torch.equal(loss(0.1, kd_temperature=2.0), loss(1.0, kd_temperature=0.2))
    assert "student / 0.2)" in str(objective(gaps=False, kd_temperature=0.2))
    baseline = {"kd_loss": "rd", "kd_candidates": "teacher_top"}
    assert torch.equal(loss(0.1, **baseline), loss(1.0, **baseline))


def test_means_are_over_the_batches() -> None:
    made = objective(gaps=True)
    losses = [made({"kd_example": rows, "item_id": made.train.targets[rows]}) for rows in BATCH.split(20)]
    means = made.epoch_means()
    assert means["kd_loss"] == pytest.approx(sum(loss.item() for loss in losses) / len(losses), rel=1e-6)


def test_a_batch_without_rows_has_its_own_loss_only() -> None:
    made = objective(gaps=False)
    first = made({"kd_example": BATCH, "item_id": made.train.targets[BATCH]})
    none = made({"kd_example": BATCH[:0], "item_id": made.train.targets[:0]})
    assert none.item() == 0 and made.epoch_means()["kd_loss"] == pytest.approx(first.item(), rel=1e-6)


def test_a_student_without_order_has_earlier_items_as_false_negatives_too() -> None:
    row = torch.tensor([4])
    for kind, mask, earlier in [("SEQUENTIAL", False, False), ("SEQUENTIAL", True, True), ("GENERAL", False, True)]:
        made = objective(gaps=False, MODEL_TYPE=ModelType[kind], kd_history_mask=mask)
        positions, items = made.excluded(row)
        train = made.train
        history = {*train.items[train.start[4] : train.stop[4]].tolist()}
        wanted = {*train.items[5:PER_USER].tolist()}
        assert len(history) == 4 and set(items.tolist()) == wanted | (history if earlier else set())
        assert set(positions.tolist()) == {0}
        some = torch.tensor([*history, 0])
        assert set(made.excluded(row, some)[1].tolist()) == set(items.tolist()) & set(some.tolist())


def test_history_negatives_are_none_where_each_needs_a_forward_pass() -> None:
    made = objective(gaps=True, kd_history_negatives=True, in_pairs=False)
    made.student.in_pairs = True  # decided on the first batch
    loss = step(made)[0]
    masked = objective(gaps=True, kd_history_mask=True, in_pairs=False)
    masked.student.in_pairs = True
    assert torch.equal(loss, step(masked)[0])


@pytest.mark.parametrize("kind", ["SEQUENTIAL", "GENERAL"])
def test_history_negatives_add_the_students_share_of_the_history(kind: str) -> None:
    """KL over candidates and history = KL over candidates - log(1 - the history's share), for sequential students."""
    settings = {"MODEL_TYPE": ModelType[kind], "MAX_ITEM_LIST_LENGTH": 50}
    masked = objective(gaps=True, **settings, kd_history_mask=True)
    made = objective(gaps=True, **settings, kd_history_negatives=True)
    loss, gradient, means = step(made)
    expected, _, means_of_masked = step(masked)
    assert {**means, "kd_loss": 0} == {**means_of_masked, "kd_loss": 0}
    if kind == "GENERAL":
        assert torch.equal(loss, expected)
        return
    train, more = made.train, []
    items = in_batch_items(train.targets[BATCH])
    mask = candidate_mask(items, train.targets[BATCH], made.excluded(BATCH, items))
    columns = target_columns(items, train.targets[BATCH])
    fused = made.fuse(made.teacher_cache.scores(BATCH, items), columns, mask)
    for row, number in enumerate(BATCH.tolist()):
        if fused.target[row].sum() == 0:
            continue
        history = {*train.items[train.start[number] : train.stop[number]].tolist()} - {int(train.targets[number])}
        exp = (made.student.table.detach()[number] / 2.0).exp()
        counted = exp[items[fused.covered[row]]].sum()
        had = exp[sorted(history)].sum()
        more.append(4.0 * ((counted + had) / counted).log())
        assert (gradient[number][sorted(history)] > 0).all()
    torch.testing.assert_close(loss, expected + torch.stack(more).mean(), rtol=1e-5, atol=0)


def test_the_first_batch_says_what_is_minimised(caplog) -> None:
    caplog.set_level("INFO")
    settings = {"kd_weight": 3, "kd_curriculum": "easy", "kd_pacing": "root", "kd_pacing_start": 0.3}
    made = objective(gaps=False, **settings, kd_pacing_length=7, kd_max_rows=5)
    step(made)
    for part in (
        "3 x kl",
        "student / 2)",
        "std, damping 0.5",
        "easy, root from 0.3 of the examples to all in 7",
        "without false negatives",
    ):
        assert part in caplog.text
    assert f"kd_loss on 5 examples of the first batch, {len(in_batch_items(made.train.targets[BATCH]))} " in caplog.text


def test_a_batch_of_one_row_and_one_candidate_teaches_nothing() -> None:
    made = objective(gaps=False)
    loss = made({"kd_example": torch.tensor([7]), "item_id": made.train.targets[7:8]})
    means = made.epoch_means()
    assert loss.item() == 0 and means["inconsistent"] == means["rows_without_knowledge"] == 0
    assert sum(value for name, value in means.items() if name.startswith("weight_")) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["rd", "rrd", "dllm2rec"])
@pytest.mark.parametrize("in_pairs", [False, True])
def test_peers_learn_from_the_head_of_the_teachers_whole_catalogue(
    kind: str, in_pairs: bool, monkeypatch, tmp_path
) -> None:
    """With one teacher: the list is the teacher's own, without items of the user and, but for dllm2rec, the target."""
    given = []
    monkeypatch.setattr(method_steps, "kd_loss", lambda *parts: given.append(parts) or kd_loss(*parts))
    only = {"kd_loss": kind, "kd_candidates": "teacher_top", "kd_history_mask": True}
    made = objective(gaps=False, in_pairs=in_pairs, kd_confidence="uniform", kd_consistency="none", **only)
    made.teacher_cache = knowledge(gaps=False, widths=(12,))
    made.top_items = top_items_of(
        {**made.config, "kd_cache_dir": tmp_path}, made.teacher_cache, made.train, made.excluded
    )
    made.student.scores = _item_numbers(made.student)
    made({"kd_example": BATCH, "item_id": made.train.targets[BATCH]})
    ((numbers, target, mask, *_),) = given
    columns, listed = teacher_ranking(target, mask, 6)
    cosines = made.teacher_cache.scores(BATCH, torch.arange(1, ITEMS))[0]
    for row, its, in_list in zip(range(len(BATCH)), numbers.gather(1, columns).long().tolist(), listed, strict=True):
        number = int(BATCH[row])
        own = int(made.train.targets[number])
        theirs = set(made.train.targets[number // PER_USER * PER_USER :][:PER_USER].tolist())
        left_out = theirs if BASELINES[kind].without_target else theirs - {own}
        order = [item + 1 for item in cosines[row].argsort(descending=True).tolist() if item + 1 not in left_out]
        assert bool(in_list.all()) and its == order[:6]


def _item_numbers(scorer: Student):
    """A scorer's `scores` that gives the candidates' own numbers."""

    def numbers(interaction, positions, candidates):
        return candidates.expand(len(positions), -1).float().requires_grad_()

    return numbers


def test_rds_warm_up_ends_with_its_epochs(tmp_path) -> None:
    """In the warm-up an item that the student ranks high enough teaches too."""
    only = {"kd_loss": "rd", "kd_candidates": "teacher_top", "kd_rank_warm_up": 2, "kd_rank_discrepancy": 0.3}
    made = objective(gaps=False, **only)
    made.top_items = top_items_of(
        {**made.config, "kd_cache_dir": tmp_path}, made.teacher_cache, made.train, made.excluded
    )
    made.student.scores = lambda _, positions, candidates: torch.zeros(len(positions), candidates.shape[-1])
    losses = []
    for epoch in range(4):
        made.begin(epoch, 1)
        losses.append(made({"kd_example": BATCH, "item_id": made.train.targets[BATCH]}).item())
    assert losses[0] == losses[1] > 0 and losses[2] == losses[3] != losses[0]


def _note_last_part(scores, shared, examples, *parts):
    """`TeacherCache.scores`, noting the candidates that all examples share beside their own targets."""
    shared.append(parts[-1].tolist())
    return scores(examples, *parts)


@pytest.mark.parametrize("pairs", [False, True])
def test_processes_with_parts_of_different_size_share_their_candidates(pairs: bool, monkeypatch) -> None:
    """Each samples the examples of its own part, which must not move what all sample: step after step."""
    batches = [torch.randperm(N)[:41] for _ in range(4)]
    seen: list[list[list[int]]] = []
    for rank in (0, 1):
        several = {"single_spec": False, "local_rank": rank, "offset": 0, "world_size": 2}
        made = objective(False, in_pairs=pairs, kd_max_rows=5, kd_max_candidates=4, **several)
        shared: list[list[int]] = []
        made.teacher_cache.scores = partial(_note_last_part, made.teacher_cache.scores, shared)
        for batch in batches:
            everyone = made.train.targets[batch]
            monkeypatch.setattr(module, "gathered", lambda targets, config, whole=everyone: whole)
            part = batch.tensor_split(2)[rank]
            loss = made({"kd_example": part, "item_id": made.train.targets[part]})
            assert torch.isfinite(loss)
        made({"kd_example": batch[:0], "item_id": everyone[:0]})  # a process without an example samples all the same
        seen.append(shared)
    assert seen[0] == seen[1] and len({tuple(step) for step in seen[0]}) > 1

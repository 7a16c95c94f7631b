"""Extra candidates: the items that teachers and student rank first, never one that is there already or excluded."""

import numpy as np
import pytest
import torch
from recbole.utils import get_model

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.data.split import load_split
from recbole_prmkd.distil.top_items import distinct, first_of, teachers_first
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.students.adapter import StudentAdapter
from recbole_prmkd.teacher_cache.scores import CachedTeacher, TeacherCache

N, ITEMS, D = 7, 12, 4


@pytest.fixture
def knowledge():
    """Two teachers with their own numbering of the items; the second does not know item 3."""
    canonical = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(ITEMS - 1)])

    def teacher(name, unknown=()):
        items, rows = torch.randn(ITEMS, D), torch.randn(N, D)
        items = torch.nn.functional.normalize(items, dim=1)
        items[canonical[[0, *unknown]]] = 0
        return CachedTeacher(name, 0.07, 0.5, items.half(), rows.numpy().astype(np.float16))

    return TeacherCache([teacher("A"), teacher("B", [3])], canonical, torch.device("cpu"))


def test_teachers_first_items(knowledge):
    excluded = [[1], [2, 4], *[[]] * (N - 2)]
    first, cosines = teachers_first(knowledge, N, 6, lambda index: (torch.tensor([0, 1, 1]), torch.tensor([1, 2, 4])))
    assert first.shape == (N, 6)
    torch.testing.assert_close(cosines, knowledge.scores(torch.arange(N), first), equal_nan=True)
    scores = knowledge.scores(torch.arange(N), torch.arange(ITEMS))
    known = ~scores.isnan()
    for row in range(N):
        for teacher in range(2):
            allowed = [item for item in range(1, ITEMS) if known[teacher, row, item] and item not in excluded[row]]
            best = sorted(allowed, key=lambda item: -scores[teacher, row, item])[:3]
            assert first[row, 3 * teacher : 3 * teacher + 3].tolist() == best


def test_more_than_there_is(knowledge):
    everything = torch.arange(N).repeat_interleave(ITEMS - 1), torch.arange(1, ITEMS).repeat(N)
    first, _ = teachers_first(knowledge, N, 100, lambda index: everything)
    assert first.shape == (N, 2 * (ITEMS - 1)) and not first.any()


def test_students_first_items():
    scores = torch.tensor([[9.0, 1, 5, 3, 4], [9.0, 2, 1, 8, 0]], requires_grad=True)
    assert first_of(scores, 2, (torch.tensor([0]), torch.tensor([2]))).tolist() == [[4, 3], [3, 1]]
    assert first_of(scores, 99, (torch.tensor([0]), torch.tensor([0]))).shape == (2, 4)


def test_distinct():
    extra = torch.tensor([[5, 6, 5, 0], [7, 8, 9, 8]])
    assert distinct(extra, torch.tensor([6, 9])).tolist() == [[True, False, False, False], [True, True, False, False]]
    per_row = torch.tensor([[5, 1], [2, 3]])
    assert distinct(extra, per_row).tolist() == [[False, True, False, False], [True, True, True, False]]


@pytest.mark.parametrize("student", ["SASRec", "LightGCN", "DeepFM"])
@pytest.mark.parametrize("source", ["teacher_top", "student_top", "both_top"])
def test_runs(student, source, settings):
    given = settings(kd="mean", kd_candidates=source, kd_top_items=4, epochs=1, train_batch_size=12)
    if student == "DeepFM" and source != "teacher_top":
        with pytest.raises(UserError, match="use kd_candidates=batch or teacher_top"):
            run_recbole_prmkd(student, "tiny", config_dict=given)
        return
    run = run_recbole_prmkd(student, "tiny", config_dict=given)
    plain = run_recbole_prmkd(student, "tiny", config_dict={**given, "kd_candidates": "batch"})
    losses = [each["result"]["distillation"][0]["kd_loss"] for each in (run, plain)]
    assert np.isfinite(losses).all() and losses[0] != losses[1]


def test_scores_of_own_candidates_are_the_students(settings):
    config = load_config("SASRec", "tiny", config_dict=settings(kd="mean"))
    split = load_split(config)
    model = get_model("SASRec")(config, split.train_data._dataset).eval()
    scorer = StudentAdapter(model, config, split.train_data._dataset, split.train)
    batch = next(iter(split.train_data))
    with scorer.watching():
        model.calculate_loss(batch)
    scorer.prepare(batch)
    positions, _ = scorer.positives(batch, torch.Generator())
    everything = model.full_sort_predict(batch)[positions]
    own = torch.randint(1, everything.shape[1], (len(positions), 3))
    torch.testing.assert_close(scorer.scores(batch, positions, own), everything.gather(1, own))
    history = batch["item_id_list"][positions]
    rows = torch.arange(len(positions)).repeat_interleave(history.shape[1])
    first = scorer.first(batch, positions, 5, (rows, history.flatten()))
    allowed = everything.scatter(1, history, -torch.inf)
    allowed[:, 0] = -torch.inf
    torch.testing.assert_close(first, allowed.topk(5, dim=1).indices)

"""Extra candidates: the items that teachers and student rank first, never one that is there already or excluded."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recbole.utils import get_model
from strategies import cosines

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.data.split import load_split
from recbole_prmkd.distil.candidates import distinct, ranked_first
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.students.adapter import StudentAdapter
from recbole_prmkd.students.probe import decide


def test_students_first_items():
    scores = torch.tensor([[9.0, 1, 5, 3, 4], [9.0, 2, 1, 8, 0]], requires_grad=True)
    assert ranked_first(scores, 2, (torch.tensor([0]), torch.tensor([2]))).tolist() == [[4, 3], [3, 1]]
    assert ranked_first(scores, 99, (torch.tensor([0]), torch.tensor([0]))).shape == (2, 4)


@given(cosines(2, 7), st.integers(1, 9), st.sets(st.tuples(st.integers(0, 1), st.integers(0, 6))))
def test_students_first_items_are_the_best_that_are_left(scores, number, excluded):
    pairs = torch.tensor(sorted(excluded), dtype=torch.long).view(-1, 2)
    first = ranked_first(scores, number, (pairs[:, 0], pairs[:, 1]))
    for row in range(2):
        left = [item for item in range(1, 7) if (row, item) not in excluded]
        items = [item for item in first[row].tolist() if item]
        assert len(set(items)) == len(items) == min(number, len(left)) and set(items) <= set(left)
        best = sorted(scores[row, left].tolist(), reverse=True)[: len(items)]
        assert scores[row, items].tolist() == best
        assert first[row].tolist() == items + [0] * (min(number, 6) - len(items))


ROW = st.lists(st.integers(0, 9), min_size=4, max_size=4)


@given(st.lists(ROW, min_size=2, max_size=2), st.lists(st.integers(1, 9), max_size=3), st.lists(ROW, max_size=2))
def test_distinct_equals_its_definition(extra, shared, own):
    before = [torch.tensor(shared, dtype=torch.long), *([torch.tensor(own)] if len(own) == 2 else [])]
    got = distinct(torch.tensor(extra), *before).tolist()
    for row, items in enumerate(extra):
        there = {0, *shared, *(own[row] if len(own) == 2 else [])}
        assert got[row] == [item not in there and item not in items[:m] for m, item in enumerate(items)]


@pytest.mark.parametrize(
    ("student", "sources"),
    [
        ("SASRec", ["teacher_top", "student_top", "both_top"]),
        ("LightGCN", ["both_top"]),
        ("DeepFM", ["teacher_top"]),
    ],
)
def test_each_source_gives_a_kd_loss_of_its_own(student, sources, settings):
    losses = []
    for source in ["batch", *sources]:
        given_ = settings(kd="mean", kd_candidates=source, kd_top_items=4, epochs=1, train_batch_size=12)
        run = run_recbole_prmkd(student, "tiny", config_dict=given_)
        losses.append(run["result"]["distillation"][0]["kd_loss"])
    assert np.isfinite(losses).all() and len(set(losses)) == len(losses)


@pytest.mark.parametrize("source", ["student_top", "both_top"])
def test_a_student_that_scores_pairs_cannot_rank_all_items(source, settings):
    with pytest.raises(UserError, match="use kd_candidates=batch or teacher_top"):
        run_recbole_prmkd("DeepFM", "tiny", config_dict=settings(kd="mean", kd_candidates=source, epochs=1))


@pytest.mark.parametrize("model", ["SASRec", "LightGCN"])
def test_own_candidates_and_first_items_are_those_of_the_students_ranking(model, settings):
    config = load_config(model, "tiny", config_dict=settings(kd="mean"))
    split = load_split(config)
    net = get_model(model)(config, split.train_data._dataset).eval()
    student = StudentAdapter(net, config, split.train_data._dataset, split.train)
    batch = next(iter(split.train_data))
    with student.attached():
        student.rec_loss(net.calculate_loss, batch)
        decide(student, batch)
        positions, _ = student.positives(batch, torch.Generator())
        everything = net.full_sort_predict(batch).view(len(batch), -1)[positions]
        own = torch.randint(1, everything.shape[1], (len(positions), 3))
        torch.testing.assert_close(student.scores(batch, positions, own), everything.gather(1, own))
        torch.testing.assert_close(student.all_scores(batch, positions), everything)

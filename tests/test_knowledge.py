"""The knowledge cache gives the live teacher's scores, for any rows and candidates, and zero where it knows nothing."""

import pytest
import torch
from conftest import write_tiny
from torch.nn import functional

from recbole_prmkd.config import load_config
from recbole_prmkd.dataset import load_split
from recbole_prmkd.knowledge import build_or_load, open_knowledge
from recbole_prmkd.objective import Objective
from recbole_prmkd.teachers.data import teacher_data
from recbole_prmkd.teachers.fit import fit_or_load


class GivenScores:
    """A student whose scores are a parameter [n_rows, n_items]."""

    by_pairs = False

    def __init__(self, split):
        self.table = torch.randn(len(split.train), len(split.item_tokens) + 1, requires_grad=True)

    def prepare(self, interaction):
        pass

    def positives(self, interaction):
        return torch.arange(len(interaction["kd_row"]))

    def scores(self, interaction, places, candidates):
        return self.table[interaction["kd_row"]][:, candidates]

    def release(self):
        pass


@pytest.fixture
def built(settings):
    def make(model="LightGCN", **more):
        config = load_config(model, "tiny", config_dict=settings(kd="mean", **more))
        split = load_split(config)
        data = teacher_data(split, config["seed"])
        teachers = [fit_or_load(name, config, data) for name in config["kd_teachers"]]
        folders = [build_or_load(teacher, data, config)[0] for teacher in teachers]
        return config, split, data, teachers, open_knowledge(teachers, folders, data, torch.device("cpu"))

    return make


def test_scores_are_the_live_teachers(built):
    config, split, data, (teacher,), knowledge = built()
    longest = teacher.config["MAX_ITEM_LIST_LENGTH"]
    rows = torch.nonzero((split.train.lengths > 0) & (split.train.lengths <= longest)).squeeze(1)[::3]
    candidates = torch.arange(1, len(split.item_tokens) + 1)
    scores, known = knowledge.scores(rows, candidates)
    seq, length = data.train.histories(rows, longest)
    items = teacher.model.encode_items()
    history = functional.normalize(teacher.model.encode_histories(seq, length, items), dim=-1)
    live = history @ functional.normalize(items, dim=-1)[data.canonical[candidates]].T
    torch.testing.assert_close(scores[0], live, rtol=0, atol=2e-3)  # half precision
    assert known.all()
    per_row, _ = knowledge.scores(rows, candidates.expand(len(rows), -1))
    torch.testing.assert_close(per_row, scores)


def test_unknown_rows_and_items_have_no_weight(built, tmp_path):
    data = write_tiny(tmp_path)
    file = data / "tiny" / "tiny.item"
    file.write_text("".join(line for line in file.open() if not line.startswith("i7\t")))
    config, split, _, _, knowledge = built(data_path=str(data))
    candidates = torch.arange(1, 31)
    _, known = knowledge.scores(torch.arange(len(split.train)), candidates)
    without_text = split.item_tokens.index("i7")
    assert not known[0, :, without_text].any()
    assert torch.equal(known[0].any(1), split.train.lengths > 0)
    objective = Objective(config, knowledge, split.train, split.later, GivenScores(split))
    rows = torch.nonzero(split.train.lengths == 0).squeeze(1)[:2]
    batch = {"kd_row": rows, "item_id": split.train.targets[rows]}
    loss = objective(batch)
    assert loss.item() == 0 and objective.epoch_means()["rows_without_knowledge"] == 1


def test_objective_by_hand(built):
    """One teacher: KL of its masked softmax at its own temperature against the student's."""
    config, split, _, (teacher,), knowledge = built(kd_confidence="probability", kd_consistency="std")
    scorer = GivenScores(split)
    objective = Objective(config, knowledge, split.train, split.later, scorer)
    rows = torch.nonzero(split.train.lengths > 0).squeeze(1)[:40:4]
    batch = {"kd_row": rows, "item_id": split.train.targets[rows]}
    loss = objective(batch)
    items = torch.unique(batch["item_id"])
    total = 0.0
    for n, row in enumerate(rows.tolist()):
        later = set(split.later.histories(torch.tensor([row]), 99)[0][0].tolist()) - {int(batch["item_id"][n])}
        mine = torch.tensor([item for item in items.tolist() if item not in later])
        target = (knowledge.scores(rows[n : n + 1], mine)[0][0, 0] / teacher.model.temperature).softmax(0)
        student = scorer.table[row, mine].log_softmax(0)
        total += functional.kl_div(student, target, reduction="sum").item()
    assert loss.item() == pytest.approx(total / len(rows), rel=1e-5)
    loss.backward()
    assert scorer.table.grad.abs().sum() > 0


def test_teacher_without_gradient_and_outside_the_student(built):
    _, _, _, (teacher,), _ = built()
    assert not any(p.requires_grad for p in teacher.model.parameters()) and not teacher.model.training

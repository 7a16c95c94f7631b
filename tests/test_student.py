"""The student's scores: those that evaluation ranks by, with gradient, no stale cache, positive rows only."""

from contextlib import ExitStack
from functools import partial

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import get_model, init_seed

from recbole_prmkd.data.examples import EXAMPLE
from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.students.adapter import StudentAdapter
from recbole_prmkd.students.defaults import StudentDefaults
from recbole_prmkd.students.probe import decide

LABELS = {  # in place of sampled negatives
    "threshold": {"rating": 4},
    "train_neg_sample_args": None,
    "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
}


@pytest.fixture
def student_of(cpu_settings):
    def make(model, **more):
        config = load_config(model, "tiny", config_dict=cpu_settings(kd="mean", **more))
        split = load_split(config)
        net = get_model(model)(config, split.train_data._dataset)
        student = StudentAdapter(net, config, split.train_data._dataset, split.train)
        attached.enter_context(student.attached())
        return student, net, next(iter(split.train_data)), split

    with ExitStack() as attached:
        yield make


@pytest.mark.parametrize(
    ("model", "path", "more"),
    [
        ("SASRec", "factorised", {}),
        ("GRU4Rec", "factorised", {}),
        ("SASRec", "factorised", {"loss_type": "BPR"}),
        ("BERT4Rec", "full", {}),
        ("LightGCN", "factorised", {}),
        ("BPR", "factorised", {}),
        ("FPMC", "factorised", {}),
        ("MultiVAE", "factorised", {"train_neg_sample_args": None}),
        ("DeepFM", "pairs", {}),
        ("FM", "pairs", {}),
    ],
)
def test_scores_rank_as_evaluation_does(model, path, more, student_of):
    student, net, batch, split = student_of(model, **more)
    net.eval()  # no dropout: the same numbers twice
    student.rec_loss(net.calculate_loss, batch)
    decide(student, batch)
    assert student.family.name == path
    positions, _ = student.positives(batch, torch.Generator())
    candidates = torch.tensor([1, 5, 9])
    wanted = candidates.expand(len(positions), -1) if student.in_pairs else candidates
    scores = student.scores(batch, positions, wanted)  # [B, C]
    assert scores.requires_grad and scores.shape == (len(positions), 3)
    for column, item in enumerate(candidates.tolist()):
        row = {name: batch[name][positions] for name in batch.columns}
        row["item_id"] = torch.full((len(positions),), item)
        own = net.predict(Interaction(row))
        ours = scores[:, column]
        torch.testing.assert_close(ours.sigmoid() if student.in_pairs else ours, own, rtol=1e-4, atol=1e-5)
    if not student.in_pairs:
        own = torch.stack([candidates.roll(place) for place in range(len(positions))])  # [B, C] of each row
        columns = torch.stack([torch.arange(3).roll(place) for place in range(len(positions))])
        torch.testing.assert_close(student.scores(batch, positions, own), scores.gather(1, columns))
    scores.sum().backward()
    assert any(p.grad is not None and bool((p.grad != 0).any()) for p in net.parameters())
    student.release()
    assert all(value is None for name, value in vars(net).items() if name.startswith("restore_"))


def test_logits_that_are_no_product_are_taken_as_they_are(student_of):
    student, net, batch, _ = student_of("CORE")
    net.train()  # its loss drops out parts of the items too, which its ranking does not
    student.rec_loss(net.calculate_loss, batch)
    decide(student, batch)
    assert student.family.name == "loss"
    positions, candidates = torch.arange(len(batch)), torch.tensor([1, 5, 9])
    assert torch.equal(student.scores(batch, positions, candidates), student.loss_logits[:, candidates])


@pytest.mark.parametrize(
    ("model", "rows", "every", "temperature", "weight", "more"),
    [
        ("SASRec", None, 1, 1.0, 1.0, {}),
        ("GRU4Rec", 512, 2, 1.0, 1.0, {}),
        ("NARM", 512, 2, 1.0, 1.0, {}),
        ("SASRec", None, 1, 0.1, 0.1, {"loss_type": "BPR"}),
        ("BERT4Rec", 256, 1, 1.0, 1.0, {}),
        ("DIN", 256, 1, 1.0, 0.01, {}),  # pair by pair
        ("BPR", 64, 16, 0.1, 0.1, {}),
        ("LightGCN", 256, 4, 0.1, 0.1, {}),
        ("MultiVAE", 64, 16, 1.0, 1.0, {"train_neg_sample_args": None}),
        ("MultiVAE", 64, 16, 1.0, 1.0, {}),
        ("SGL", 256, 4, 0.1, 1.0, {}),  # its loss is a sum
        ("SINE", None, 1, 1.0, 1.0, {"interest_size": 2}),  # RecBole calls it pairwise
        ("DeepFM", 16, 4, 1.0, 0.01, {}),
        ("NeuMF", 16, 4, 1.0, 0.01, LABELS),
        ("DSSM", 16, 4, 0.1, 0.01, LABELS),  # its scores are cosines
    ],
)
def test_what_is_usual_for_a_student(model, rows, every, temperature, weight, more, student_of):
    student, net, batch, _ = student_of(model, **more)
    net.train()  # where SGL makes its graphs
    student.rec_loss(net.calculate_loss, batch)
    decide(student, batch)
    assert student.kd == StudentDefaults(rows, every, temperature, weight)


@pytest.mark.parametrize(
    ("model", "shares_pass", "more"),
    [
        ("SASRec", True, {}),
        ("SASRec", True, {"loss_type": "BPR"}),
        ("CORE", True, {}),
        ("BERT4Rec", False, {}),
        ("DIN", False, {}),
        ("LightGCN", False, {}),
        ("DeepFM", False, {}),
    ],
)
def test_rows_are_scored_alone_where_the_loss_has_not_passed_them(model, shares_pass, more, student_of):
    student, net, batch, _ = student_of(model, **more)
    net.eval()
    student.rec_loss(net.calculate_loss, batch)
    decide(student, batch)
    assert student.shares_forward == shares_pass
    everything, _ = student.positives(batch, torch.Generator())
    positions, candidates = everything[2:9:3], torch.tensor([1, 5, 9])

    def scores(positions):
        student.family.forget()  # as in another step
        return student.scores(
            batch, positions, candidates.expand(len(positions), -1) if student.in_pairs else candidates
        )

    torch.testing.assert_close(scores(positions), scores(everything)[2:9:3], rtol=1e-4, atol=1e-6)
    if shares_pass or model == "BERT4Rec":
        kept = student.kept
        before = len(kept.outputs)
        scores(positions)
        passed = [len(key[0]) for key, _ in kept.outputs[before:]]
        assert passed == ([] if shares_pass else [len(positions)])


def test_positive_rows_once_each(student_of):
    student, _, batch, _ = student_of("DeepFM", train_neg_sample_args={"distribution": "uniform", "sample_num": 3})
    positions, _ = student.positives(batch, torch.Generator())
    assert bool((batch["label"][positions] == 1).all())
    assert len(torch.unique(batch[EXAMPLE][positions])) == len(positions) == len(batch) // 4
    student, _, batch, _ = student_of("BPR", train_neg_sample_args={"distribution": "uniform", "sample_num": 3})
    assert len(student.positives(batch, torch.Generator())[0]) == len(batch) // 3


def test_the_forward_pass_is_shared(student_of, monkeypatch):
    calls, light_gcn = [], get_model("LightGCN")
    forward = light_gcn.forward
    monkeypatch.setattr(light_gcn, "forward", lambda self, *a: calls.append(1) or forward(self, *a))
    student, net, batch, _ = student_of("LightGCN")
    student.rec_loss(net.calculate_loss, batch)
    decide(student, batch)
    student.scores(batch, student.positives(batch, torch.Generator())[0], torch.tensor([1, 2]))
    assert len(calls) == 1


def test_the_loss_itself_shares_no_pass(student_of):
    """FEARec passes the same histories twice, for two views by two dropouts."""
    student, net, batch, _ = student_of("FEARec", contrast="us", sim="dot", tau=1)
    losses = []
    for loss in (net.calculate_loss, partial(student.rec_loss, net.calculate_loss)):
        init_seed(3, True)
        losses.append(loss(batch))
    assert torch.equal(*losses)


@pytest.mark.parametrize(("activation", "wanted"), [("sigmoid", -1.0), ("relu", 0.0)])
def test_probabilities_are_made_logits(activation, wanted, student_of):
    """An auto-encoder whose decoder says -1 everywhere: a probability of 0.27, or 0 after a ReLU."""
    student, net, batch, _ = student_of("CDAE", train_neg_sample_args=None, out_activation=activation)
    torch.nn.init.zeros_(net.out_layer.weight)
    torch.nn.init.constant_(net.out_layer.bias, -1)
    student.rec_loss(net.calculate_loss, batch)
    decide(student, batch)
    positions, _ = student.positives(batch, torch.Generator())
    scores = student.scores(batch, positions, torch.tensor([1, 2]))
    torch.testing.assert_close(scores, torch.full_like(scores, wanted))


def test_whole_users_come_with_one_of_their_rows_each(student_of):
    student, _, batch, split = student_of("MultiVAE", train_neg_sample_args=None)
    seen, generator = [], torch.Generator()
    for _ in range(20):
        positions, rows = student.positives(batch, generator)
        torch.testing.assert_close(batch["user_id"][positions], split.train.users[rows])
        assert bool((split.train.lengths[rows] > 0).all())
        seen.append(rows)
    with_history = torch.unique(split.train.users[split.train.lengths > 0])
    torch.testing.assert_close(
        batch["user_id"][positions].sort().values, with_history[torch.isin(with_history, batch["user_id"])]
    )
    assert len(torch.unique(torch.cat(seen))) > 2 * len(positions)

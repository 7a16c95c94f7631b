"""The unseen ranking against a count by hand: earlier items out, the target always in."""

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import get_model, get_trainer

from recbole_prmkd import run_recbole_prmkd
from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.recbole_host.run_files import quiet_trainer
from recbole_prmkd.results.evaluation import evaluate_unseen
from recbole_prmkd.results.target_ranks import rank_of
from recbole_prmkd.teachers.data import teacher_data
from recbole_prmkd.teachers.fit import encoded_once, fit_or_load


def hit(scores, examples, n, cutoff=5):
    """Whether example n's target is among the first, its earlier items out of the ranking."""
    target, earlier = int(examples.targets[n]), examples.histories(torch.tensor([n]), 99)[0][0]
    own = scores[target].item()
    scores[0] = scores[earlier] = -torch.inf
    scores[target] = own
    return bool((scores > own).sum() < cutoff)


def test_unseen_by_hand(cpu_settings, tmp_path):
    config = load_config("SASRec", "tiny", config_dict=cpu_settings(kd="none", topk=[5], valid_metric="MRR@5"))
    split = load_split(config)
    net = get_model("SASRec")(config, split.train_data._dataset).eval()
    trainer = quiet_trainer(get_trainer(config["MODEL_TYPE"], "SASRec"), config, net, tmp_path)
    metrics = evaluate_unseen(trainer, config, split.test_data, split.test)
    hits = []
    for n in range(len(split.test)):
        row = split.test_data._dataset[[n]]
        scores = net.full_sort_predict(row)[0].detach().clone()
        hits.append(hit(scores, split.test, n))
    assert metrics["recall@5"] == pytest.approx(sum(hits) / len(hits), abs=1e-4)


def test_general_models_leave_earlier_items_out_already(cpu_settings, tmp_path):
    config = load_config("BPR", "tiny", config_dict=cpu_settings(kd="none", kd_protocol="ranking"))
    split = load_split(config)
    assert evaluate_unseen(None, config, split.test_data, split.test) is None


@pytest.mark.parametrize(
    "more",
    [{"repeatable": True}, {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "uni5"}}],
)
@pytest.mark.parametrize("model", ["BPR", "DeepFM"])
def test_general_models_where_recbole_does_not_leave_them_out(model, more, cpu_settings, tmp_path):
    """Repeated items are left in by RecBole, and samples are not all items."""
    given = cpu_settings(kd="none", kd_protocol="ranking", topk=[5], valid_metric="MRR@5", metrics=["Recall", "MRR"])
    config = load_config(model, "tiny", config_dict={**given, **more})
    split = load_split(config)
    net = get_model(model)(config, split.train_data._dataset).eval()
    trainer = quiet_trainer(get_trainer(config["MODEL_TYPE"], model), config, net, tmp_path)
    metrics = evaluate_unseen(trainer, config, split.test_data, split.test)
    items = torch.arange(split.dataset.item_num)
    hits = []
    for n in range(len(split.test)):
        row = Interaction({"user_id": split.test.users[n].expand(len(items)), "item_id": items})
        scores = net.predict(split.test_data._dataset.join(row)).detach().clone()
        hits.append(hit(scores, split.test, n))
    assert metrics["recall@5"] == pytest.approx(sum(hits) / len(hits), abs=1e-4)


def test_a_teacher_is_encoded_once_and_ranks_the_same(cpu_settings, tmp_path):
    config = load_config("SASRec", "tiny", config_dict=cpu_settings(kd="mean"))
    split = load_split(config)
    data = teacher_data(split, 1)
    model = fit_or_load("UniSRec", config, data).model
    batch = data.dataset(config, data.test)[torch.arange(len(data.test))]
    other = data.dataset(config, data.valid)[torch.arange(len(data.valid))]
    alone = [model.full_sort_predict(each) for each in (batch, other)]
    calls, encode = [], model.encode_histories
    model.encode_histories = lambda *arguments: calls.append(1) or encode(*arguments)
    with torch.no_grad(), encoded_once(model):
        for _ in range(2):
            for each, scores in zip((batch, other), alone, strict=True):
                assert torch.equal(model.full_sort_predict(each), scores)
    assert len(calls) == 2
    assert "encode_items" not in vars(model) and "encode_batch" not in vars(model)


NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "item", "rank"),
    [
        ([0.1, 0.5, 0.3, 0.2], 2, 2),
        ([0.1, 0.5, 0.5, 0.5], 2, 2),  # of equal scores the lower id is first
        ([0.1, NAN, 0.3, NAN], 2, 1),  # no other item without a number is ahead
        ([0.1, NAN, 0.3, 0.2], 1, 4),  # a target without a number is the last
        ([NAN, NAN, NAN, NAN], 1, 4),
        ([-torch.inf, NAN, 0.3, -torch.inf], 1, 4),  # behind the items that are left out, too
    ],
)
def test_rank_of_the_target(scores, item, rank):
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0], scores])
    assert rank_of(scores, torch.tensor([1, 0]), torch.tensor([item, 3])).tolist() == [rank, 1]


@pytest.mark.parametrize("kd", ["none", "mean"])
@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_validations_rank_the_same_samples_in_all_epochs_and_runs(model, kd, settings):
    """A student that learns nothing has one score; stock RecBole's own changes from epoch to epoch."""
    arguments = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user"}
    given = {"learning_rate": 0.0, "weight_decay": 0.0, "epochs": 4, "metrics": ["NDCG"], "valid_metric": "NDCG@10"}
    given |= {"kd": kd, "kd_protocol": "ranking", "eval_args": {**arguments, "mode": {"valid": "uni9", "test": "full"}}}
    first = run_recbole_prmkd(model, "tiny", config_dict=settings(**given))["result"]["student"]
    assert len(set(first["valid_scores"])) == 1
    again = run_recbole_prmkd(model, "tiny", config_dict=settings(**given, eval_batch_size=64))["result"]["student"]
    assert again["valid_scores"] == first["valid_scores"]  # whatever the batches are

"""A teacher's metrics over the test examples that it covers, and the student's over the same."""

import numpy as np
import pytest
import torch

from recbole_prmkd import run_recbole_prmkd
from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.results.covered import metrics_of_ranks

KEYS = {"metrics": ["NDCG", "Recall", "Hit", "MRR", "Precision", "MAP"], "topk": [5, 10]}


@pytest.fixture
def vectors(tmp_path, cpu_settings):
    """Settings of a teacher that has vectors of a share of the users and items, and the tokens that it has."""
    split = load_split(load_config("SASRec", "tiny", config_dict=cpu_settings()))

    def make(users, items):
        rng, named = np.random.default_rng(0), {}
        for name, key, tokens, share in (
            ("items", "item_id", split.item_tokens, items),
            ("users", "user_id", split.user_tokens, users),
        ):
            named[name] = sorted(tokens)[: int(share * len(tokens))]
            feat = rng.standard_normal((len(named[name]), 5)).astype(np.float32)
            np.savez(tmp_path / f"{name}.npz", feat=feat, **{key: np.array(named[name])})
        given = {f"kd_vectors_{name}": str(tmp_path / f"{name}.npz") for name in named}
        return {"kd_teachers": ["Vectors"], **given}, named

    return make


def hand(ranks, k):
    """By the definitions, from ranks."""
    inside = ranks <= k
    return {
        f"ndcg@{k}": np.mean(inside / np.log2(ranks + 1)),
        f"recall@{k}": np.mean(inside),
        f"hit@{k}": np.mean(inside),
        f"mrr@{k}": np.mean(inside / ranks),
        f"map@{k}": np.mean(inside / ranks),
        f"precision@{k}": np.mean(inside) / k,
    }


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_a_teacher_of_half_of_the_users(model, vectors, settings, tmp_path):
    given, named = vectors(0.5, 0.9)
    more = {"kd_save_ranks": True, "epochs": 1, "kd_protocol": "ranking", **KEYS}
    for number in range(2):  # the second run reuses the teacher and its metrics
        config = settings(kd="mean", kd_output_dir=str(tmp_path / str(number)), **given, **more)
        result = run_recbole_prmkd(model, "tiny", config_dict=config)["result"]
        covered = result["teachers"]["Vectors"]["covered"]
        split = load_split(load_config(model, "tiny", config_dict=settings(**given, **more)))
        stored = np.load(tmp_path / str(number) / "test_ranks.npz")
        mask = [
            split.user_tokens[user - 1] in named["users"] and split.item_tokens[item - 1] in named["items"]
            for user, item in zip(stored["user"], stored["item"], strict=True)
        ]
        assert 0 < sum(mask) < len(mask) and covered["examples"] == sum(mask)
        assert covered["share"] == pytest.approx(np.mean(mask))
        wanted = {**hand(stored["rank_unseen"][mask], 5), **hand(stored["rank_unseen"][mask], 10)}
        assert covered["student_unseen"] == pytest.approx(wanted, abs=1e-4)
        assert set(covered["test"]) == set(covered["test_unseen"]) == set(wanted)


def test_the_teachers_own_metrics_are_of_the_covered_examples_alone(vectors, settings, tmp_path):
    """Its targets are made certain: over the covered examples it is right always, over all it is not."""
    given, named = vectors(0.5, 1.0)
    split = load_split(load_config("SASRec", "tiny", config_dict=settings()))
    target = {
        split.user_tokens[u - 1]: split.item_tokens[t - 1]
        for u, t in zip(split.test.users, split.test.targets, strict=True)
    }
    place = {token: number for number, token in enumerate(split.item_tokens)}
    feat = np.eye(len(place), dtype=np.float32)
    np.savez(tmp_path / "items.npz", item_id=np.array(split.item_tokens), feat=feat)
    rows = np.array([place[target[user]] for user in named["users"]])
    np.savez(tmp_path / "users.npz", user_id=np.array(named["users"]), feat=feat[rows])
    result = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="mean", epochs=1, **given))["result"]
    teacher = result["teachers"]["Vectors"]
    assert teacher["covered"]["share"] == 0.5
    assert teacher["covered"]["test_unseen"]["ndcg@10"] == 1 > teacher["test_unseen"]["ndcg@10"]


def test_a_teacher_of_all_examples_and_one_of_the_ensemble(vectors, settings):
    given, _ = vectors(1.0, 1.0)
    result = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="mean", epochs=1, **given))["result"]
    teacher = result["teachers"]["Vectors"]
    assert teacher["covered"]["share"] == 1 and teacher["covered"]["test"] == teacher["test"]
    assert teacher["covered"]["student_unseen"] == result["student"]["test_unseen"]


def test_what_an_ensemble_cannot_save_is_said(vectors, settings, tmp_path, caplog):
    given, _ = vectors(0.5, 1.0)
    more = {"valid_metric": "NDCG@10", "metrics": ["NDCG", "ItemCoverage", "AveragePopularity"], "kd_save_ranks": True}
    result = run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="ensemble", **more, **given))["result"]
    assert result["teachers"]["Vectors"]["covered"]["student_unseen"] is None
    log = next((tmp_path / "out" / "log").rglob("*.log")).read_text()
    assert log.count("No test_ranks.npz: with kd=ensemble there is no student whose ranks could be saved.") == 1
    assert log.count("Teachers have no ItemCoverage, AveragePopularity in the result") == 1


def test_metrics_of_ranks():
    config = {**KEYS, "metric_decimal_place": 6}
    ranks = torch.tensor([1, 2, 5, 6, 11, 30])
    assert metrics_of_ranks(ranks, config) == pytest.approx(
        {**hand(ranks.numpy(), 5), **hand(ranks.numpy(), 10)}, abs=1e-6
    )

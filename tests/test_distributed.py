"""Two processes train as one does: same batches, candidates, losses and weights; on gloo and the CPU."""

import socket

import numpy as np
import pytest
import torch

from recbole_prmkd import run_recbole_prmkd
from recbole_prmkd.errors import NotFinite
from recbole_prmkd.launch import run_processes
from recbole_prmkd.recbole_host.processes import share_of

SAME = {"attn_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "metric_decimal_place": 6}


def free_port():
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


@pytest.mark.parametrize("kd", ["none", "prmkd"])
def test_two_processes_equal_one(kd, cpu_settings, tmp_path):
    """Shared prefixes, curriculum and all: the same global batches give the same weights and losses."""
    more = {**SAME, "kd": kd, "kd_protocol": "ranking", "kd_shared_prefixes": True, "train_batch_size": 64}
    alone = run_recbole_prmkd("SASRec", "tiny", config_dict=cpu_settings(**more))
    two = run_processes(
        "SASRec",
        "tiny",
        config_dict=cpu_settings(**more, kd_output_dir=str(tmp_path / "two")),
        nproc=2,
        port=free_port(),
    )
    assert two["result"]["student"]["epochs"] == 2
    for one_epoch, other in zip(alone["result"]["distillation"], two["result"]["distillation"], strict=True):
        for name in ("kd_loss", "rec_loss", "share"):
            assert other[name] == pytest.approx(one_epoch[name], rel=1e-5)
    weights = [
        torch.load(folder / "SASRec.pth", weights_only=False)["state_dict"]
        for folder in (tmp_path / "out", tmp_path / "two")
    ]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "out").iterdir()
    )


@pytest.mark.slow
def test_two_processes_keep_the_student_that_one_keeps(cpu_settings, tmp_path):
    harm = {"kd": "prmkd", "kd_shuffled_teachers": True, "kd_weight": 1000.0}
    more = {**SAME, **harm, "epochs": 4, "train_batch_size": 64, "kd_guard": True}
    one = run_recbole_prmkd("SASRec", "tiny", config_dict=cpu_settings(**more))["result"]
    given = cpu_settings(**more, kd_output_dir=str(tmp_path / "two"))
    two = run_processes("SASRec", "tiny", config_dict=given, nproc=2, port=free_port())["result"]
    assert one["guard"]["kept"] == two["guard"]["kept"] == "none"
    assert two["guard"]["valid"] == pytest.approx(one["guard"]["valid"], abs=1e-5)
    folders = [tmp_path / "out", tmp_path / "two"]
    weights = [torch.load(folder / "SASRec.pth", weights_only=False)["state_dict"] for folder in folders]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert sorted(path.name for path in folders[0].iterdir()) == sorted(path.name for path in folders[1].iterdir())


RANKED = {"metrics": ["NDCG", "MRR", "GAUC", "ItemCoverage", "AveragePopularity", "GiniIndex"], "topk": [5]}
LABELLED = {
    "metrics": ["AUC", "LogLoss"],
    "valid_metric": "AUC",
    "eval_args": {"split": {"RS": [0.7, 0.15, 0.15]}, "order": "RO", "group_by": "none", "mode": "labeled"},
    "threshold": {"rating": 4},
    "load_col": {"inter": ["user_id", "item_id", "rating"]},
    "train_neg_sample_args": None,
}


@pytest.mark.parametrize(
    ("model", "more"), [("SASRec", RANKED | {"valid_metric": "NDCG@5"}), ("BPR", RANKED), ("DeepFM", LABELLED)]
)
def test_each_user_counts_once_in_evaluation(model, more, cpu_settings, tmp_path):
    """40 users on 3 processes, of whom RecBole would repeat two; the weights stay as they were."""
    more = {"valid_metric": "MRR@5", **more, "learning_rate": 1e-12, "metric_decimal_place": 8, "kd": "none"}
    if model == "SASRec":
        more["train_neg_sample_args"] = None
    alone = run_recbole_prmkd(model, "tiny", config_dict=cpu_settings(**more))
    three = run_processes(
        model,
        "tiny",
        config_dict=cpu_settings(**more, kd_output_dir=str(tmp_path / "three")),
        nproc=3,
        port=free_port(),
    )
    one, other = alone["result"]["student"], three["result"]["student"]
    for part in ("valid", "test", "valid_unseen", "test_unseen"):
        assert other[part] == pytest.approx(one[part], abs=1e-6), part
    assert other["valid_scores"] == pytest.approx(one["valid_scores"], abs=1e-6)
    assert other["test"].keys() == one["test"].keys() and len(other["test"]) == len(more["metrics"])


@pytest.mark.parametrize("model", ["LightGCN", "DeepFM"])
def test_other_students_train_on_two_processes(model, cpu_settings):
    """RecBole's own loaders, cut by its sampler, under a curriculum."""
    returned = run_processes(model, "tiny", config_dict=cpu_settings(kd="prmkd"), nproc=2, port=free_port())
    epochs = returned["result"]["distillation"]
    assert [epoch["share"] for epoch in epochs] == pytest.approx([0.2, 0.482], abs=1e-3)
    assert all(np.isfinite(epoch["kd_loss"]) and epoch["rec_loss"] > 0 for epoch in epochs)


def test_a_recurrent_student_over_kd_max_rows_trains_on_two_processes(cpu_settings):
    """Parts of a batch that differ by an example, of which each process samples some."""
    few = {"kd": "prmkd", "train_batch_size": 65, "kd_max_rows": 10, "kd_max_candidates": 8}
    returned = run_processes("GRU4Rec", "tiny", config_dict=cpu_settings(**few), nproc=2, port=free_port())
    assert returned["result"]["student"]["kd"]["rows"] == 10
    assert all(np.isfinite(epoch["kd_loss"]) and epoch["kd_loss"] > 0 for epoch in returned["result"]["distillation"])


def test_shares_cover_the_batch_and_their_weighted_means_are_its_mean():
    positions = torch.arange(7)
    parts = [
        share_of(positions, {"single_spec": False, "local_rank": rank, "offset": 1, "world_size": 3})
        for rank in (-1, 0, 1)
    ]
    assert torch.equal(torch.cat([part for part, _ in parts]), positions)
    mean = sum(part.float().mean() * weight for part, weight in parts) / 3
    assert mean.item() == pytest.approx(3)
    assert share_of(positions[:2], {"single_spec": False, "local_rank": 0, "offset": 0, "world_size": 3}) == (
        pytest.approx(positions[:2]),
        1.0,
    )
    assert share_of(positions, {"single_spec": True})[0] is positions


def test_the_sentence_of_a_process_is_that_of_the_run(cpu_settings, tmp_path):
    given = cpu_settings(kd="none", learning_rate=1e30, train_batch_size=32)
    with pytest.raises(NotFinite, match=r"The loss of SASRec became nan .*lower learning_rate \(now 1e\+30\)"):
        run_processes("SASRec", "tiny", config_dict=given, nproc=2, port=free_port())
    assert not (tmp_path / "out" / "result.json").exists()

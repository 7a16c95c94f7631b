"""Cold items and users with a short history, as groups of their own in the result and in the reports."""

import numpy as np
import pytest
from conftest import write_tiny
from test_covered import hand

from recbole_prmkd import run_recbole_prmkd
from recbole_prmkd.compare.gather import gather
from recbole_prmkd.compare.grid import Grid
from recbole_prmkd.compare.page import write_report
from recbole_prmkd.compare.tables import groups_table
from recbole_prmkd.results import groups, report
from recbole_prmkd.results.run_folder import write_result
from recbole_prmkd.results.schema import GroupResult

COLD_USERS = (3, 8, 21)  # whose test item nobody has had before
KEYS = {"metrics": ["NDCG", "Recall", "Hit", "MRR", "Precision", "MAP"], "topk": [5, 10], "metric_decimal_place": 6}
MORE = {"kd_save_ranks": True, "kd_protocol": "ranking", "epochs": 1, **KEYS}


@pytest.fixture(scope="module")
def cold_path(tmp_path_factory):
    """The small data set in which the last event of some users is an item of its own."""
    folder = write_tiny(tmp_path_factory.mktemp("cold"))
    file = folder / "tiny" / "tiny.inter"
    lines = file.read_text().splitlines()
    for user in COLD_USERS:
        last = max(place for place, line in enumerate(lines) if line.startswith(f"u{user}\t"))
        fields = lines[last].split("\t")
        lines[last] = "\t".join([fields[0], f"new{user % 2}", *fields[2:]])
    file.write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def vectors(cold_path, tmp_path):
    """Settings of a teacher that has vectors of all items and users, new items included."""
    lines = [line.split("\t")[:2] for line in (cold_path / "tiny" / "tiny.inter").read_text().splitlines()[1:]]
    rng = np.random.default_rng(0)
    for name, key, column in (("users", "user_id", 0), ("items", "item_id", 1)):
        tokens = sorted({line[column] for line in lines})
        feat = rng.standard_normal((len(tokens), 5)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", feat=feat, **{key: np.array(tokens)})
    return {
        "kd_teachers": ["Vectors"],
        **{f"kd_vectors_{name}": str(tmp_path / f"{name}.npz") for name in ("users", "items")},
    }


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_groups_of_student_and_teacher(model, vectors, settings, cold_path, tmp_path):
    """Against the ranks of all examples, which are counted apart."""
    for number in range(2):  # the second run reuses the teacher and its metrics
        config = settings(
            kd="mean", data_path=str(cold_path), kd_output_dir=str(tmp_path / str(number)), **vectors, **MORE
        )
        result = run_recbole_prmkd(model, "tiny", config_dict=config)["result"]
        found = result["student"]["groups"]
        stored = np.load(tmp_path / str(number) / "test_ranks.npz")
        inside = {"cold_items": stored["popularity"] == 0, "short_histories": stored["history"] <= 5}
        assert set(found) == set(inside)
        assert found["cold_items"]["examples"] == len(COLD_USERS)
        for name, mask in inside.items():
            assert found[name]["examples"] == mask.sum() and 0 < mask.sum() < len(mask)
            for part, rank in (("test", "rank"), ("test_unseen", "rank_unseen")):
                wanted = {**hand(stored[rank][mask], 5), **hand(stored[rank][mask], 10)}
                assert found[name][part] == pytest.approx(wanted, abs=1e-5)
        of_teacher = result["teachers"]["Vectors"]["groups"]
        assert {name: group["examples"] for name, group in of_teacher.items()} == {
            name: group["examples"] for name, group in found.items()
        }


@pytest.mark.parametrize("model", ["SASRec", "BPR", "FPMC"])
def test_a_group_of_all_examples_has_the_metrics_of_the_test(model, settings, cold_path, monkeypatch):
    monkeypatch.setattr(groups, "SHORT", 1000)
    student = run_recbole_prmkd(
        model, "tiny", config_dict=settings(kd="none", data_path=str(cold_path), **KEYS, epochs=1)
    )["result"]["student"]
    group = student["groups"]["short_histories"]
    for part in ("test", "test_unseen"):
        assert group[part] == student[part]


def test_groups_of_a_teacher_are_its_own_metrics(vectors, settings, cold_path, monkeypatch, tmp_path):
    monkeypatch.setattr(groups, "SHORT", 1000)
    config = settings(kd="ensemble", data_path=str(cold_path), kd_teacher_dir=str(tmp_path / "own"), **vectors, **KEYS)
    result = run_recbole_prmkd("SASRec", "tiny", config_dict=config)["result"]
    for entry in (result["teachers"]["Vectors"], result["student"]):
        group = entry["groups"]["short_histories"]
        assert (
            group["examples"] == 40 and group["test"] == entry["test"] and group["test_unseen"] == entry["test_unseen"]
        )


def test_several_targets_of_a_user_count_one_by_one(settings, cold_path, monkeypatch):
    """Without the protocol a general student has RecBole's random split, with several targets of a user."""
    monkeypatch.setattr(groups, "SHORT", 1000)
    student = run_recbole_prmkd(
        "BPR",
        "tiny",
        config_dict=settings(
            kd="none",
            data_path=str(cold_path),
            epochs=1,
            eval_args={"split": {"RS": [0.5, 0.1, 0.4]}, "order": "RO", "group_by": "user", "mode": "full"},
            **KEYS,
        ),
    )["result"]
    group = student["student"]["groups"]["short_histories"]
    assert 40 < group["examples"] <= student["dataset"]["test_rows"]  # a repeated target is one
    hits = {name: group["test"][f"{name}@10"] for name in ("hit", "recall", "precision")}
    assert 0 < hits["hit"] == hits["recall"] == pytest.approx(10 * hits["precision"], abs=1e-5)
    # A user has a hit more often than a single target is one.
    assert student["student"]["test"]["hit@10"] > hits["hit"]


def test_a_test_of_samples_has_groups_in_the_unseen_ranking_alone(settings, cold_path):
    args = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "uni10"}
    columns = {"inter": ["user_id", "item_id", "timestamp"]}
    config = settings(kd="none", data_path=str(cold_path), epochs=1, eval_args=args, load_col=columns, **KEYS)
    found = run_recbole_prmkd("BPR", "tiny", config_dict=config)["result"]["student"]["groups"]
    assert found["cold_items"]["test"] == {} and found["cold_items"]["test_unseen"]


def test_a_group_without_examples_is_left_out(settings, monkeypatch):
    monkeypatch.setattr(groups, "SHORT", 0)
    result = run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="none", epochs=1))["result"]
    assert "short_histories" not in result["student"]["groups"]


def test_tables_of_the_groups(made_up_run, tmp_path):
    """Mean and deviation over the seeds, a teacher once, and only what has examples."""
    grid = Grid(("shop",), ("SASRec",), ("none", "prmkd"), (1, 2), {})
    for cell in grid.cells():
        run = made_up_run("shop", cell.model, cell.kd, cell.seed, 0.3, teachers={"UniSRec": 0.2})
        value = 0.1 * cell.seed + (0.5 if cell.kd == "prmkd" else 0.0)
        metrics = {"ndcg@10": value, "recall@10": 0.0}
        run.student.groups["cold_items"] = GroupResult(examples=1234, test=metrics, test_unseen={})
        run.teachers["UniSRec"].groups["cold_items"] = GroupResult(examples=1234, test=metrics, test_unseen=metrics)
        folder = cell.folder(tmp_path)
        folder.mkdir(parents=True)
        write_result(folder, run)
    table = groups_table(gather(grid, tmp_path), "shop", ["test ndcg@10", "test unseen ndcg@10"])
    assert table.to_numpy().tolist() == [
        ["target without a training interaction", "1,234", "SASRec", "alone", ".1500 ± .0707", "–"],
        ["target without a training interaction", "1,234", "SASRec", "prmkd", ".6500 ± .0707", "–"],
        ["target without a training interaction", "1,234", "UniSRec", "teacher", ".1000", ".1000"],
    ]
    assert list(table) == ["group", "examples", "model", "", "NDCG@10", "NDCG@10 unseen"]
    assert groups_table(gather(grid, tmp_path / "other"), "shop", ["test ndcg@10"]).empty
    write_report(grid, tmp_path)
    assert "target without a training interaction" in (tmp_path / "report.html").read_text()
    of_runs = report.groups_table([cell.folder(tmp_path) for cell in grid.cells() if cell.kd == "none"])
    assert of_runs["NDCG@10"].tolist() == ["0.2000", "0.1000", "0.2000"]  # the teacher once
    assert of_runs["NDCG@10 unseen"].tolist() == ["0.2000", "-", "-"] and of_runs["examples"].tolist() == ["1,234"] * 3

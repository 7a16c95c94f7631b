"""The table holds what the results hold, and a run without a result is an error."""

import pytest

from recbole_prmkd import run_recbole_prmkd
from recbole_prmkd.errors import UserError
from recbole_prmkd.results.report import table


def test_table_of_two_runs(settings, tmp_path):
    alone = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="none", kd_output_dir=str(tmp_path / "a")))
    run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="single", kd_output_dir=str(tmp_path / "b")))
    frame = table([tmp_path / "a", tmp_path / "b"])
    assert list(frame.index) == [
        f"student SASRec, alone ({tmp_path / 'a'})",
        "teacher UniSRec",
        f"student SASRec, single ({tmp_path / 'b'})",
    ]
    assert frame.iloc[0]["NDCG@10"] == f"{alone['test_result']['ndcg@10']:.4f}"
    assert frame.iloc[0]["parameters"] == frame.iloc[2]["parameters"] != frame.iloc[1]["parameters"]


def test_a_run_without_a_result(tmp_path):
    with pytest.raises(UserError, match="has not ended"):
        table([tmp_path])

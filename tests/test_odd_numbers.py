"""NaN and infinite values in the columns that a run reads are counted and said."""

import numpy as np
import pytest
from conftest import write_tiny

from recbole_prmkd import UserError, run_recbole_prmkd


@pytest.fixture
def said(settings, tmp_path, capfd):
    """What the log says of a run on changed interactions."""

    def run(model, change, **more):
        path = write_tiny(tmp_path / "changed") / "tiny" / "tiny.inter"
        path.write_text(change(path.read_text()))
        given = settings(**{"kd": "none", "epochs": 1, "data_path": str(tmp_path / "changed"), **more})
        result = None
        try:
            result = run_recbole_prmkd(model, "tiny", config_dict=given)
        except UserError as error:
            print(error)
        return path, " ".join("".join(capfd.readouterr()).split()), result

    return run


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_times_that_are_no_numbers(model, said):
    def change(text):
        return text.replace("\t100\n", "\tnan\n", 3).replace("\t200\n", "\tinf\n", 2).replace("\t300\n", "\t\n", 1)

    path, log, result = said(model, change, kd_protocol="ranking")
    lines = len(path.read_text().splitlines()) - 1
    assert f"In 6 of {lines} lines of {path}, timestamp is no finite number (4 missing or NaN, 2 infinite)" in log
    assert "first or last" in log and np.isfinite(list(result["test_result"].values())).all()


def test_other_columns_that_the_student_reads(said):
    loaded = {"load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]}}
    given = {"numerical_features": ["rating"], "threshold": {"timestamp": 300}, "metrics": ["AUC"]}
    path, log, _ = said(
        "DeepFM", lambda text: text.replace("\t3\t", "\t-inf\t", 2), valid_metric="AUC", **loaded, **given
    )
    assert f"lines of {path}, rating is no finite number (0 missing or NaN, 2 infinite)" in log


def test_good_numbers_are_not_spoken_of(said):
    assert "no finite number" not in said("SASRec", str)[1]

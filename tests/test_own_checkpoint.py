"""A student's checkpoint is read; what somebody else has put into the file is not run."""

import os
import pickle
import zipfile

import pytest
import torch
from recbole.utils import get_model, init_seed

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.recbole_host.own_checkpoint import read_own


class Evil:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("model", ["SASRec", "LightGCN", "NeuMF"])
def test_what_a_run_has_left_is_read(model, cpu_settings, tmp_path):
    given = cpu_settings(kd="none", epochs=1, state="ERROR")
    run_recbole_prmkd(model, "tiny", config_dict=given)
    config = load_config(model, "tiny", config_dict=given)
    init_seed(config["seed"], True)
    student = get_model(model)(config, load_split(config).train_data._dataset)
    content = read_own(tmp_path / "out" / f"{model}.pth", config, student)
    student.load_state_dict(content["state_dict"])
    student.load_other_parameter(content.get("other_parameter"))


def test_modules_beside_the_weights(cpu_settings, tmp_path):
    """DIN holds its attention among its other parameters."""
    config = load_config("DIN", "tiny", config_dict=cpu_settings(kd="none"))
    student = get_model("DIN")(config, load_split(config).train_data._dataset)
    file = tmp_path / "DIN.pth"
    content = {"config": config, "state_dict": student.state_dict(), "other_parameter": student.other_parameter()}
    torch.save(content, file, pickle_protocol=4)
    assert read_own(file, config, student)["other_parameter"].keys() == student.other_parameter().keys()


def test_nothing_else_is_run(cpu_settings, tmp_path):
    config = load_config("BPR", "tiny", config_dict=cpu_settings(kd="none"))
    student = get_model("BPR")(config, load_split(config).train_data._dataset)
    file, trace = tmp_path / "BPR.pth", tmp_path / "ran"
    torch.save({"state_dict": student.state_dict(), "other_parameter": Evil(str(trace))}, file)
    with pytest.raises(UserError, match=r"refers to posix\.mkdir"):
        read_own(file, config, student)
    assert not trace.exists()


@pytest.mark.parametrize("how", ["empty", "text", "pickle", "zip", "cut"])
def test_a_damaged_file_is_one_sentence(how, cpu_settings, tmp_path):
    config = load_config("BPR", "tiny", config_dict=cpu_settings(kd="none"))
    student = get_model("BPR")(config, load_split(config).train_data._dataset)
    file, trace = tmp_path / "BPR.pth", tmp_path / "ran"
    torch.save({"state_dict": student.state_dict()}, file)
    if how == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a/data.pkl", pickle.dumps(Evil(str(trace))))
    else:
        content = {
            "empty": b"",
            "text": b"hello",
            "pickle": pickle.dumps(Evil(str(trace))),
            "cut": file.read_bytes()[:-99],
        }
        file.write_bytes(content[how])
    with pytest.raises(UserError, match=r"BPR\.pth is (damaged|rejected)") as caught:
        read_own(file, config, student)
    assert "\n" not in str(caught.value) and not trace.exists()

"""`kd_teachers: auto` and `kd_teacher_minutes`."""

import re
import shutil
import time
from types import SimpleNamespace

import pytest
import torch

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.teachers import auto
from recbole_prmkd.teachers.clock import TimeIsUp, clock


@pytest.fixture
def choose(cpu_settings, minilm):
    """A function: the teachers of the small data set with these settings, and why."""

    def chosen(**more):
        given = {**cpu_settings(kd="prmkd"), "kd_teachers": "auto", **more}
        config = load_config("SASRec", "tiny", config_dict=given)
        return config["kd_teachers"], " ".join(config.why_teachers), config

    return chosen


def logged(folder):
    """What a run has put into the log of its output folder."""
    return "".join(file.read_text() for file in (folder / "out" / "log").rglob("*.log"))


def test_with_text_there_are_two_kinds(choose):
    names, why, config = choose()
    assert names[:3] == ["Linear", "Content", "UniSRec"] and "compares the items' texts" in why
    assert config["kd_teacher_minutes"] == auto.MINUTES


def test_it_is_the_default(cpu_settings, minilm):
    given = cpu_settings(kd="mean")
    del given["kd_teachers"]
    assert load_config("SASRec", "tiny", config_dict=given)["kd_teachers"][:3] == ["Linear", "Content", "UniSRec"]


def test_without_text_it_says_why_there_is_one(choose, tiny_path, tmp_path):
    shutil.copytree(tiny_path / "tiny", tmp_path / "tiny", ignore=shutil.ignore_patterns("*.item"))
    names, why, _ = choose(data_path=str(tmp_path), kd_cache_dir=str(tmp_path), kd_teacher_dir=str(tmp_path))
    assert names == ["Linear"] and "tiny.item" in why and "\n" not in why


def test_a_text_setting_of_the_user_is_not_passed_over(choose):
    with pytest.raises(UserError, match="nofield"):
        choose(kd_text_fields=["nofield"])


def test_what_is_too_dear_is_left_out(choose, monkeypatch):
    monkeypatch.setattr(auto, "_TOKENS_PER_SECOND", (1e-3, 1e-3))
    names, why, _ = choose()
    assert names == ["Linear"] and "minutes" in why and "kd_teacher_minutes is 5" in why
    assert choose(kd_teacher_minutes=1e9)[0] == ["Linear", "Content", "UniSRec", "Recformer"]


def test_short_texts_are_cheaper_than_long_ones(choose, tiny_path, tmp_path):
    """The estimate follows the size of the item file, up to kd_text_max_tokens for each item."""
    shutil.copytree(tiny_path / "tiny", tmp_path / "tiny")
    folders = {"data_path": str(tmp_path), "kd_cache_dir": str(tmp_path), "kd_teacher_dir": str(tmp_path)}
    _, _, config = choose(**folders)
    items, short = auto._encoding(config, gpu=False)
    file = tmp_path / "tiny" / "tiny.item"
    file.write_text("\n".join(line + " long" * 5000 for line in file.read_text().splitlines()))
    _, long = auto._encoding(config, gpu=False)
    assert short < long < 2 * items * config["kd_text_max_tokens"] / auto._rate(auto._TOKENS_PER_SECOND, False) / 60


def test_an_epoch_ends_when_the_time_is_up():
    """An epoch of many batches is not waited for, and the callback then ends the training."""
    seen = []
    trainer = SimpleNamespace(_train_epoch=lambda loader, epoch: seen.extend(loader))
    after_epoch = clock(trainer, "T", 0.0)
    trainer._train_epoch([1, 2, 3], 0)
    assert seen == [1]
    with pytest.raises(TimeIsUp):
        after_epoch(0, 0.1)
    assert clock(trainer, "T", None) is None


@pytest.mark.parametrize(
    ("minutes", "end"),
    [(None, "it stops earlier when it gains no more."), (0.01, "after 0.01 minutes in any case (kd_teacher_minutes).")],
)
def test_says_how_long_it_will_take(minutes, end, caplog):
    """After five steps of the first epoch, once; with the limit only where that comes first."""
    trainer = SimpleNamespace(epochs=40, device=torch.device("cpu"))
    trainer._train_epoch = lambda loader, epoch: [time.sleep(0.02) for _ in loader]
    clock(trainer, "T", minutes)
    with caplog.at_level("INFO"):
        loader = range(10)
        trainer._train_epoch(loader, 0)
        trainer._train_epoch(loader, 1)
    (line,) = [record.message for record in caplog.records if "an epoch takes" in record.message]
    seconds = float(re.match(r"T: an epoch takes about ([\d.]+) seconds on this cpu, all 40 epochs ", line)[1])
    assert 0.2 <= seconds < 1 and line.endswith(end)


def test_pictures_bring_their_teacher(choose, tmp_path):
    assert choose(kd_item_images=str(tmp_path))[0][-1] == "UniM2Rec"


def test_a_list_of_the_users_is_taken_as_it_is(cpu_settings):
    config = load_config("SASRec", "tiny", config_dict=cpu_settings(kd="prmkd", kd_teachers=["UniSRec"]))
    assert config["kd_teachers"] == ["UniSRec"] and config["kd_teacher_minutes"] is None
    assert not hasattr(config, "why_teachers")


def test_single_takes_the_first(choose):
    assert choose(kd="single")[0] == ["Linear"]


def test_auto_beside_names_is_refused(cpu_settings):
    with pytest.raises(UserError, match="Unknown teacher 'auto'"):
        load_config("SASRec", "tiny", config_dict=cpu_settings(kd="prmkd", kd_teachers=["auto", "UniSRec"]))


def test_a_checkpoint_does_not_carry_the_reasons(choose, settings, tmp_path):
    """They are logged once, and the Config that a checkpoint pickles is plain."""
    given = {"kd_teachers": "auto", "kd_teacher_minutes": 0.5, "epochs": 1}
    run_recbole_prmkd("BPR", "tiny", config_dict={**settings(kd="mean"), **given})
    assert logged(tmp_path).count("kd_teachers=auto takes Linear") == 1
    saved = torch.load(tmp_path / "out" / "BPR.pth", weights_only=False)
    assert "why_teachers" not in vars(saved["config"])


def test_a_teacher_stops_when_its_time_is_up(settings, tmp_path):
    folders = {"kd_teacher_dir": str(tmp_path / "t"), "kd_cache_dir": str(tmp_path / "c")}
    given = settings(kd="mean", kd_teacher_minutes=1e-6, kd_unisrec_epochs=3, **folders)
    run = run_recbole_prmkd("BPR", "tiny", config_dict=given)
    assert "UniSRec stops in epoch 0: kd_teacher_minutes is 1e-06" in logged(tmp_path)
    assert run["result"]["teachers"]["UniSRec"]["holdout"] > 0

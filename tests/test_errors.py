"""Bad input: one clear sentence, a non-zero exit, nothing half-written; all before the first expensive step."""

import sys

import pytest
from conftest import write_tiny

import run_recbole_prmkd as command_line
from recbole_prmkd import preparation


@pytest.fixture
def refused(settings, tmp_path, monkeypatch, capsys):
    """Run the command line with these options; returns the sentence it ends with."""

    def run(*options, model="SASRec", dataset="tiny", **more):
        values = {**settings(kd="prmkd", kd_cache_dir=str(tmp_path / "cache")), **more}
        config = tmp_path / "config.yaml"
        import yaml

        config.write_text(yaml.safe_dump({key: value for key, value in values.items()}))
        arguments = [f"--model={model}", f"--dataset={dataset}", f"--config_files={config}", *options]
        monkeypatch.setattr(sys, "argv", ["run_recbole_prmkd.py", *arguments])

        def too_late(*_, **__):
            raise AssertionError("an expensive step began")

        monkeypatch.setattr(preparation, "load_split", too_late)
        with pytest.raises(SystemExit) as caught:
            command_line.main()
        assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()
        sentence = str(caught.value.code)
        assert sentence.startswith("recbole_prmkd: ") and "\n" not in sentence
        return sentence

    return run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--kd_wieght=5"], ["kd_wieght", "did you mean 'kd_weight'"]),
        (["--kd_weight=-5"], ["kd_weight", "[0,inf)"]),
        (["--kd_weight", "5"], ["--key=value"]),
        (["--kd=prmkdd"], ["'prmkd'"]),
        (["--kd_teachers=[UniSRek]"], ["UniSRek", "UniSRec"]),
        (["--kd_text_encoder=no_such_encoder"], ["no_such_encoder", "--kd_text_encoder"]),
        (["--kd_text_fields=[plot]"], ["plot", "title, brand"]),
        (["--kd_text_file=nowhere.item"], ["nowhere.item", "--kd_text_file"]),
        (["--kd_unisrec_checkpoint=nowhere.safetensors"], ["nowhere.safetensors"]),
        (["--dataset_nope=1", "--TIME_FIELD=when"], ["when", "--TIME_FIELD"]),
        (["--valid_metric=NDCG@7"], ["NDCG@7", "topk"]),
        (["--valid_metric=GAUC"], ["GAUC", "metrics"]),
        (["--eval_args={'split':{'RS':[0.8,0.1,0.1]},'order':'RO','mode':'full'}"], ["order: TO"]),
        (["--eval_args={'split':{'LS':'last_one'},'order':'TO','mode':'full'}"], ["valid_and_test"]),
        (["--eval_args={'split':{'LS':'valid_and_test'},'order':'TO','mode':'uni100'}"], ["mode: full"]),
        (["--metrics=[NDCG,Recal]"], ["'Recal'", "--metrics=['NDCG','Recall']"]),
        (["--topk=5,10"], ["RecBole refuses", "--topk=[5,10]"]),
        (["--eval_args=full"], ["eval_args = 'full'", "a dict"]),
        (["--config_files=nowhere.yaml"], ["nowhere.yaml"]),
        (["--kd_loss=rrd"], ["kd_loss=rrd", "teacher_top", "--kd=rrd"]),
        (["--kd=rd", "--kd_candidates=student_top"], ["kd_loss=rd", "teacher_top"]),
        (
            ["--kd=dllm2rec", *(f"--kd_rank_by_{part}=0.0" for part in ("position", "confidence", "consistency"))],
            ["kd_rank_by_position", "above 0"],
        ),
        (["--kd=ensemble", "--kd_item_init=text"], ["kd_item_init", "ensemble"]),
        (["--load_col={'inter':['user_id','item_id']}"], ["load_col", "'timestamp'"]),
        (["--kd_unisrec_epochs=-1"], ["kd_unisrec_epochs", "[0,inf)"]),
        (["--kd_unisrec_temperature=0"], ["kd_unisrec_temperature", "(0,inf)"]),
        (["--kd_unisrec_hidden_size=17"], ["kd_unisrec_hidden_size 17", "n_heads"]),
        (["--kd_unisrec_valid_metric=NDCG"], ["kd_unisrec_valid_metric", "NDCG@10"]),
        (["--kd_unisrec_valid_metric=AUC"], ["kd_unisrec_valid_metric", "NDCG@10"]),
        (["--kd=ensemble", "--kd_shuffled_teachers=True"], ["kd_shuffled_teachers", "ensemble"]),
    ],
)
def test_wrong_options(options, words, refused):
    sentence = refused(*options)
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("model", "words"),
    [("Pop", ["Pop", "gradient"]), ("sasrec", ["sasrec"]), ("NoModel", ["NoModel"]), ("EASE", ["EASE"])],
)
def test_wrong_students(model, words, refused):
    sentence = refused(model=model)
    for word in words:
        assert word in sentence


def test_pre_split_files_without_histories(refused, tmp_path):
    data = tmp_path / "data" / "tiny"
    data.mkdir(parents=True)
    for part in ("train", "valid", "test"):
        (data / f"tiny.{part}.inter").write_text("user_id:token\titem_id:token\nu1\ti1\n")
    sentence = refused("--benchmark_filename=['train','valid','test']", data_path=str(tmp_path / "data"))
    assert "'item_id_list'" in sentence and "benchmark_filename" in sentence


def test_missing_data_set(refused):
    assert "--data_path" in refused(dataset="nowhere")


def test_output_folder_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in refused(f"--kd_output_dir={tmp_path / 'file' / 'out'}")


def test_data_set_without_text(refused, tmp_path):
    data = write_tiny(tmp_path / "data")
    (data / "tiny" / "tiny.item").unlink()
    assert "--kd_text_file" in refused(data_path=str(data))

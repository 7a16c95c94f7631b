"""Whatever files and settings hold: one sentence or a good run; never a traceback, never code that runs."""

import sys
import warnings

import pytest
import yaml
from conftest import write_tiny
from recbole.config import Config
from recbole.model.sequential_recommender.sasrec import SASRec

import run_recbole_prmkd as command_line
from recbole_prmkd import UserError, preparation, run_recbole_prmkd
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.recbole_host.ignored import ignored_settings

HEADER = b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


@pytest.fixture
def sentence(settings, tmp_path, monkeypatch):
    """What the command line ends with; change: of the bytes of the file of interactions."""

    def run(*options, model="SASRec", change=None, file=None, suffix="inter", **more):
        values = settings(**{"kd": "none", "epochs": 1, "topk": [6], "valid_metric": "MRR@6", **more})
        if change is not None:
            path = write_tiny(tmp_path / "changed") / "tiny" / f"tiny.{suffix}"
            path.write_bytes(change(path.read_bytes()))
            values["data_path"] = str(tmp_path / "changed")
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(values))
        files = str(config)
        if file is not None:
            (tmp_path / "more.yaml").write_bytes(file)
            files += f" {tmp_path / 'more.yaml'}"
        arguments = [f"--model={model}", "--dataset=tiny", f"--config_files={files}", *options]
        monkeypatch.setattr(sys, "argv", ["run_recbole_prmkd.py", *arguments])
        with pytest.raises(SystemExit) as caught:
            command_line.main()
        said = str(caught.value.code)
        assert said.startswith("recbole_prmkd: ") and "\n" not in said
        assert not (tmp_path / "out").exists()
        return said

    return run


def interactions(users, items, length=5):
    lines = (
        b"u%d\ti%d\t3\t%d\n" % (user, (user + step) % items, step) for user in range(users) for step in range(length)
    )
    return HEADER + b"".join(lines)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.decode().encode("utf-16"), ["UTF-16", "--encoding=utf-16"]),
        (lambda text: text.replace(b"u3\t", b"\xfc3\t", 1), ["line 27", "--encoding"]),
        (lambda text: b"\x80\x81\xfe" + text, ["line 1", "--encoding"]),
        (lambda text: b"\xef\xbb\xbf" + text, ["line 1", "utf-8-sig"]),
        (lambda text: text.replace(b"rating:float", b"item_id:token", 1), ["line 1", "'item_id' is there twice"]),
        (lambda text: text.replace(b":token", b"").replace(b":float", b""), ["line 1", "'user_id' has no type"]),
        (lambda text: text.replace(b"rating:float", b"rating:int"), ["line 1", "'int'", "token_seq"]),
        (lambda text: text.replace(b"\t500\n", b"\tmonday\n", 1), ["line 7", "'monday'", "float"]),
        (lambda text: text.replace(b"\ti5\t", b'\t"i5\t', 1), ["line 26", "double quote"]),
        (lambda _: b"", ["is empty", "user_id:token"]),
        (lambda _: HEADER, ["no lines below its header"]),
        (lambda _: HEADER + b"u1\ti1\t3\t1\n", ["training split is empty", "eval_args"]),
        (lambda _: interactions(users=5, items=4), ["topk = [6]", "above the 4 items"]),
    ],
)
def test_files_that_cannot_be_read(change, words, sentence):
    said = sentence(change=change)
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("mode", "metrics", "words"),
    [
        ("labeled", ["AUC"], ["test part", "'label'", "threshold", "mode to full"]),
        ({"valid": "labeled", "test": "full"}, ["MRR"], ["valid part", "metrics = ['MRR']", "mode: full"]),
    ],
)
def test_labels_that_are_not_there_are_missed_before_training(sentence, mode, metrics, words):
    said = sentence(
        model="BPR", eval_args={"mode": mode}, metrics=metrics, valid_metric=metrics[0].replace("MRR", "MRR@6")
    )
    for word in words:
        assert word in said


def test_a_user_of_every_item_names_the_way_out(sentence):
    assert "every item" in sentence(model="BPR", change=lambda _: interactions(users=5, items=1))


def test_a_fault_in_side_information_is_found_too(sentence):
    loaded = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]}
    given = {"load_col": loaded, "selected_features": ["title"]}
    said = sentence(model="SASRecF", change=lambda text: text.replace(b":token_seq", b""), suffix="item", **given)
    assert "tiny.item, line 1" in said and "'title' has no type" in said


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("user_inter_num_interval=[50,inf)", ["user_inter_num_interval = '[50,inf)'", "widen"]),
        ("user_inter_num_interval=50", ["user_inter_num_interval = '50'", "[5,inf)"]),
        ("item_inter_num_interval=[9,3]", ["item_inter_num_interval = '[9,3]'"]),
        ("val_interval={'nope':'[3,inf)'}", ["val_interval = {'nope': '[3,inf)'}", "load"]),
        ("val_interval={'rating':'3'}", ["val_interval of rating = '3'", "[5,inf)"]),
        ("val_interval=rating", ["val_interval = 'rating'", "a dict"]),
        ("encoding=latin1x", ["encoding = 'latin1x'"]),
        ("learning_rate=1/0", ["learning_rate = '1/0'", "0.001"]),
        ("learning_rate=-1", ["learning_rate = -1"]),
        ("train_batch_size=0", ["train_batch_size = 0", "above 0"]),
        ("epochs=1.5", ["epochs = 1.5"]),
        ("seed=-1", ["seed = -1"]),
        ("n_heads=3", ["n_heads = 3", "hidden_size = 16"]),
        ("n_layers=-1", ["n_layers = -1"]),
        ("hidden_act=foo", ["hidden_act = 'foo'"]),
        ("loss_type=XX", ["loss_type = 'XX'", "loss_type=CE"]),
        ("state=5", ["state = 5"]),
        ("metrics=[]", ["metrics = []"]),
        ("load_col={'inter':5}", ["load_col = {'inter': 5}"]),
        ("eval_args={'split':{'LS':'nope'},'order':'TO'}", ["nope", "eval_args"]),
        ("threshold={'nope':3}", ["threshold = {'nope': 3}"]),
        ("rm_dup_inter=foo", ["rm_dup_inter = 'foo'"]),
        ("clip_grad_norm={'max_norm':'x'}", ["clip_grad_norm = {'max_norm': 'x'}"]),
        ("metric_decimal_place=1.5", ["metric_decimal_place = 1.5"]),
        ("local_rank=0", ["local_rank", "--nproc"]),
        ("LIST_SUFFIX=", ["LIST_SUFFIX"]),
        ("my_setting=a\udce9", ["'my_setting'", "UTF-8"]),
        ("stopping_step=" + "9" * 400, ["stopping_step = 999", "64 bits"]),
        ("KD_CONSISTENCY=std", ["'KD_CONSISTENCY'", "did you mean 'kd_consistency'"]),
    ],
)
def test_values_that_cannot_be_used(option, words, sentence):
    said = sentence(f"--{option}")
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"- a\n- b\n", ["list"]),
        (b"hello\n", ["str"]),
        (b"# nothing\n", ["nothing"]),
        (b"a: 1\nstate: \xfc\n", ["line 2", "UTF-8"]),
        (b"a: [1\nb: 2", ["line 2"]),
        (b"a: 2001-99-99", ["month"]),
        (b"a: " + b"[" * 5000, ["recursion"]),
        (b"5: 6", ["5"]),
        (b"a: &x [*x]", ["recursion"]),
        (b"state: !!python/name:os.system", ["!!python"]),
    ],
)
def test_config_files_that_hold_no_settings(file, words, sentence):
    said = sentence(file=file)
    for word in [*words, "key"] if b"5: 6" in file else [*words, "more.yaml"]:
        assert word in said


def test_the_traceback_goes_to_a_log_file(sentence):
    said = sentence("--hidden_act=foo")
    log = said.partition("(traceback: ")[2].partition(")")[0]
    with open(log) as file:
        assert "KeyError: 'foo'" in file.read()


class _Broken(SASRec):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        raise ValueError("a mistake in the user's code")


def test_a_programming_error_shows_itself(settings):
    with pytest.raises(ValueError, match="a mistake"):
        run_recbole_prmkd(_Broken, "tiny", config_dict=settings(kd="none"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"topk": [10, 32]}, ["topk = [10, 32]", "30 items"]),
        ({"kd": "mean", "kd_unisrec_valid_metric": "NDCG@100"}, ["kd_unisrec_valid_metric = 'NDCG@100'", "30 items"]),
        ({"kd_item_init": "UniSRec", "kd_unisrec_valid_metric": "NDCG@100"}, ["kd_unisrec_valid_metric", "30 items"]),
    ],
)
def test_cutoffs_above_the_number_of_items_end_before_anything_expensive(given, words, settings, monkeypatch):
    def too_late(*_, **__):
        raise AssertionError("an expensive step began")

    monkeypatch.setattr(preparation, "prepare_on", too_late)
    with pytest.raises(UserError) as caught:
        run_recbole_prmkd("SASRec", "tiny", config_dict=settings(**given))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("given", [{"topk": [10, 31]}, {"topk": [500], "metrics": ["GAUC"], "valid_metric": "GAUC"}])
def test_cutoffs_that_recbole_takes_are_taken(given, settings):
    assert run_recbole_prmkd("SASRec", "tiny", config_dict=settings(epochs=1, **given))["test_result"]


@pytest.mark.parametrize("where", ["command line", "dict", "file"])
def test_a_misspelt_setting_is_named_with_the_nearest_key(where, settings, monkeypatch, tmp_path):
    wrong, files, given = {"learning_rte": 0.1}, [], settings()
    if where == "command line":
        monkeypatch.setattr(sys, "argv", ["run", "--learning_rte=0.1"])
    elif where == "dict":
        given |= wrong
    else:
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(wrong))
        files = [str(tmp_path / "c.yaml")]
    found = ignored_settings(load_config("SASRec", "tiny", files, given))
    assert "learning_rate" in found["learning_rte"]


def test_settings_that_are_read_are_not_called_ignored(settings):
    class Own(SASRec):
        def __init__(self, config, dataset):
            super().__init__(config, dataset)
            self.mine = config["my_own_setting"]

    given = settings(my_own_setting=3, preload_weight=None, enable_amp=False, nproc=1, kd_weight=3.0, shuffle=True)
    assert set(ignored_settings(load_config(Own, "tiny", config_dict=given))) == {"mlp_hidden_size"}  # of the fixture


def test_a_run_warns_of_what_it_ignores(settings, capfd):
    run_recbole_prmkd("SASRec", "tiny", config_dict=settings(epochs=1, learning_rte=0.1))
    assert "learning_rte is ignored" in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[NDCG,Recall]", ["NDCG", "Recall"]),
        (
            "{split:{LS:valid_and_test},order:TO,mode:full}",
            {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        ),
        ("[[1, 2.5], [a b, 'c,d', true]]", [[1, 2.5], ["a b", "c,d", True]]),
        # What RecBole makes of a legal value, as ever.
        ("1e-4", 1e-4),
        ("[5,10]", [5, 10]),
        ("5,10", (5, 10)),
        ("TRUE", True),
        ("None", None),
        ("{'rating':'[3,inf)'}", {"rating": "[3,inf)"}),
        ("'7'", "7"),
        ("NDCG@10", "NDCG@10"),
        ("0x10", 16),
        # Nothing is computed.
        ("1/0", "1/0"),
        ("2*64", "2*64"),
        ("{a:[0,inf)}", "{a:[0,inf)}"),
        ("9" * 5000, "9" * 5000),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_what_a_text_means(text, value):
    host = Config.__new__(Config)
    with warnings.catch_warnings(action="error"):
        assert host._convert_config_dict({"my_setting": text}) == {"my_setting": value}


@pytest.mark.parametrize(
    ("key", "text"),
    [("kd_output_dir", "0x10"), ("kd_cache_dir", "1_000"), ("kd_unisrec_checkpoint", "1e3"), ("data_path", "007"),
     ("kd_vectors_text_items", "5"), ("kd_text_encoder", "True"), ("user_inter_num_interval", "[5,10]")],
)  # fmt: skip
def test_texts_stay_texts(key, text):
    assert Config.__new__(Config)._convert_config_dict({key: text}) == {key: text}


@pytest.mark.parametrize("key", ["state", "kd_item_init", "kd_output_dir", "my_setting", "teacher", "metrics"])
@pytest.mark.parametrize("source", ["dict", "command line", "file"])
def test_no_setting_runs_code(key, source, settings, tmp_path, monkeypatch):
    proof = tmp_path / "proof"
    code = f"__import__('pathlib').Path({str(proof)!r}).touch()"
    given, files = settings(kd="none"), []
    if source == "dict":
        given[key] = code
    elif source == "file":
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({key: code}))
        files = [str(tmp_path / "c.yaml")]
    else:
        monkeypatch.setattr(sys, "argv", ["run", f"--{key}={code}"])
    for model in ("SASRec", "KD_DAGFM"):
        try:
            config = load_config(model, "tiny", files, given)
            load_config(model, "tiny", config_dict={**given, **config.external_config_dict})  # as sweeps hand it on
        except UserError:
            pass
    assert not proof.exists()


def test_good_files_are_not_read_twice(settings, monkeypatch):
    """Faults are looked for after RecBole has failed, so that good input costs nothing."""
    from recbole_prmkd.data import atomic_files

    monkeypatch.setattr(atomic_files, "fault", lambda *_: pytest.fail("looked for a fault"))
    run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="none", epochs=1))

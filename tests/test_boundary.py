"""What RecBole raises, at any point of any command, is one sentence; a mistake in a program still shows itself."""

from pathlib import Path

import pytest
from recbole.model.sequential_recommender.sasrec import SASRec
from recbole.trainer import Trainer

from recbole_prmkd import UserError, pretrain, run_recbole_prmkd
from recbole_prmkd.teacher_cache import vectors


@pytest.fixture
def sentence(settings, tmp_path):
    """What a run ends with; nothing but the state of a training may be left."""

    def run(model="SASRec", left=False, **more):
        with pytest.raises(UserError) as caught:
            run_recbole_prmkd(model, "tiny", config_dict=settings(**{"kd": "none", **more}))
        said = str(caught.value)
        assert "\n" not in said
        assert any((tmp_path / "out").glob("unfinished/progress.json")) == left
        assert left or not (tmp_path / "out").exists()
        return said

    return run


def log_in(said):
    return Path(said.partition("(traceback: ")[2].partition(")")[0]).read_text()


@pytest.mark.parametrize("kd", ["none", "prmkd"])
def test_a_later_validation(kd, sentence, monkeypatch):
    own = Trainer._valid_epoch

    def valid_epoch(self, *given, **named):
        if len(self.train_loss_dict) > 2:
            self.evaluator = None
        return own(self, *given, **named)

    monkeypatch.setattr(Trainer, "_valid_epoch", valid_epoch)
    said = sentence(kd=kd, epochs=4, left=True)
    assert said.startswith("RecBole cannot train SASRec with these settings, AttributeError")
    assert "in evaluate" in log_in(said)


def test_the_best_checkpoint_of_a_test(sentence, monkeypatch):
    own = Trainer.evaluate

    def evaluate(self, *given, load_best_model=True, **named):
        if load_best_model:
            Path(self.saved_model_file).write_bytes(b"nothing")
        return own(self, *given, load_best_model=load_best_model, **named)

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    assert sentence(left=True).startswith("RecBole cannot test SASRec with these settings")


def test_a_test_of_what_was_not_trained(sentence):
    """The loaders find out that there are too many negatives; RecBole has saved weights by then."""
    said = sentence("BPR", epochs=0, eval_args={"mode": f"uni{10**13}"})
    assert said.startswith("The memory does not suffice to test BPR with these settings")


def test_a_teachers_fit(sentence):
    said = sentence(kd="mean", kd_unisrec_hidden_act="foo")
    assert "cannot fit the teacher UniSRec" in said and "(kd_unisrec_hidden_act = 'foo')" in said


def test_a_teacher_that_items_start_from(sentence):
    said = sentence(kd_item_init="UniSRec", kd_unisrec_hidden_act="foo")
    assert "cannot fit the teacher UniSRec" in said and "(kd_unisrec_hidden_act = 'foo')" in said


def test_pre_training(settings, tmp_path):
    given = settings(hidden_act="foo", train_stage="pretrain", kd_output_dir=str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"hidden_act = 'foo'.*traceback: ") as caught:
        pretrain("UniSRec", ["tiny"], config_dict=given)
    assert "KeyError: 'foo'" in log_in(str(caught.value)) and not (tmp_path / "out").exists()


def test_settings_of_another_type_than_their_default_are_named(sentence):
    """RecBole's exception speaks of lists and numbers alone."""
    assert "eval_batch_size = [3]" in sentence(eval_batch_size=[3])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"eval_args": {"order": "TO", "mode": f"uni{10**13}"}},
            ["train SASRec", "lower eval_args", "uni10000000000000"],
        ),
        ({"hidden_size": 10**12}, ["build SASRec", "lower hidden_size (now 1000000000000)"]),
        (
            {"kd": "mean", "kd_unisrec_hidden_size": 10**12},
            ["fit the teacher UniSRec", "kd_unisrec_hidden_size (now 1000000000000)"],
        ),
    ],
)
def test_too_little_memory(more, words, sentence):
    said = sentence(**more)
    assert said.startswith("The memory does not suffice to ") and all(word in said for word in words)


def test_too_little_memory_in_encoding(sentence, monkeypatch):
    def encode(*_):
        raise MemoryError

    monkeypatch.setattr(vectors, "_encode", encode)
    said = sentence(kd="mean", kd_rebuild=True)
    assert said.startswith("The memory does not suffice to encode with UniSRec (MemoryError): lower kd_unisrec_")


class _Broken(SASRec):
    def calculate_loss(self, interaction):
        raise ValueError("a mistake in the user's code")


def test_a_programming_error_shows_itself_with_the_place_of_a_log(settings):
    with pytest.raises(ValueError, match="a mistake") as caught:
        run_recbole_prmkd(_Broken, "tiny", config_dict=settings(kd="none"))
    (note,) = caught.value.__notes__
    assert "a mistake in the user's code" in log_in(note)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", None),
        ("n_exps", float("nan")),
        ("hidden_dropout_prob", 1.5),
        ("word_drop_ratio", [1]),
        ("enable_amp", 1.5),
        ("layer_norm_eps", []),
    ],
)
def test_settings_of_a_teacher_that_is_the_model(key, value, settings, tmp_path):
    """They have no kd_ before their names, but the same types and ranges."""
    given = settings(**{key: value, "train_stage": "pretrain", "kd_output_dir": str(tmp_path / "out")})
    with pytest.raises(UserError, match=f"^{key} = ") as caught:
        pretrain("UniSRec", ["tiny"], config_dict=given)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

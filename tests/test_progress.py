"""A training that stops after an epoch and goes on in new objects ends with the weights of one that never stopped."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_prmkd import preparation
from recbole_prmkd.preparation import Prepared, Steps, prepare
from recbole_prmkd.recbole_host import progress
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.training import make_trainer, train
from recbole_prmkd.tune.trial_inputs import packed, unpacked
from tests import conformance

# Not trained by gradient, with a stage before, and one that RecBole breaks.
UNTRIED = {"Pop", "Random", "ItemKNN", "EASE", "SLIMElastic", "ADMMSLIM", "NCEPLRec", "XGBoost", "LightGBM"}
UNTRIED |= {"RaCT", "S3Rec", "KSR"}
NEEDED = {"NCL": "faiss", "KGAT": "dgl", "KGIN": "torch_scatter", "MCCLK": "torch_scatter"}
STUDENTS = {  # shared prefixes with dropout; negatives, and candidates of pairs; a graph; rows shuffled by the loader
    "SASRec": {},
    "DeepFM": {"dropout_prob": 0.3},
    "LightGCN": {},
    "GRU4Rec": {"kd_shared_prefixes": False, "dropout_prob": 0.3},
    # Modules among the other parameters; an optimizer of two names; counters; a history of losses; a shuffled list;
    # graphs that are sampled whenever the student is set to train.
    "DIN": {},
    "DIEN": {},
    "RecVAE": {},
    "MultiVAE": {},
    "MacridVAE": {},
    "DiffRec": {},
    "LDiffRec": {},
    "LINE": {},
    "SGL": {},
}


@pytest.mark.parametrize("kd", ["prmkd", "none"])
@pytest.mark.parametrize("model", STUDENTS)
def test_a_resumed_training_equals_an_uninterrupted_one(model, kd, settings, tmp_path):
    more = {"kd": kd, "kd_protocol": "ranking", "epochs": 5, "kd_pacing_length": 3, **STUDENTS[model]}
    check_resumed(load_config(model, "tiny", config_dict=settings(**more)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kd", ["mean", "none"])
@pytest.mark.parametrize("model", [name for _, name in conformance.model_names() if name not in UNTRIED])
def test_every_model_is_resumed(model, kd, tmp_path, monkeypatch):
    """With what each has of data and of teachers in the tests of conformance."""
    if model in NEEDED:
        pytest.importorskip(NEEDED[model])
    data = conformance.write_data(tmp_path / "data")
    own = {**conformance.SMALL, **conformance.OWN.get(model, {}), "epochs": 4, "data_path": str(data)}
    given = {**own, "kd": kd, "kd_protocol": "ranking", "kd_output_dir": str(tmp_path / "out")}
    synthetic = lambda config, split, steps: ([], [], conformance.synthetic(split, config["device"]))  # noqa: E731
    monkeypatch.setattr(preparation, "prepare_teachers", synthetic)
    check_resumed(load_config(model, "small", config_dict=given), tmp_path)


def check_resumed(config, folder):
    """A run, one on a copy of the data, and one that is stopped and goes on: the same to the last bit."""
    kd, prepared = config["kd"], prepare(config, Steps())
    content = packed(prepared.split)

    def run(state=None, stop_after=None):
        """The trainer after the last epoch, on a copy of the data; the state is kept after `stop_after`."""
        copy = Prepared(unpacked(content, config), prepared.teacher_cache)
        trainer = make_trainer(config, copy, folder)

        def keep(trainer, train_data, epoch, score):
            if epoch == stop_after:
                progress.save(progress.captured(trainer, train_data, epoch), folder)
                raise KeyboardInterrupt

        if stop_after is None:
            train(config, copy, trainer, saved=False, state=state)
        else:
            with pytest.raises(KeyboardInterrupt):
                train(config, copy, trainer, saved=False, after_epoch=keep)
        return trainer

    plain = make_trainer(config, prepared, folder)
    train(config, prepared, plain, saved=False)
    whole = run()
    run(stop_after=1)
    torch.manual_seed(99)  # another process
    resumed = run(state=progress.load(Path(folder)))
    weights = plain.model.state_dict()
    for other in (whole, resumed):
        assert other.model.state_dict().keys() == weights.keys()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in other.model.state_dict().items())
        assert kd == "none" or other.history == plain.history
        assert other.train_loss_dict == plain.train_loss_dict
        assert other.best_valid_score == plain.best_valid_score
        assert dict(other.best_valid_result) == dict(plain.best_valid_result)


def test_a_changed_learning_rate_takes_the_place_of_the_kept_one(settings, tmp_path):
    def trainer(**more):
        config = load_config("BPR", "tiny", config_dict=settings(**more))
        prepared = prepare(config, Steps())
        return config, prepared, make_trainer(config, prepared, tmp_path)

    config, prepared, first = trainer(learning_rate=0.01)
    state = {}
    train(config, prepared, first, saved=False, after_epoch=lambda *now: state.update(progress.captured(*now[:3])))
    config, prepared, second = trainer(learning_rate=0.05, epochs=3)
    train(config, prepared, second, saved=False, state=state)
    assert [group["lr"] for group in second.optimizer.param_groups] == [0.05]
    assert list(second.train_loss_dict) == [0, 1, 2]


def test_early_stopping_holds_after_a_resume(settings, tmp_path):
    config = load_config("BPR", "tiny", config_dict=settings(epochs=30, stopping_step=0, learning_rate=0.05))
    prepared = prepare(config, Steps())
    first = make_trainer(config, prepared, tmp_path)
    state = {}
    train(config, prepared, first, saved=False, after_epoch=lambda *now: state.update(progress.captured(*now[:3])))
    assert len(first.train_loss_dict) < 30
    second = make_trainer(config, prepared, tmp_path)
    score, _, _ = train(config, prepared, second, saved=False, state=state)
    assert second.train_loss_dict == first.train_loss_dict and score == first.best_valid_score


def test_what_a_student_was_built_with_is_not_kept(settings, tmp_path):
    """Kept is what has changed since: other settings of a population stay, and a file holds plain values alone."""
    config = load_config("BPR", "tiny", config_dict=settings())
    prepared = prepare(config, Steps())

    def built(weight):
        trainer = make_trainer(config, prepared, tmp_path)
        vars(trainer.model).update(weight=weight, steps=0, best=0.0, order=np.arange(5), graph=torch.zeros(3))
        vars(trainer.model).update(table={1: object()}, cache=None, other_parameter_name=["table", "cache"])
        progress.begin(trainer)
        return trainer

    first, second = built(weight=1), built(weight=2)
    first.model.steps, first.model.best = 7, torch.tensor(0.5)
    first.model.cache = torch.ones(2)
    np.random.shuffle(first.model.order)
    first.model.graph[1] = 4
    state = progress.captured(first, prepared.split.train_data, 0)
    assert [name for _, name, _ in state["held"]] == ["steps", "best", "order", "graph"]
    progress.save(state, tmp_path)
    progress.restore(progress.load(tmp_path), second, prepared.split.train_data)
    assert second.model.weight == 2 and second.model.steps == 7 and second.model.best == 0.5
    assert (second.model.order == first.model.order).all() and isinstance(second.model.order, np.ndarray)
    assert torch.equal(second.model.graph, first.model.graph) and torch.equal(second.model.cache, torch.ones(2))
    assert second.model.table is not first.model.table

"""Traits are resolved through base classes, stated by a model itself, or probed."""

import numpy as np
import pytest
import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.context_aware_recommender.dcnv2 import DCNV2
from recbole.model.general_recommender.multivae import MultiVAE
from recbole.model.general_recommender.ncl import NCL
from recbole.model.general_recommender.neumf import NeuMF
from recbole.model.loss import BPRLoss
from recbole.model.sequential_recommender.dien import DIEN
from recbole.model.sequential_recommender.sasrec import SASRec
from recbole.trainer import KGATTrainer, NCLTrainer
from recbole.utils import InputType, get_model

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.recbole_host.models import host_trainer
from recbole_prmkd.students.traits import Traits, traits_of


class MyNeuMF(NeuMF):
    """As NeuMF."""


class MySASRec(SASRec):
    """As SASRec."""


class MyVAE(MultiVAE):
    """As MultiVAE, which RecBole gives whole users."""


class MyDIEN(DIEN):
    """As DIEN, which has a data set class of its own."""


class Own(GeneralRecommender):
    """A model of a user's own: a product of two tables, ranked by its sigmoid where `probabilities` is set."""

    input_type = InputType.PAIRWISE
    probabilities = False

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.users, self.items = torch.nn.Embedding(self.n_users, 8), torch.nn.Embedding(self.n_items, 8)
        self.loss = BPRLoss()

    def forward(self, user):
        return self.users(user)

    def _ranked(self, scores):
        return scores.sigmoid() if self.probabilities else scores

    def calculate_loss(self, interaction):
        user = self.forward(interaction[self.USER_ID])
        positive, negative = (self.items(interaction[key]) for key in (self.ITEM_ID, self.NEG_ITEM_ID))
        return self.loss((user * positive).sum(1), (user * negative).sum(1))

    def predict(self, interaction):
        return self._ranked((self.forward(interaction[self.USER_ID]) * self.items(interaction[self.ITEM_ID])).sum(1))

    def full_sort_predict(self, interaction):
        return self._ranked(self.forward(interaction[self.USER_ID]) @ self.items.weight.T)


class OwnOfProbabilities(Own):
    """Ranked by probabilities."""

    probabilities = True


class OwnOfPairs(Own):
    """Scores one pair at a time by a network, whose untrained scores are near its last bias."""

    input_type = InputType.POINTWISE
    full_sort_predict = GeneralRecommender.full_sort_predict  # there is none

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.last, self.loss = torch.nn.Linear(16, 1), torch.nn.BCEWithLogitsLoss()
        torch.nn.init.normal_(self.last.weight, std=0.01)
        torch.nn.init.constant_(self.last.bias, 0.5)

    def forward(self, interaction):
        user, item = self.users(interaction[self.USER_ID]), self.items(interaction[self.ITEM_ID])
        return self.last(torch.cat([user, item], dim=1)).squeeze(1)

    def calculate_loss(self, interaction):
        return self.loss(self.forward(interaction), interaction["label"].float())

    def predict(self, interaction):
        return self._ranked(self.forward(interaction))


class OwnOfPairsProbabilities(OwnOfPairs):
    """The same, ranked by probabilities."""

    probabilities = True


class OwnThatSaysSo(Own):
    """Ranked by probabilities, and says so."""

    probabilities = True
    kd_traits = Traits(scores="probabilities", loss="pairwise", in_pairs=True)


@pytest.mark.parametrize("model", [NeuMF, MyNeuMF])
def test_a_subclass_has_the_traits_of_its_base(model):
    traits, source = traits_of(model)
    assert traits.scores == "probabilities" and source == "NeuMF"
    assert traits_of(type("Deep", (DCNV2,), {}))[0] == traits_of(DCNV2)[0] != Traits()
    assert traits_of(SASRec) == (Traits(), "SASRec")
    assert traits_of(Own) == (Traits(scores=None), "probed") and traits_of(OwnThatSaysSo)[1] == "OwnThatSaysSo"


@pytest.mark.parametrize(
    ("model", "base"), [(MyNeuMF, "NeuMF"), (MySASRec, "SASRec"), (MyVAE, "MultiVAE"), (MyDIEN, "DIEN")]
)
def test_a_subclass_is_distilled_as_its_base(model, base, settings, tmp_path):
    runs = [
        run_recbole_prmkd(one, "tiny", config_dict=settings(kd="prmkd", kd_output_dir=str(tmp_path / str(number))))
        for number, one in enumerate((base, model))
    ]
    theirs, ours = (run["result"]["student"] for run in runs)
    assert ours["kd"] == theirs["kd"] and ours["kd"]["traits"] == base and ours["kd"]["weight"] > 0
    assert ours["train_losses"] == theirs["train_losses"] and runs[0]["test_result"] == runs[1]["test_result"]
    assert ours["model"] == model.__name__ and (tmp_path / "1" / f"{model.__name__}.pth").is_file()


@pytest.mark.parametrize(
    ("model", "family", "scores", "source", "loss"),
    [
        (Own, "factorised", "logits", "probed", "pairwise"),
        (OwnOfProbabilities, "factorised", "probabilities", "probed", "pairwise"),
        (OwnOfPairs, "pairs", "logits", "probed", "pointwise"),
        (OwnOfPairsProbabilities, "pairs", "probabilities", "probed", "pointwise"),
        (OwnThatSaysSo, "pairs", "probabilities", "OwnThatSaysSo", "pairwise"),
    ],
)
def test_a_model_of_ones_own_is_probed_unless_it_says(model, family, scores, source, loss, settings, caplog):
    caplog.set_level("INFO")
    run = run_recbole_prmkd(model, "tiny", config_dict=settings(kd="prmkd"))
    kd = run["result"]["student"]["kd"]
    assert (kd["family"], kd["scores"], kd["traits"], kd["loss"]) == (family, scores, source, loss)
    assert np.isfinite(run["result"]["distillation"][-1]["kd_loss"])


def test_a_subclass_has_its_bases_trainer_and_properties(cpu_settings):
    config = load_config(MyNeuMF, "tiny", config_dict=cpu_settings(kd="none"))
    assert config["mf_embedding_size"] == load_config("NeuMF", "tiny", config_dict=cpu_settings())["mf_embedding_size"]
    assert host_trainer(config, type("MyNCL", (NCL,), {})) is NCLTrainer
    assert host_trainer(config, get_model("KGAT") if _has("dgl") else type("KGAT", (NeuMF,), {})) is KGATTrainer


def test_what_is_no_model_is_refused_in_a_sentence(cpu_settings):
    with pytest.raises(UserError, match="no RecBole model"):
        load_config(dict, "tiny", config_dict=cpu_settings())
    with pytest.raises(UserError, match="give your class another name"):
        load_config(type("SASRec", (Own,), {}), "tiny", config_dict=cpu_settings())
    with pytest.raises(UserError, match="give your class another name"):  # RecBole's look-up reads small letters
        load_config(type("sasrec", (Own,), {}), "tiny", config_dict=cpu_settings())
    for path in ("nowhere.at:All", ":All", "./at.py:All"):
        with pytest.raises(UserError, match="no model"):
            load_config(path, "tiny", config_dict=cpu_settings())


def test_a_class_inside_a_function_is_saved(settings, tmp_path):
    class Inside(SASRec):
        """Python cannot pickle it."""

    run = run_recbole_prmkd(Inside, "tiny", config_dict=settings(kd="none"))
    assert (tmp_path / "out" / run["result"]["student"]["checkpoint"]).is_file()


@pytest.mark.parametrize(
    ("traits", "words"),
    [
        ({"scores": "logits"}, "write Traits"),
        (Traits(scores="probs"), "use one of logits"),
        (Traits(loss="bpr"), "use one of full-softmax"),
    ],
)
def test_wrong_traits_are_refused_in_a_sentence(traits, words):
    with pytest.raises(UserError, match=words):
        traits_of(type("Wrong", (Own,), {"kd_traits": traits}))


def _has(package):
    try:
        __import__(package)
    except ImportError:
        return False
    return True

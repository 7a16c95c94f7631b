"""Models of RecBole as teachers: their keys, their scores in the cache, their checkpoints, and what they do not see."""

import shutil

import pytest
import torch
from conftest import write_tiny
from recbole.data.interaction import Interaction
from recbole.utils import get_model

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.data.split import load_split
from recbole_prmkd.preparation import Steps, prepare
from recbole_prmkd.recbole_host import keys
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.recbole_host.host_properties import hosts
from recbole_prmkd.teachers import TEACHERS
from recbole_prmkd.teachers.calibration import temperature_of
from recbole_prmkd.teachers.data import teacher_data
from recbole_prmkd.teachers.fit import fit_or_load
from recbole_prmkd.teachers.products import bias_of
from recbole_prmkd.tune import trial_inputs
from recbole_prmkd.tune.trial_inputs import make_trial_inputs

SMALL = {
    "kd_lightgcn_epochs": 3,
    "kd_lightgcn_embedding_size": 8,
    "kd_sasrec_epochs": 2,
    "kd_sasrec_hidden_size": 16,
    "kd_sasrec_inner_size": 16,
    "kd_sasrec_max_item_list_length": 6,
    "kd_neumf_epochs": 2,
    "kd_deepfm_epochs": 2,
    "kd_deepfm_mlp_hidden_size": [8],
    "kd_bert4rec_epochs": 1,
    "kd_din_epochs": 1,
    "kd_din_mlp_hidden_size": [8],
}
PRODUCTS = ("LightGCN", "SASRec", "BERT4Rec")


@pytest.fixture
def prepared(cpu_settings):
    """Configuration and what a student is prepared from, with these teachers."""

    def make(student, *teachers, **more):
        given = cpu_settings(kd="mean", kd_teachers=list(teachers), **{**SMALL, **more})
        config = load_config(student, "tiny", config_dict=given)
        return config, prepare(config, Steps())

    return make


# Keys -----------------------------------------------------------------------------------------------------------------


def test_the_keys_of_a_model_are_its_properties_and_those_of_training():
    given = {"kd_teachers": "[LightGCN,SASRec_wide]", "kd_sasrec_wide_hidden_size": 256, "kd_lightgcn_reg_weight": 1}
    checked = keys.checked({**given, "kd_lightgcn_1_seed": 3, "kd_sasrec_wide_epochs": 5}, TEACHERS)
    assert checked["kd_teachers"] == ["LightGCN", "SASRec_wide"] and checked["kd_lightgcn_reg_weight"] == 1.0
    own = keys.teacher_settings("SASRec_wide", checked)
    assert (own["hidden_size"], own["epochs"], own["n_layers"], own["loss_type"]) == (256, 5, 2, "CE")
    assert keys.teacher_settings("SASRec", checked)["hidden_size"] == 64
    assert keys.teacher_seed("LightGCN_1", {**checked, "kd_teacher_seed": 9}) == 3
    assert type(keys.teacher_settings("LightGCN", {})["reg_weight"]) is float  # 1e-05, a text to plain YAML


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kd_teachers": ["LightGCM"]}, "Unknown teacher 'LightGCM' in kd_teachers: did you mean 'LightGCN'"),
        ({"kd_teachers": ["lightgcn"]}, "did you mean 'LightGCN'"),
        ({"kd_lightgcn_n_layer": 2}, "Unknown key 'kd_lightgcn_n_layer': did you mean 'kd_lightgcn_n_layers'"),
        ({"kd_lightgcn_n_layers": 0}, "kd_lightgcn_n_layers = 0 is out of range"),
        ({"kd_sasrec_wide_hidden_size": "wide"}, "kd_sasrec_wide_hidden_size = 'wide' is not a whole number"),
        ({"kd_teachers": ["SASRec_Wide"]}, "a further SASRec is SASRec_<word>"),
        ({"kd_teachers": ["xgboost"]}, "Unknown teacher 'xgboost'"),
    ],
)
def test_wrong_keys_are_named_with_the_nearest(given, message):
    with pytest.raises(UserError, match=message):
        keys.checked(given, TEACHERS)


def test_no_key_of_the_package_looks_like_one_of_a_model():
    assert not [key for key in keys.key_table() if key.startswith("kd_") and key.split("_")[1] in hosts()]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("CKE", "The teacher CKE needs tiny.kg and tiny.link"),
        ("SASRecF", "reads class of each item, which tiny.item lacks: .* --kd_sasrecf_selected_features"),
        ("S3Rec", "S3Rec is trained in stages, so it cannot be a teacher"),
        ("DIEN", "DIEN reads its data in a way of its own"),
    ],
)
def test_models_that_cannot_be_teachers_are_refused_at_once(teacher, message, settings):
    with pytest.raises(UserError, match=message):
        run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="mean", kd_teachers=[teacher]))


def test_a_separator_of_several_characters_is_refused(tiny_path, settings, tmp_path):
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    for file in (tiny_path / "tiny").iterdir():
        (tmp_path / "data" / "tiny" / file.name).write_text(file.read_text().replace("\t", "::"))
    given = settings(kd="mean", kd_teachers=["LightGCN"], data_path=str(tmp_path / "data"), field_separator="::")
    with pytest.raises(UserError, match="field_separator is '::'"):
        run_recbole_prmkd("BPR", "tiny", config_dict=given)


# Scores ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", ["BPR", "SASRec"])
@pytest.mark.parametrize("teacher", ["LightGCN", "SASRec", "BERT4Rec", "NeuMF", "DeepFM", "EASE", "Pop", "DIN"])
def test_the_cache_has_the_scores_of_recboles_model(student, teacher, prepared):
    config, made = prepared(student, teacher)
    (fitted,), cache, model = made.teachers, made.teacher_cache, made.teachers[0].model
    assert model.scores_all_items == (teacher not in PRODUCTS)
    examples = torch.arange(len(made.split.train))
    scores = cache.scores(examples, torch.arange(1, cache.n_items))[0]  # [N, n_items - 1]
    covered = ~scores.isnan().all(dim=1)
    sequential = teacher in ("SASRec", "BERT4Rec", "DIN")
    assert torch.equal(covered, (made.split.train.lengths > 0) | torch.tensor(not sequential))
    host, data = model.host.eval(), teacher_data(made.split, config["kd_teacher_seed"])
    number = int(torch.nonzero(covered)[7])
    expected = _by_recbole(model, host, data.train, number)[data.canonical[1:]]
    tolerance = 2e-3 if model.scores_all_items else 1e-5  # half precision
    found = scores[number].double()
    kept = torch.isclose(found, expected.double(), rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    assert kept.all()
    assert model.temperature > 0
    assert {"valid", "test", "valid_unseen", "test_unseen"} <= fitted.metrics.keys()


def _by_recbole(model, host, train, number):
    """The logits of an example for all items in canonical order, one pair after the other by `predict`."""
    items = model.host_data.item_num
    columns = {
        "user_id": model.host_user[train.users[number]].repeat(items),
        "item_id": torch.arange(items),
    }
    if hasattr(host, "ITEM_SEQ"):
        item_seq, length = train.histories(torch.tensor([number]), model.own["MAX_ITEM_LIST_LENGTH"])
        padded = torch.nn.functional.pad(item_seq, (0, model.own["MAX_ITEM_LIST_LENGTH"] - item_seq.shape[1]))
        columns |= {"item_id_list": model.host_item[padded].repeat(items, 1), "item_length": length.repeat(items)}
    batch = model.host_data.join(Interaction(columns))
    with torch.no_grad():
        scores = host.predict(batch).view(-1).double()
    if type(host).__name__ in ("NeuMF", "DeepFM", "DIN"):
        scores = scores.logit()
    return scores[model.host_item]


def test_both_kinds_of_students_share_a_teacher_and_a_second_run_reuses_it(settings, tmp_path):
    folders = {f"kd_{part}_dir": str(tmp_path / part) for part in ("cache", "teacher")}
    weights = set()
    for student in ("BPR", "SASRec", "BPR"):
        given = settings(kd="prmkd", kd_teachers=["LightGCN", "SASRec", "Pop"], **SMALL, **folders)
        result = run_recbole_prmkd(student, "tiny", config_dict=given)["result"]
        assert set(result["teachers"]) == {"LightGCN", "SASRec", "Pop"}
        weights.add(tuple(teacher["test"]["ndcg@10"] for teacher in result["teachers"].values()))
    assert len(weights) == 1
    assert result["steps"]["teacher LightGCN"]["reused"] and result["steps"]["knowledge Pop"]["reused"]
    assert len(list((tmp_path / "teacher" / "tiny").glob("teacher-*"))) == 3


def test_seeds_of_one_model_are_served_together(settings):
    given = settings(kd="ensemble", kd_teachers=["LightGCN_1", "LightGCN_2", "DeepFM"], **SMALL)
    given |= {
        f"kd_lightgcn_{n}_{key[12:]}": v for n in (1, 2) for key, v in SMALL.items() if key[:12] == "kd_lightgcn_"
    }
    result = run_recbole_prmkd("BPR", "tiny", config_dict={**given, "kd_lightgcn_1_seed": 1, "kd_lightgcn_2_seed": 2})
    teachers = result["result"]["teachers"]
    assert teachers["LightGCN_1"]["test"] != teachers["LightGCN_2"]["test"]
    assert result["test_result"]["recall@10"] > 0


def test_a_trial_of_a_sweep_gets_the_cache_of_a_plain_run(prepared, monkeypatch):
    monkeypatch.setattr(trial_inputs.ray, "put", lambda stored: stored)
    monkeypatch.setattr(trial_inputs.ray, "get", lambda stored: stored)
    monkeypatch.setattr(trial_inputs.ray, "nodes", lambda: [{"Alive": True}] * 2)
    config, made = prepared("BPR", "LightGCN", "NeuMF")
    trial = make_trial_inputs(made, {}).prepared(config)
    examples, items = torch.arange(len(made.split.train)), torch.arange(1, made.teacher_cache.n_items)
    given, expected = (each.teacher_cache.scores(examples, items).nan_to_num() for each in (trial, made))
    assert torch.equal(given, expected)


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(settings, tmp_path):
    """Train a model alone; its metrics and its checkpoint."""

    def make(model, **more):
        run = run_recbole_prmkd(model, "tiny", config_dict=settings(kd="none", kd_protocol="ranking", **more))
        file = shutil.copy(tmp_path / "out" / f"{model}.pth", tmp_path / f"{model}.pth")
        return run["result"]["student"], str(file)

    return make


@pytest.mark.parametrize("model", ["SASRec", "LightGCN", "DeepFM", "EASE"])
def test_a_checkpoint_ranks_as_the_model_that_was_saved(model, checkpoint, settings):
    alone, file = checkpoint(model)  # with sizes that are not the teachers' defaults
    given = settings(kd="mean", kd_teachers=[model], **{f"kd_{model.lower()}_checkpoint": file})
    teacher = run_recbole_prmkd("BPR", "tiny", config_dict=given)["result"]["teachers"][model]
    for part in ("valid_unseen", "test_unseen"):
        assert teacher[part] == pytest.approx(alone[part], abs=1e-4)


@pytest.mark.parametrize(
    ("teacher", "settings_then", "message"),
    [
        ("GRU4Rec", {}, "rejected|holds a SASRec, not a GRU4Rec"),
        ("SASRec", {"user_inter_num_interval": "[7,inf)"}, "was trained with user_inter_num_interval"),
        (
            "SASRec",
            {"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user", "mode": "full"}},
            "was trained on the split",
        ),
    ],
)
def test_a_checkpoint_of_other_data_is_refused(teacher, settings_then, message, checkpoint, settings):
    _, file = checkpoint("SASRec")
    given = settings(kd="mean", kd_teachers=[teacher], **settings_then, **{f"kd_{teacher.lower()}_checkpoint": file})
    with pytest.raises(UserError, match=message):
        run_recbole_prmkd("BPR", "tiny", config_dict=given)


def test_a_checkpoint_runs_no_code(settings, tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"config": Evil(), "state_dict": {}}, tmp_path / "evil.pth")
    given = settings(kd="mean", kd_teachers=["BPR"], kd_bpr_checkpoint=str(tmp_path / "evil.pth"))
    with pytest.raises(UserError, match=r"rejected because it refers to \w+\.exec"):
        run_recbole_prmkd("BPR", "tiny", config_dict=given)
    assert not (tmp_path / "ran").exists()


# What they see --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [-1, -2])
def test_other_validation_and_test_items_change_no_byte(place, settings, tmp_path):
    made = []
    for number, folder in enumerate(
        (write_tiny(tmp_path / "as_is"), write_tiny(tmp_path / "other", swap=(3, place, 7)))
    ):
        out = tmp_path / str(number)
        files = {f"kd_{part}_dir": str(out / part) for part in ("cache", "teacher")}
        given = settings(
            kd="mean", kd_teachers=["LightGCN", "SASRec", "NeuMF"], data_path=str(folder), **SMALL, **files
        )
        run_recbole_prmkd("BPR", "tiny", config_dict=given)
        made.append(
            {
                str(file.relative_to(out)): file.read_bytes()
                for file in sorted(out.rglob("*"))
                if file.suffix == ".safetensors"
            }
        )
    assert made[0] == made[1] and len(made[0]) == 3


def test_the_holdout_is_in_no_training_interaction(cpu_settings):
    config = load_config("BPR", "tiny", config_dict=cpu_settings(kd="mean", kd_teachers=["LightGCN"], **SMALL))
    data = teacher_data(load_split(config), config["kd_teacher_seed"])
    given = fit_or_load("LightGCN", config, data).model.given
    counts = torch.bincount(given.users, minlength=len(data.user_tokens) + 1)
    expected = torch.bincount(data.train.users, minlength=len(counts))
    expected -= torch.bincount(data.holdout.users, minlength=len(counts))
    assert len(data.holdout) and torch.equal(counts, expected)


# Parts ----------------------------------------------------------------------------------------------------------------


class Scorer:
    """Stands for a model whose scores are `made` of vectors and items."""

    def __init__(self, made):
        self.users, self.items, self.bias, self.made = torch.randn(4, 3), torch.randn(9, 3), torch.randn(9), made

    def full_sort_predict(self, batch):
        return self.made(self).view(-1)


@pytest.mark.parametrize(
    ("made", "is_product", "has_bias"),
    [
        (lambda s: s.users @ s.items.T, True, False),
        (lambda s: torch.matmul(s.users[:, None], s.items.T), True, False),
        (lambda s: s.users @ s.items.T + s.bias, True, True),
        (lambda s: torch.nn.functional.linear(s.users, s.items, s.bias), True, True),
        (lambda s: torch.sigmoid(s.users @ s.items.T), False, False),
        (lambda s: s.users @ s.items.T + s.users.flip(1) @ s.items.T, False, False),
        (lambda s: (s.users[:, None] * s.items).sum(-1), False, False),
    ],
)
def test_products_are_recognised(made, is_product, has_bias):
    scorer = Scorer(made)
    found, bias = bias_of(scorer, Interaction({"user_id": torch.arange(4)}), 9)
    assert found == is_product and (bias is not None) == has_bias
    if has_bias:
        torch.testing.assert_close(bias, scorer.bias)


def test_the_temperature_is_that_of_the_targets():
    scores = 30 * torch.randn(4000, 20)
    scores[:, 0] = -torch.inf
    targets = torch.multinomial((scores / 12).softmax(1), 1).squeeze(1)
    assert temperature_of(scores, targets) == pytest.approx(12, rel=0.1)
    assert temperature_of(torch.zeros(3, 4), torch.tensor([0, 1, 2])) == 1


def test_every_model_of_recbole_has_a_class():
    assert all(get_model(name) for name in ("LightGCN", "SASRec", "DeepFM", "CKE"))
    assert {"lightgcn", "sasrec", "ease"} <= hosts().keys() and "xgboost" not in hosts()

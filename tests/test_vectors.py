"""An external model joins as two files of vectors: the teacher cache equals its own scores, example by example."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny_teachers
import torch

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.config import load_config, with_absolute_paths
from recbole_prmkd.teacher_cache.build import build_or_load, open_cache
from recbole_prmkd.teachers.data import teacher_data
from recbole_prmkd.teachers.fit import fit_or_load
from recbole_prmkd.teachers.unisrec import UniSRec
from recbole_prmkd.teachers.vectors import Vectors

WIDTH = 5


@pytest.fixture
def files(tmp_path, settings):
    """Vectors of all users, items and examples but the first of each, and of one stranger each, in random order."""
    split = load_split(load_config("SASRec", "tiny", config_dict=settings()))
    rng = np.random.default_rng(0)

    def write(name, columns):
        columns = {key: [*values, "stranger"] for key, values in columns.items()}
        number = len(next(iter(columns.values())))
        order, feat = rng.permutation(number), rng.standard_normal((number, WIDTH)).astype(np.float32)
        np.savez(tmp_path / name, feat=feat[order], **{key: np.array(values)[order] for key, values in columns.items()})
        names = list(zip(*columns.values(), strict=True))
        return {names[i]: feat[i] for i in order[::-1]}  # of a name that stands there twice the first

    users = [split.user_tokens[user - 1] for user in split.train.users]
    targets = [split.item_tokens[target - 1] for target in split.train.targets]
    return {
        "split": split,
        "items": write("items.npz", {"item_id": split.item_tokens[1:]}),
        "users": write("users.npz", {"user_id": split.user_tokens[1:]}),
        "rows": write("rows.npz", {"user_id": users[1:], "item_id": targets[1:]}),
        "named": {name: str(tmp_path / f"{name}.npz") for name in ("items", "users", "rows")},
        "row_names": list(zip(users, targets, strict=True)),
    }


@pytest.mark.parametrize("part", ["users", "rows"])
def test_the_cache_has_the_models_own_cosine(part, files, settings):
    named = files["named"]
    given = {"kd_vectors_items": named["items"], f"kd_vectors_{part}": named[part], "kd_teachers": ["Vectors"]}
    config = load_config("SASRec", "tiny", config_dict=settings(kd="single", **given))
    split = load_split(config)
    data = teacher_data(split, config["seed"])
    teacher = fit_or_load("Vectors", config, data)
    folder, _ = build_or_load(teacher, data, config)
    cache = open_cache([teacher], [folder], data, config)
    candidates = torch.arange(1, len(split.item_tokens) + 1)
    scores = cache.scores(torch.arange(len(split.train)), candidates)
    covered = ~scores.isnan()
    assert scores.shape[1] == len(files["row_names"])
    for row, name in enumerate(files["row_names"]):
        vector = files[part].get(name if part == "rows" else name[:1])
        for column, token in enumerate(split.item_tokens):
            item = files["items"].get((token,))
            assert bool(covered[0, row, column]) == (vector is not None and item is not None)
            if vector is not None and item is not None:
                own = vector @ item / np.linalg.norm(vector) / np.linalg.norm(item)
                assert scores[0, row, column].item() == pytest.approx(own, abs=2e-3)


def test_an_item_that_stands_twice_has_its_first_line(tmp_path, caplog):
    items, users = tmp_path / "items.npz", tmp_path / "users.npz"
    np.savez(items, item_id=np.array(["b", "a", "b", "elsewhere", "a"]), feat=np.arange(10.0).reshape(5, 2))
    np.savez(users, user_id=np.array(["u"]), feat=np.ones((1, 2)))
    tokens = {"user_id": ["[PAD]", "u"], "item_id": ["[PAD]", "a", "b", "c"]}
    dataset = SimpleNamespace(num=lambda field: len(tokens[field]), field2id_token=tokens)
    fields = {**tiny_teachers.FIELDS, "MAX_ITEM_LIST_LENGTH": 5, "temperature": 0.07, "train_stage": None}
    model = Vectors({**fields, "items": items, "users": users, "rows": None}, dataset)
    assert model.encode_items().tolist() == [[0, 0], [2, 3], [0, 1], [0, 0]]
    assert model.covered_items().tolist() == [False, True, True, False]
    assert "2 lines repeat one of the items" in caplog.text


def test_run_reports_what_it_does_not_cover(files, settings):
    named = files["named"]
    given = {"kd_vectors_items": named["items"], "kd_vectors_users": named["users"]}
    run = run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="mean", kd_teachers=["UniSRec", "Vectors"], **given))
    teacher = run["result"]["teachers"]["Vectors"]
    assert teacher["unknown_items"] == 1 and teacher["unknown_rows"] > 0 and teacher["seconds"] < 1
    assert 0 <= teacher["test"]["ndcg@10"] <= 1
    assert all(np.isfinite(epoch["kd_loss"]) for epoch in run["result"]["distillation"])


def test_two_external_models_each_with_its_own_files(files, settings, tmp_path):
    named, of_rows = files["named"], {"kd_vectors_llm_rows": files["named"]["rows"]}
    first = {"kd_vectors_items": named["items"], "kd_vectors_users": named["users"]}
    further = {"kd_teachers": ["Vectors", "Vectors_llm"], "kd_vectors_other_items": named["items"], **of_rows}
    with pytest.raises(UserError, match="Teacher Vectors_llm needs two files: --kd_vectors_llm_items"):
        run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="mean", **first, **further))
    further["kd_vectors_llm_items"] = named["items"]
    run = run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="mean", kd_item_init="auto", **first, **further))
    teachers = run["result"]["teachers"]
    assert list(teachers) == ["Vectors", "Vectors_llm"]
    assert teachers["Vectors"]["holdout"] != teachers["Vectors_llm"]["holdout"]  # other vectors
    assert {"weight_Vectors", "weight_Vectors_llm"} <= set(run["result"]["distillation"][0])
    log = next((tmp_path / "out" / "log").rglob("*.log")).read_text()
    assert "kd_vectors_other_items has no effect here: no teacher Vectors_other is named." in log
    assert "kd_vectors_llm_items has no effect" not in log


def test_files_are_absolute_for_processes_elsewhere(files, settings, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = {
        "kd_vectors_items": "items.npz",
        "kd_vectors_llm_rows": "rows.npz",
        "kd_teachers": ["Vectors", "Vectors_llm"],
    }
    config = load_config("BPR", "tiny", config_dict=settings(kd="mean", **given))
    absolute = with_absolute_paths(given, config)
    assert absolute == {**given, **{key: str(tmp_path / given[key]) for key in given if key != "kd_teachers"}} | {
        key: absolute[key] for key in ("kd_cache_dir", "kd_teacher_dir")
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs two files"),
        ({"kd_vectors_items": "items"}, "needs two files"),
        ({"kd_vectors_items": "items", "kd_vectors_users": "users", "kd_vectors_rows": "rows"}, "needs two files"),
        ({"kd_vectors_items": "users", "kd_vectors_users": "users"}, "has no array item_id"),
        ({"kd_vectors_items": "nowhere", "kd_vectors_users": "users"}, "Cannot read nowhere"),
    ],
)
def test_wrong_files(given, message, files, settings, tmp_path):
    given = {key: files["named"].get(name, name) for key, name in given.items()}
    with pytest.raises(UserError, match=message):
        run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="mean", kd_teachers=["Vectors"], **given))
    assert not (tmp_path / "out").exists()


def test_vectors_of_two_models_are_refused(files, settings, tmp_path):
    np.savez(tmp_path / "wide.npz", user_id=np.array(["u1"]), feat=np.ones((1, WIDTH + 1)))
    given = {"kd_vectors_items": files["named"]["items"], "kd_vectors_users": str(tmp_path / "wide.npz")}
    with pytest.raises(UserError, match="both must come from one model"):
        run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="mean", kd_teachers=["Vectors"], **given))


def test_it_is_no_student(settings):
    with pytest.raises(UserError, match="name it in kd_teachers"):
        run_recbole_prmkd("Vectors", "tiny", config_dict=settings())


BAD = {"nan": np.nan, "inf": np.inf, "zero": 0.0, "overflow": 1e300, "square": 1e30, "vanishing": 1e-40}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize("part", ["items", "users", "rows"])
def test_vectors_without_a_direction_are_refused_or_counted(files, settings, tmp_path, part, value, caplog):
    given = {"kd_teachers": ["Vectors"], "kd_vectors_items": files["named"]["items"]}
    other = "rows" if part == "rows" else "users"
    given[f"kd_vectors_{other}"] = files["named"][other]
    archive = dict(np.load(files["named"][part]))
    feat = archive["feat"].astype(np.float64)
    for name, spoilt in (("all", slice(None)), ("some", slice(0, 3))):
        archive["feat"] = feat.copy()
        archive["feat"][spoilt] = value
        np.savez(tmp_path / f"{name}.npz", **archive)
    given |= {f"kd_vectors_{part}": str(tmp_path / "all.npz")}
    config = load_config("SASRec", "tiny", config_dict=settings(kd="single", use_gpu=False, **given))
    data = teacher_data(files["split"], config["seed"])
    with pytest.raises(UserError, match=r"Every vector of the data set in .*all\.npz is zero, not finite"):
        fit_or_load("Vectors", config, data)
    config[f"kd_vectors_{part}"] = str(tmp_path / "some.npz")
    caplog.clear()
    teacher = fit_or_load("Vectors", config, data).model
    stranger = "stranger" in archive["item_id" if part == "items" else "user_id"][:3]
    assert f"some.npz: {2 if stranger else 3} of " in caplog.text
    assert all(torch.isfinite(vectors).all() for vectors in (teacher.item_vectors, teacher.row_vectors))


def test_a_teacher_that_covers_nothing_is_refused(settings, tmp_path, monkeypatch):
    own = UniSRec.encode_items
    monkeypatch.setattr(UniSRec, "encode_items", lambda self: own(self) if self.training else own(self) * torch.nan)
    given = {"kd_teacher_dir": str(tmp_path / "teachers"), "kd_cache_dir": str(tmp_path / "cache")}
    with pytest.raises(UserError, match="UniSRec covers none of the 30 items"):
        run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="mean", kd_teachers=["UniSRec"], **given))


def test_vectors_in_another_byte_order_are_read(files, settings, tmp_path):
    archive = dict(np.load(files["named"]["items"]))
    archive["feat"] = archive["feat"].astype(">f8")
    np.savez(tmp_path / "big.npz", **archive)
    given = {"kd_vectors_users": files["named"]["users"], "kd_teachers": ["Vectors"]}
    tables = []
    for file in (files["named"]["items"], tmp_path / "big.npz"):
        more = settings(kd="single", use_gpu=False, kd_vectors_items=str(file), **given)
        config = load_config("SASRec", "tiny", config_dict=more)
        tables.append(fit_or_load("Vectors", config, teacher_data(files["split"], 1)).model.item_vectors)
    assert torch.equal(*tables)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_damaged_file_is_one_sentence(files, settings, tmp_path, place):
    archive = dict(np.load(files["named"]["items"]))
    np.savez_compressed(tmp_path / "damaged.npz", **archive)
    content = bytearray((tmp_path / "damaged.npz").read_bytes())
    start = int(place * len(content))
    content[start : start + 8] = bytes(8)
    (tmp_path / "damaged.npz").write_bytes(content)
    given = {"kd_vectors_items": str(tmp_path / "damaged.npz"), "kd_vectors_users": files["named"]["users"]}
    config = load_config("SASRec", "tiny", config_dict=settings(kd="single", kd_teachers=["Vectors"], **given))
    with pytest.raises(UserError, match=r"Cannot read .*damaged\.npz"):
        fit_or_load("Vectors", config, teacher_data(files["split"], 1))

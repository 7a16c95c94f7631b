"""Teachers that go on from an earlier run (`kd_teacher_refresh`) on a data set with more users and items."""

import numpy as np
import pytest
from conftest import TINY, TINY_TEACHER
from safetensors.torch import load_file

from recbole_prmkd import UserError, run_recbole_prmkd

KINDS = ["UniSRec", "BPR", "Linear"]
SHARED = {
    **TINY,
    **TINY_TEACHER,
    "epochs": 1,
    "kd": "mean",
    "kd_teachers": KINDS,
    "kd_unisrec_train_stage": "transductive",
    "kd_bpr_epochs": 2,
    "kd_bpr_embedding_size": 8,
    "kd_teacher_check": "off",
    "use_gpu": False,
}


def write_day(folder, users, items):
    """User u's items follow one another; the order of users and items is that of the arguments."""
    data = folder / "shop"
    data.mkdir(parents=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += [f"u{user}\ti{items[(user + step) % len(items)]}\t{step}" for user in users for step in range(8)]
    (data / "shop.inter").write_text("\n".join(lines) + "\n")
    texts = "".join(f"i{item}\tred thing number {item}\n" for item in items)
    (data / "shop.item").write_text("item_id:token\ttitle:token_seq\n" + texts)
    return folder


@pytest.fixture(scope="module")
def days(tmp_path_factory, tiny_encoder):
    """Runs of two days, by what is set; equal settings run once."""
    folder = tmp_path_factory.mktemp("days")
    data = {
        "yesterday": write_day(folder / "data1", range(20), [*range(12)]),
        "today": write_day(folder / "data2", range(24, 0, -1), [*range(15, 0, -1)]),
    }
    done = {}

    def run(day, **more):
        key = (day, *sorted(map(str, more.items())))
        if key not in done:
            settings = {
                **SHARED,
                "data_path": str(data[day]),
                "kd_text_encoder": str(tiny_encoder),
                "kd_cache_dir": str(folder / "cache"),
                "kd_teacher_dir": str(folder / "teachers"),
                "kd_output_dir": str(folder / f"run{len(done)}"),
                **more,
            }
            done[key] = run_recbole_prmkd("SASRec", "shop", config_dict=settings)
        return done[key]

    run.teachers = folder / "teachers"
    return run


def weights(days, returned, teacher):
    """Its stored weights, and its items in the order of their rows."""
    stored = days.teachers / returned["result"]["teachers"][teacher]["stored"]
    return load_file(stored / "weights.safetensors")


def rows(first, last):
    """Row of each item's token, PAD first, as teachers number them."""
    return {token: row for row, token in enumerate(sorted(f"i{item}" for item in range(first, last + 1)), 1)}


def go_on(days, mode, **more):
    return days("today", kd_student_checkpoint=days("yesterday")["output_dir"], kd_teacher_refresh=mode, **more)


@pytest.mark.parametrize(
    ("teacher", "table"), [("UniSRec", "item_embedding.weight"), ("BPR", "host.item_embedding.weight")]
)
def test_kept_weights_are_the_earlier_ones_by_token(days, teacher, table):
    before, after = weights(days, days("yesterday"), teacher), weights(days, go_on(days, "keep"), teacher)
    old, new = rows(0, 11), rows(1, 15)
    for token in old.keys() & new.keys():
        np.testing.assert_array_equal(after[table][new[token]], before[table][old[token]])
    others = [name for name in before if before[name].shape == after[name].shape and name != "tau"]
    assert teacher == "BPR" or len(others) == len(before) - 1
    for name in others:
        np.testing.assert_array_equal(after[name], before[name])


def test_kept_bpr_does_not_cover_what_it_never_saw(days):
    found = go_on(days, "keep")["result"]["teachers"]
    assert found["BPR"]["unknown_items"] == 4 and found["UniSRec"]["unknown_items"] == 0


@pytest.mark.parametrize("teacher", ["UniSRec", "BPR"])
def test_continued_weights_are_trained_on_from_the_earlier_ones(days, teacher):
    name = "moe_adaptor.w_gate" if teacher == "UniSRec" else "host.item_embedding.weight"
    still = {"kd_unisrec_learning_rate": 1e-12, "kd_bpr_learning_rate": 1e-12}
    before = weights(days, days("yesterday"), teacher)[name]
    same = weights(days, go_on(days, "continue", **still), teacher)[name]
    moved = weights(days, go_on(days, "continue"), teacher)[name]
    full = weights(days, days("today"), teacher)[name]
    if teacher == "BPR":
        old, new = rows(0, 11), rows(1, 15)
        both = sorted(old.keys() & new.keys())
        before = before[[old[token] for token in both]]
        same, moved, full = (table[[new[token] for token in both]] for table in (same, moved, full))
    np.testing.assert_allclose(same, before, atol=1e-7)
    assert 1e-5 < abs(moved - before).max() < abs(full - before).max()


def test_numbers_are_in_result_and_log(days, capfd):
    found = go_on(days, "continue", seed=7)["result"]["teachers"]
    said = "".join(capfd.readouterr())
    numbers = {"users": 19, "new_users": 5, "items": 11, "new_items": 4}
    for teacher in ("UniSRec", "BPR"):
        carried = found[teacher]["carried_over"]
        assert {key: carried[key] for key in numbers} == numbers and carried["weights"] > 0
        assert f"{teacher} goes on from its weights" in said and "11 items are taken over; 4 items are new" in said
    assert found["Linear"]["carried_over"] is None
    assert "Linear is fitted anew, in spite of kd_teacher_refresh=continue: it is not trained by gradients" in said


def test_the_identity_says_what_it_started_from(days):
    stored = {go_on(days, mode)["result"]["teachers"]["UniSRec"]["stored"] for mode in ("keep", "continue")}
    stored.add(days("today")["result"]["teachers"]["UniSRec"]["stored"])
    assert len(stored) == 3
    again = go_on(days, "continue", topk=[5, 10])["result"]
    assert again["steps"]["teacher UniSRec"]["reused"] and again["teachers"]["UniSRec"]["stored"] in stored


def test_a_third_day_goes_on_from_the_second(days):
    second = go_on(days, "continue")["output_dir"]
    found = days("today", kd_student_checkpoint=second, kd_teacher_refresh="keep")["result"]["teachers"]
    assert all(found[name]["carried_over"]["new_items"] == 0 for name in ("UniSRec", "BPR"))


def test_missing_weights_are_made_anew(days, tmp_path, capfd):
    more = {"kd_teachers": ["UniSRec"], "kd_teacher_dir": str(tmp_path / "elsewhere")}
    yesterday = days("yesterday", **more)
    stored = tmp_path / "elsewhere" / yesterday["result"]["teachers"]["UniSRec"]["stored"]
    (stored / "weights.safetensors").write_bytes(b"damaged")
    more["kd_student_checkpoint"] = yesterday["output_dir"]
    found = days("today", kd_teacher_refresh="keep", **more)["result"]["teachers"]
    assert found["UniSRec"]["carried_over"] is None
    assert "had no such teacher, or its stored weights are gone" in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"kd_unisrec_hidden_size": 8}, "set the sizes of the teacher as in that run, or use --kd_teacher_refresh"),
        ({"kd_unisrec_n_heads": 4}, "kd_unisrec_n_heads is 4 and was 2"),
        ({"kd_student_checkpoint": None}, "kd_teacher_refresh = keep needs an earlier run"),
        ({"kd_text_encoder": "all-MiniLM-L6-v2"}, "kd_text_encoder is 'all-MiniLM-L6-v2' and was"),
    ],
)
def test_what_does_not_fit_gives_one_sentence(days, more, words):
    settings = {"kd_student_checkpoint": days("yesterday")["output_dir"], **more}
    with pytest.raises(UserError, match=words):
        days("today", kd_teacher_refresh="keep", **settings)


@pytest.mark.parametrize("mode", ["keep", "continue"])
def test_recformer_encodes_only_what_it_has_no_vector_of(days, mode):
    more = {
        "kd_teachers": ["Recformer"],
        "kd_recformer_epochs": 1,
        "kd_recformer_stage_two_epochs": 0,
        "kd_recformer_max_item_list_length": 4,
        "kd_recformer_learning_rate": 1e-3,
    }
    yesterday = days("yesterday", **more)
    today = days("today", kd_student_checkpoint=yesterday["output_dir"], kd_teacher_refresh=mode, **more)
    before, after = (weights(days, each, "Recformer") for each in (yesterday, today))
    old, new = rows(0, 11), rows(1, 15)
    table = "item_embedding.weight"
    both = sorted(old.keys() & new.keys())
    known, same = after[table][[new[token] for token in both]], before[table][[old[token] for token in both]]
    assert after[table][1:].any(dim=1).all() and not after[table][0].any()
    assert (known == same).all() == (mode == "keep")
    name = "longformer.encoder.layer.1.output.dense.weight"
    assert (after[name] == before[name]).all() == (mode == "keep")
    assert today["result"]["teachers"]["Recformer"]["unknown_items"] == 0

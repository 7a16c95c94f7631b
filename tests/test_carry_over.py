"""A student goes on from an earlier run on a larger data set: rows by token, in numbers."""

import numpy as np
import pytest
import torch
from trained import FAMILIES, ITEMS, SMALL, USERS, trained, write_data

from recbole_prmkd import UserError, load, run_recbole_prmkd
from recbole_prmkd.compare import work


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """The data set of the next day: its users and items in another order, six users and four items more."""
    users = [*range(USERS + 5, USERS - 1, -1), *range(USERS)]
    return write_data(tmp_path_factory.mktemp("grown"), users=users, items=[*range(ITEMS + 3, -1, -1)])


def next_day(model, runs, grown, output, **more):
    """The run on it, with weights that are not trained: what was taken over is still there."""
    given = {"kd_student_checkpoint": str(runs / model), "kd_student_shrink": 1.0, "learning_rate": 0.0, **more}
    return trained(model, grown, output, **given)


@pytest.mark.parametrize("model", ["SASRec", "BPR", "LightGCN", "MultiVAE", "DeepFM"])
def test_rows_of_known_tokens_are_taken_over(runs, grown, tmp_path, model):
    old = load(runs / model)
    new = load(next_day(model, runs, grown, tmp_path / "run"))
    known_items = [token for token in new.item_tokens[1:] if token in old.item_tokens]
    assert len(new.item_tokens) > len(old.item_tokens) and new.item_tokens[1:4] != old.item_tokens[1:4]
    before, after = old.model.state_dict(), new.model.state_dict()
    places = [[each.item_tokens.index(token) for token in ("[PAD]", *known_items)] for each in (old, new)]
    if model == "MultiVAE":  # its first layer has a column for each item, its last one a row
        first, last = [name for name in before if before[name].dim() == 2 and ITEMS + 1 in before[name].shape]
        torch.testing.assert_close(after[first][:, places[1]], before[first][:, places[0]])
        torch.testing.assert_close(after[last][places[1]], before[last][places[0]])
    elif model == "DeepFM":  # one table of all fields: users, ages, items
        name = next(name for name in before if "token_embedding_table.embedding" in name)
        counts = [
            dict(zip(each.model.token_field_names, each.model.token_field_dims, strict=True)) for each in (old, new)
        ]
        offset = [sum(list(each.values())[: list(each).index("item_id")]) for each in counts]
        rows = [np.array(each) + start for each, start in zip(places, offset, strict=True)]
        torch.testing.assert_close(after[name][rows[1]], before[name][rows[0]])
    else:
        name = "item_embedding.weight"
        torch.testing.assert_close(after[name][places[1]], before[name][places[0]])


def test_a_share_of_the_earlier_weights_beside_a_new_start(runs, grown, tmp_path):
    start = load(trained("SASRec", grown, tmp_path / "new", learning_rate=0.0)).model.state_dict()
    earlier = load(next_day("SASRec", runs, grown, tmp_path / "whole")).model.state_dict()
    mixed = load(next_day("SASRec", runs, grown, tmp_path / "part", kd_student_shrink=0.6)).model.state_dict()
    for name, found in mixed.items():
        torch.testing.assert_close(found, 0.6 * earlier[name] + 0.4 * start[name], atol=1e-6, rtol=1e-5)
    assert not torch.equal(mixed["item_embedding.weight"], earlier["item_embedding.weight"])


def test_log_and_result_say_it_in_numbers(runs, grown, tmp_path):
    returned = run_recbole_prmkd(
        "BPR",
        "shop",
        config_dict={
            **SMALL,
            **FAMILIES["BPR"],
            "data_path": str(grown),
            "kd_output_dir": str(tmp_path / "run"),
            "kd_student_checkpoint": str(runs / "BPR"),
        },
    )
    found = returned["result"]["student"]["carried_over"]
    assert found == {
        "folder": str(runs / "BPR"),
        "weights": 2,
        "users": USERS,
        "new_users": 6,
        "items": ITEMS,
        "new_items": 4,
    }


@pytest.mark.parametrize(
    ("model", "more", "words"),
    [
        ("SASRec", {"kd_student_checkpoint": "BPR"}, "holds a BPR, and the model is SASRec"),
        ("BPR", {"kd_student_checkpoint": "missing"}, "There is no .*result.json"),
        ("BPR", {"embedding_size": 4}, "set the sizes of the model as in that run"),
    ],
)
def test_what_does_not_fit_gives_one_sentence(runs, grown, tmp_path, model, more, words):
    folder = {"kd_student_checkpoint": str(runs / more.pop("kd_student_checkpoint", model))}
    with pytest.raises(UserError, match=words):
        trained(model, grown, tmp_path / "run", **folder, **more)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_comparisons_cell_keeps_no_data_and_says_so(tmp_path):
    data, cell = write_data(tmp_path / "data"), tmp_path / "cell"
    cell.mkdir()
    work.WORK["train"](
        {"model": "BPR", "dataset": "shop", "settings": {**SMALL, "kd": "none", "data_path": str(data)}}, cell
    )
    assert (cell / "result.json").is_file() and not (cell / "data.safetensors").exists()
    with pytest.raises(UserError, match="which a comparison and earlier versions do not write"):
        load(cell)
    with pytest.raises(UserError, match="not of a comparison's cell"):
        trained("BPR", data, tmp_path / "run", kd_student_checkpoint=str(cell))

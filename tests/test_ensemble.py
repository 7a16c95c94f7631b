"""The teachers served together: what it must equal, and a run of it and of each peer from settings to result."""

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_prmkd import run_recbole_prmkd
from recbole_prmkd.data.split import load_split
from recbole_prmkd.distil.weighting import fuse
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.results.run_folder import read_result
from recbole_prmkd.teacher_cache.gate import Gate
from recbole_prmkd.teacher_cache.scores import Trust
from recbole_prmkd.teachers.data import teacher_data
from recbole_prmkd.teachers.ensemble import Ensemble, newest, serve
from recbole_prmkd.teachers.fit import fit_or_load

WIDTH = 5
RANKINGS = ("valid", "test", "valid_unseen", "test_unseen")


@pytest.fixture
def vectors(tmp_path, cpu_settings):
    """Settings of a teacher Vectors that covers all items but one and all users but one."""
    split = load_split(load_config("SASRec", "tiny", config_dict=cpu_settings()))
    rng = np.random.default_rng(0)
    for name, key, tokens in (("items", "item_id", split.item_tokens), ("users", "user_id", split.user_tokens)):
        feat = rng.standard_normal((len(tokens) - 1, WIDTH)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", feat=feat, **{key: np.array(tokens[1:])})
    return {"kd_vectors_items": str(tmp_path / "items.npz"), "kd_vectors_users": str(tmp_path / "users.npz")}


@pytest.fixture
def fitted(cpu_settings, vectors):
    """Make the named teachers; returns configuration, split, data and them."""

    def make(*names):
        given = cpu_settings(kd="ensemble", kd_teachers=list(names), **vectors)
        config = load_config("SASRec", "tiny", config_dict=given)
        split = load_split(config)
        data = teacher_data(split, config["kd_teacher_seed"])
        return config, split, data, [fit_or_load(name, config, data) for name in names]

    return make


def test_beside_a_student_without_order_earlier_items_are_left_out(fitted, cpu_settings, vectors):
    _, split, _, teachers = fitted("Vectors")
    config = load_config("BPR", "tiny", config_dict=cpu_settings(kd="ensemble", kd_teachers=["Vectors"], **vectors))
    served = serve(config, split, teachers, Trust([1.0]))
    assert served.test == served.test_unseen == teachers[0].metrics["test_unseen"]
    assert served.valid == served.valid_unseen


@pytest.mark.parametrize("name", ["UniSRec", "Vectors"])
@pytest.mark.parametrize("times", [1, 2])
def test_one_teacher_or_twice_the_same_gives_its_own_metrics(name, times, fitted):
    config, split, _, (teacher,) = fitted(name)
    served = serve(config, split, [teacher] * times, Trust([0.7] * times))
    assert {part: getattr(served, part) for part in RANKINGS} == teacher.metrics
    assert served.parameters == times * teacher.parameters and served.epochs == served.train_seconds == 0


def test_scores_are_the_mean_softmax_of_those_that_know_the_user(fitted):
    _, split, data, teachers = fitted("UniSRec", "Vectors")
    max_length = max((t.config for t in teachers), key=lambda one: one["MAX_ITEM_LIST_LENGTH"])
    model = Ensemble(max_length, data.dataset(max_length, data.test), teachers, Trust([1.0, 1.0]), False).eval()
    examples = torch.arange(len(data.test))
    with torch.no_grad():
        scores = model.full_sort_predict(data.dataset(max_length, data.test)[examples])
        own = [t.model.full_sort_predict(data.dataset(t.config, data.test)[examples]) for t in teachers]
    soft = [(cosine / t.model.temperature).softmax(-1) for cosine, t in zip(own, teachers, strict=True)]
    not_covered = (
        data.test.users == split.user_tokens.index(split.user_tokens[0]) + 1
    )  # the user that Vectors does not name
    assert int(not_covered.sum()) == 1
    expected = torch.where(not_covered[:, None], soft[0], (soft[0] + soft[1]) / 2)
    torch.testing.assert_close(scores, expected)
    assert scores.dtype == torch.float32


def test_a_product_is_the_one_that_a_student_is_taught(fitted):
    """By `fuse`, over all items, with the exponents of the check; the user and the item that Vectors lacks included."""
    _, _, data, teachers = fitted("UniSRec", "Vectors")
    max_length = max((t.config for t in teachers), key=lambda one: one["MAX_ITEM_LIST_LENGTH"])
    exponents = [0.9, 0.4]
    model = Ensemble(max_length, data.dataset(max_length, data.test), teachers, Trust(exponents), True).eval()
    examples = torch.arange(len(data.test))
    with torch.no_grad():
        scores = model.full_sort_predict(data.dataset(max_length, data.test)[examples])
        own = [t.model.full_sort_predict(data.dataset(t.config, data.test)[examples]) for t in teachers]
    covers = [(s != 0).any(1) for s in own]
    covered = torch.stack([who[:, None] & t.model.covered_items() for who, t in zip(covers, teachers, strict=True)])
    logits = torch.stack([s / t.model.temperature for s, t in zip(own, teachers, strict=True)])
    soft = logits.masked_fill(~covered, -torch.inf).softmax(-1).nan_to_num()
    prior = torch.tensor(exponents)[:, None].expand(-1, len(examples))
    everything = torch.ones_like(soft[0], dtype=torch.bool)
    target, _ = fuse(soft, prior, torch.ones_like(soft), 0.5, covered, everything, sum(exponents))
    anybody = covered.any(0)
    assert not covered[1].all(0)[1:].any()  # somebody, and some item, Vectors does not know
    wanted = (target.clamp(min=1e-38).log() / sum(exponents)).masked_fill(~anybody, -torch.inf)
    got = scores.masked_fill(~anybody, -torch.inf)
    torch.testing.assert_close(
        got - got.amax(1, keepdim=True), wanted - wanted.amax(1, keepdim=True), atol=1e-4, rtol=1e-4
    )


def test_a_gate_serves_what_it_was_fitted_for(fitted):
    """One that has learnt nothing ranks as the product does; one that has learnt moves the scores of each example."""
    _, _, data, (teacher,) = fitted("UniSRec")
    teachers = [teacher, teacher]
    config, examples = teachers[0].config, torch.arange(len(data.test))
    dataset, popularity = data.dataset(config, data.test), torch.arange(len(data.canonical))
    gate = Gate(torch.tensor([0.7, 0.5]), True).eval()
    model = Ensemble(config, dataset, teachers, Trust([0.7, 0.5], gate=gate), True, popularity).eval()
    with torch.no_grad():
        scores = model.full_sort_predict(dataset[examples])
        own = teachers[0].model.full_sort_predict(dataset[examples])
        assert torch.equal(scores[:, 1:].argsort(dim=1), own[:, 1:].argsort(dim=1))
        assert bool((scores[:, 0] == torch.finfo(torch.float32).min).all())
        torch.nn.init.normal_(gate.nets[0][-1].weight)
        assert not torch.allclose(model.full_sort_predict(dataset[examples]), scores)


def test_each_teacher_reads_the_newest_items_of_a_history():
    class Names:
        ITEM_SEQ, ITEM_SEQ_LEN = "seq", "length"

    batch = Interaction({"seq": torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]]), "length": torch.tensor([5, 2])})
    cut = newest(batch, Names, 3)
    assert cut["seq"].tolist() == [[3, 4, 5], [6, 7, 0]] and cut["length"].tolist() == [3, 2]
    same = newest(batch, Names, 9)
    assert torch.equal(same["seq"], batch["seq"]) and torch.equal(same["length"], batch["length"])


def test_a_run_of_the_ensemble_leaves_the_usual_result(settings, vectors, tmp_path):
    given = settings(kd="ensemble", kd_teachers=["UniSRec", "Vectors"], **vectors)
    for number, model in enumerate(("SASRec", "DeepFM")):  # the model plays no part; its kind says which ranking
        run = run_recbole_prmkd(model, "tiny", config_dict={**given, "kd_output_dir": str(tmp_path / str(number))})
        assert run["test_result"] == run["result"]["student"]["test"]
    first, second = (read_result(tmp_path / str(number)) for number in range(2))
    student = first.student
    assert student.parameters == sum(teacher.parameters for teacher in first.teachers.values())
    assert student.epochs == 0 and student.checkpoint is None and first.distillation == []
    alike = {"model", "valid", "test", "groups"}
    assert student.model_dump(exclude=alike) == second.student.model_dump(exclude=alike)
    assert second.student.test == student.test_unseen != student.test
    for name, group in second.student.groups.items():
        assert group.test == student.groups[name].test_unseen == group.test_unseen
    assert run["best_valid_score"] == second.student.valid["mrr@10"]


@pytest.mark.parametrize("kd", ["rd", "rrd", "dllm2rec"])
@pytest.mark.parametrize("model", ["SASRec", "BPR", "DeepFM"])
def test_runs_of_the_peers(kd, model, settings, vectors):
    teachers = ["Vectors", "UniSRec"] if model == "BPR" else ["Vectors"]
    run = run_recbole_prmkd(
        model, "tiny", config_dict=settings(kd=kd, kd_teachers=teachers, kd_rank_warm_up=1, **vectors)
    )
    epochs = run["result"]["distillation"]
    assert [epoch["epoch"] for epoch in epochs] == [0, 1]
    assert all(epoch["kd_loss"] > 0 and epoch["share"] == 1 for epoch in epochs)
    assert run["result"]["config"]["kd_loss"] == kd and "ndcg@10" in run["result"]["student"]["test_unseen"]

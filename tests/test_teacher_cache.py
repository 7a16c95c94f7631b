"""The teacher cache gives the live teacher's scores of any examples and candidates, NaN where nothing is covered."""

import json

import numpy as np
import pytest
import torch
from conftest import write_tiny
from torch.nn import functional

from recbole_prmkd.data.split import load_split
from recbole_prmkd.distil.objective import Objective
from recbole_prmkd.preparation import Steps, prepare
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.students.defaults import StudentDefaults
from recbole_prmkd.teacher_cache import vectors as module
from recbole_prmkd.teacher_cache.build import build_or_load, open_cache
from recbole_prmkd.teacher_cache.scores import CachedVectors, TeacherCache
from recbole_prmkd.teachers.data import teacher_data
from recbole_prmkd.teachers.fit import fit_or_load
from recbole_prmkd.training import exclusions_of

ITEMS, EXAMPLES = 12, 30


class GivenScores:
    """A student whose scores are a parameter [n_rows, n_items]."""

    in_pairs, sequential, kd, family = False, False, StudentDefaults(), "decided"

    def __init__(self, split):
        self.table = torch.randn(len(split.train), len(split.item_tokens) + 1, requires_grad=True)

    def positives(self, interaction, generator):
        return torch.arange(len(interaction["kd_example"])), interaction["kd_example"]

    def scores(self, interaction, positions, candidates):
        return self.table[interaction["kd_example"]][:, candidates]

    def release(self):
        pass


@pytest.fixture
def built(cpu_settings):
    def make(model="LightGCN", **more):
        config = load_config(model, "tiny", config_dict=cpu_settings(kd="mean", **more))
        split = load_split(config)
        data = teacher_data(split, config["seed"])
        teachers = [fit_or_load(name, config, data) for name in config["kd_teachers"]]
        folders = [build_or_load(teacher, data, config)[0] for teacher in teachers]
        return config, split, data, teachers, open_cache(teachers, folders, data, config)

    return make


def test_scores_are_the_live_teachers(built):
    config, split, data, (teacher,), cache = built()
    max_length = teacher.config["MAX_ITEM_LIST_LENGTH"]
    examples = torch.nonzero((split.train.lengths > 0) & (split.train.lengths <= max_length)).squeeze(1)[::3]
    candidates = torch.arange(1, len(split.item_tokens) + 1)
    scores = cache.scores(examples, candidates)
    seq, length = data.train.histories(examples, max_length)
    items = teacher.model.encode_items()
    history = functional.normalize(teacher.model.encode_histories(seq, length, items), dim=-1)
    live = history @ functional.normalize(items, dim=-1)[data.canonical[candidates]].T
    torch.testing.assert_close(scores[0], live, rtol=0, atol=2e-3)  # half precision
    assert not scores.isnan().any()
    per_row = cache.scores(examples, candidates.expand(len(examples), -1))
    torch.testing.assert_close(per_row, scores)


def test_a_further_teacher_of_a_kind_is_one_of_its_own(built, cpu_settings, caplog):
    small = {key: value for key, value in cpu_settings().items() if key.startswith("kd_unisrec_")}
    further = {key.replace("unisrec", f"unisrec_{word}"): small[key] for key in small for word in ("2", "seed", "wide")}
    further |= {"kd_unisrec_wide_hidden_size": 24, "kd_unisrec_seed_seed": 7, "kd_item_init": "UniSRec_wide"}
    names = ["UniSRec", "UniSRec_2", "UniSRec_seed", "UniSRec_wide"]
    config, *_, made, cache = built(kd_teachers=names, **further)
    assert [teacher.name for teacher in cache.teachers] == names
    with caplog.at_level("WARNING"):
        teachers = prepare(config, Steps()).teachers
    first, same, seed, wide = teachers
    assert made[1].reused and same.digest == first.digest  # with the same settings it is the same
    assert "UniSRec_2 is UniSRec once more" in caplog.text and caplog.text.count("once more") == 1
    assert seed.digest != first.digest and not torch.equal(seed.model.encode_items(), first.model.encode_items())
    assert wide.digest != first.digest and wide.model.encode_items().shape[1] == 24


def test_shuffled_teachers_give_each_example_the_scores_of_other_items(built):
    _, split, *_, true = built()
    *_, shuffled = built(kd_shuffled_teachers=True)
    examples, items = torch.nonzero(split.train.lengths > 0).squeeze(1)[:20], torch.arange(1, true.n_items)
    scores, control = true.scores(examples, items)[0], shuffled.scores(examples, items)[0]
    torch.testing.assert_close(control.sort(dim=1).values, scores.sort(dim=1).values)
    assert (control != scores).float().mean() > 0.8


def objective_of(config, cache, split, student):
    excluded = exclusions_of(config, split.train, split.future, student.sequential)
    return Objective(config, cache, split.train, excluded, student)


def test_examples_and_items_that_are_not_covered_have_no_weight(built, tmp_path):
    data = write_tiny(tmp_path)
    file = data / "tiny" / "tiny.item"
    file.write_text("".join(line for line in file.open() if not line.startswith("i7\t")))
    config, split, _, _, cache = built(data_path=str(data))
    candidates = torch.arange(1, 31)
    covered = ~cache.scores(torch.arange(len(split.train)), candidates).isnan()
    without_text = split.item_tokens.index("i7")
    assert not covered[0, :, without_text].any()
    assert torch.equal(covered[0].any(1), split.train.lengths > 0)
    objective = objective_of(config, cache, split, GivenScores(split))
    examples = torch.nonzero(split.train.lengths == 0).squeeze(1)[:2]
    batch = {"kd_example": examples, "item_id": split.train.targets[examples]}
    loss = objective(batch)
    assert loss.item() == 0 and objective.epoch_means()["rows_without_knowledge"] == 1


def test_objective_by_hand(built):
    """One teacher: KL of its masked softmax at its own temperature against the student's."""
    config, split, _, (teacher,), cache = built(kd_confidence="probability", kd_consistency="std")
    scorer = GivenScores(split)
    objective = objective_of(config, cache, split, scorer)
    examples = torch.nonzero(split.train.lengths > 0).squeeze(1)[:40:4]
    batch = {"kd_example": examples, "item_id": split.train.targets[examples]}
    loss = objective(batch)
    items = torch.unique(batch["item_id"])
    total = 0.0
    for n, row in enumerate(examples.tolist()):
        theirs = [part.histories(torch.tensor([row]), 99)[0][0] for part in (split.future, split.train)]
        others = set(torch.cat(theirs).tolist()) - {int(batch["item_id"][n])}  # this student knows no order
        mine = torch.tensor([item for item in items.tolist() if item not in others])
        target = (cache.scores(examples[n : n + 1], mine)[0, 0] / teacher.model.temperature).softmax(0)
        student = scorer.table[row, mine].log_softmax(0)
        total += functional.kl_div(student, target, reduction="sum").item()
    assert loss.item() == pytest.approx(total / len(examples), rel=1e-5)
    loss.backward()
    assert scorer.table.grad.abs().sum() > 0


@pytest.fixture
def encoded(cpu_settings, tmp_path):
    """Encodes one tiny teacher's cache into a folder of its own; `prepare` may change the teacher first."""

    def make(folder, prepare=lambda model: None, **more):
        config = load_config("LightGCN", "tiny", config_dict=cpu_settings(kd="mean", **more))
        data = teacher_data(load_split(config), config["seed"])
        teacher = fit_or_load("UniSRec", config, data)
        config["kd_cache_dir"] = str(tmp_path / folder)
        prepare(teacher.model)
        return build_or_load(teacher, data, config)[0], teacher, data.train

    return make


def watch(model, seen, stop=None):
    """Puts each batch that is encoded into `seen`, and raises before number `stop`."""
    encode_batch = model.encode_batch

    def watched(batch, items):
        if len(seen) == stop:
            raise KeyboardInterrupt
        seen.append(batch)
        return encode_batch(batch, items)

    model.encode_batch = watched


def one_by_one(monkeypatch, really=True):
    monkeypatch.setattr(module, "why_not_shared", lambda *_: "it is tested one by one" if really else None)
    monkeypatch.setattr(module, "POSITIONS", 8 * 40)


def test_one_by_one_each_history_is_encoded_once(encoded, monkeypatch):
    one_by_one(monkeypatch)
    seen = []
    folder, teacher, train = encoded("rows", lambda model: watch(model, seen))
    usable = torch.nonzero(train.lengths > 0).squeeze(1)
    item_seq, item_seq_len = train.histories(usable, 8)
    distinct = {tuple(history) for history in item_seq.tolist()}
    assert sum(map(len, seen)) == len(distinct) < len(usable) and len(seen) == -(-len(distinct) // 40)
    assert max(len(batch) for batch in seen) == 40
    for batch in seen:
        assert torch.equal(batch["user_id"], train.users[batch["kd_example"]])
        assert torch.equal(batch["item_id"], train.targets[batch["kd_example"]])
    items = teacher.model.encode_items()
    live = functional.normalize(teacher.model.encode_histories(item_seq, item_seq_len, items), dim=-1)
    examples = torch.from_numpy(np.array(folder.array("rows")))
    torch.testing.assert_close(examples[usable].float(), live, rtol=0, atol=2e-3)
    assert not examples[train.lengths == 0].any()


def test_a_teacher_that_reads_examples_gets_them_all(encoded, monkeypatch):
    one_by_one(monkeypatch)

    def prepare(model):
        model.reads_examples = True
        model.encode_batch = lambda batch, items: items[batch["item_id"]]

    folder, teacher, train = encoded("reads", prepare)
    items = functional.normalize(teacher.model.encode_items(), dim=-1)
    examples = torch.from_numpy(np.array(folder.array("rows"))).float()
    torch.testing.assert_close(examples, items[train.targets], rtol=0, atol=1e-3)
    assert (train.lengths == 0).any()


@pytest.mark.parametrize("windows", [True, False])
def test_a_stopped_job_resumes(windows, encoded, monkeypatch):
    one_by_one(monkeypatch, not windows)
    whole, parts, after = [], [], 2
    expected = encoded("whole", lambda model: watch(model, whole), kd_unisrec_train_batch_size=64)[0]
    with pytest.raises(KeyboardInterrupt):
        encoded("resumed", lambda model: watch(model, [], after), kd_unisrec_train_batch_size=64)
    resumed = encoded("resumed", lambda model: watch(model, parts), kd_unisrec_train_batch_size=64)[0]
    assert len(parts) == len(whole) - after > 0
    assert [len(batch["kd_example"]) for batch in parts] == [len(batch["kd_example"]) for batch in whole[after:]]
    assert np.array(resumed.array("rows")).tobytes() == np.array(expected.array("rows")).tobytes()
    assert list(resumed.path.parent.glob(".*")) == []


def test_half_precision_is_close_and_stored_apart(encoded):
    folders = [encoded("both", kd_encode_precision=precision)[0] for precision in ("float32", "bfloat16")]
    full, half = (torch.from_numpy(np.array(folder.array("rows"))).float() for folder in folders)
    covered = full.any(dim=1)
    assert not torch.equal(full, half) and (torch.cosine_similarity(full[covered], half[covered]) > 0.99).all()
    assert torch.equal(half.any(dim=1), covered)
    first, second = (json.loads((folder.path / "manifest.json").read_text())["identity"] for folder in folders)
    assert set(second) == {*first, "precision"} and second["precision"] == "bfloat16"
    assert first["rows"] == second["rows"]


def random_cache(gaps):
    """Two teachers of random vectors; with gaps, each covers only some of the items and examples."""
    rng = np.random.default_rng(0)

    def vectors(number, width):
        table = functional.normalize(torch.from_numpy(rng.normal(size=(number, width))), dim=-1).half()
        if gaps:
            table[torch.from_numpy(rng.random(number) < 0.2)] = 0
        return table

    teachers = [
        CachedVectors(f"T{k}", 0.1, 0.5, vectors(ITEMS, width), vectors(EXAMPLES, width).numpy())
        for k, width in enumerate((12, 7))
    ]
    return TeacherCache(teachers, torch.arange(ITEMS).flip(0), torch.device("cpu"))


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("per_example", [False, True])
def test_scores_are_cosines_and_nan_where_a_teacher_does_not_cover(gaps, per_example):
    cache = random_cache(gaps)
    examples, candidates = torch.arange(EXAMPLES), torch.arange(ITEMS)
    if per_example:
        candidates = candidates.expand(EXAMPLES, -1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = cache.scores(examples, candidates)
    assert scores.dtype == torch.float32 and scores.isnan().any() == gaps
    for k, teacher in enumerate(cache.teachers):
        items, histories = teacher.items.flip(0).float(), torch.from_numpy(teacher.histories).float()
        covered = (histories != 0).any(1)[:, None] & (items != 0).any(1)
        torch.testing.assert_close(scores[k].nan_to_num(nan=0), histories @ items.T, rtol=0, atol=1e-6)
        assert torch.equal(~scores[k].isnan(), covered)


def test_several_candidate_lists_stand_beside_each_other():
    cache, examples = random_cache(gaps=True), torch.tensor([5, 2, 9])
    shared, own = torch.tensor([3, 1]), torch.tensor([[4, 5, 1], [6, 7, 8], [2, 3, 9]])
    both = [cache.scores(examples, shared), cache.scores(examples, own)]
    torch.testing.assert_close(cache.scores(examples, shared, own), torch.cat(both, dim=-1), equal_nan=True)


def test_teacher_without_gradient_and_outside_the_student(built):
    _, _, _, (teacher,), _ = built()
    assert not any(p.requires_grad for p in teacher.model.parameters()) and not teacher.model.training

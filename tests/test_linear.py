"""Linear: the closed forms, honest folds, and the stored scores from which students are taught."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny_teachers
import torch
from scipy import sparse
from torch import Tensor

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.data.examples import Examples
from recbole_prmkd.teacher_cache import stored_scores
from recbole_prmkd.teacher_cache.scores import CachedScores
from recbole_prmkd.teacher_cache.stored_scores import largest
from recbole_prmkd.teachers import closed_form, linear_choice, linear_judge, linear_scores, local_ridge
from recbole_prmkd.teachers.linear import Linear
from recbole_prmkd.teachers.linear_choice import Choice, fitted

ITEMS, USERS = 12, 200  # PAD included; enough users that each item follows each other one
CHOICE = Choice(ease_penalty=3.0, transition_penalty=2.0, decay=0.7, mix=0.5, floor=0.1, temperature=0.6)


def examples_of(sequences):
    """All examples with a history of these users' sequences."""
    items = torch.tensor([item for sequence in sequences for item in sequence])
    starts = np.cumsum([0, *map(len, sequences)])[:-1]
    rows = [(u + 1, s, s + n) for u, s in enumerate(starts) for n in range(1, len(sequences[u]))]
    users, start, stop = torch.tensor(rows).T
    return Examples(users, items[stop], start, stop, items)


@pytest.fixture
def sequences():
    return [torch.randint(1, ITEMS, (int(torch.randint(3, 9, ())),)).tolist() for _ in range(USERS)]


@pytest.fixture(params=["dense", "sparse"])
def form(request, monkeypatch):
    """Both ways to solve; with as many neighbours as items they give the same numbers."""
    monkeypatch.setattr(closed_form, "DENSE_ITEMS", 0 if request.param == "sparse" else 100)


def dense(matrix):
    return matrix.toarray() if sparse.issparse(matrix) else matrix


def test_ease_is_the_ridge_regression_of_each_item_on_the_others(sequences, form):
    x = np.zeros((USERS, ITEMS))
    for user, sequence in enumerate(sequences):
        x[user, sequence] = 1
    interactions = closed_form.interactions(examples_of(sequences), ITEMS)
    assert np.array_equal(interactions.toarray()[1:], x)
    weights = dense(closed_form.ease((interactions.T @ interactions).tocsr(), 3.0))
    for item in range(1, ITEMS):
        others = [other for other in range(ITEMS) if other != item]
        gram = x[:, others].T @ x[:, others] + 3 * np.eye(len(others))
        own = np.linalg.solve(gram, x[:, others].T @ x[:, item])
        assert np.allclose(weights[others, item], own, atol=1e-4)
        assert weights[item, item] == 0


def test_transitions_are_the_ridge_regression_of_the_target_on_the_history(sequences, form):
    examples = examples_of(sequences)
    gram, right = closed_form.transitions(examples, ITEMS, 0.8, 3)
    history, target = np.zeros((len(examples), ITEMS)), np.zeros((len(examples), ITEMS))
    for n in range(len(examples)):
        items = examples.items[examples.start[n] : examples.stop[n]].tolist()[-3:]
        for age, item in enumerate(reversed(items)):
            history[n, item] += 0.8**age
        target[n, examples.targets[n]] = 1
    assert np.allclose(gram.toarray(), history.T @ history, atol=1e-5)
    wanted = np.linalg.solve(history.T @ history + 2 * np.eye(ITEMS), history.T @ target)
    found = dense(closed_form.ridge(gram, right, 2.0))
    assert np.allclose(found, wanted, atol=1e-4)


def test_small_regressions_take_the_neighbours_that_occur_most_often(monkeypatch):
    monkeypatch.setattr(local_ridge, "NEIGHBOURS", 2)
    monkeypatch.setattr(closed_form, "DENSE_ITEMS", 0)
    gram = sparse.csr_array(np.array([[9, 5, 4, 1], [5, 9, 0, 3], [4, 0, 9, 2], [1, 3, 2, 9]], dtype=np.float32))
    weights = closed_form.ease(gram, 1.0).toarray()
    assert [np.flatnonzero(weights[:, item]).tolist() for item in range(4)] == [[1, 2], [0, 3], [0, 3], [1, 2]]
    assert np.allclose(weights[[1, 2], 0], np.linalg.solve([[10, 0], [0, 10]], [5, 4]))


def regressions(number=40, seed=0):
    """Counts of pairs of items that are often equal, and PAD that occurs in nothing."""
    x = np.random.default_rng(seed).random((90, number)) < 0.15
    x[:, 0] = False
    return sparse.csr_array(x.T.astype(np.float32) @ x.astype(np.float32))


def test_of_items_that_occur_with_a_target_equally_often_those_with_smaller_numbers_are_its_neighbours(monkeypatch):
    monkeypatch.setattr(local_ridge, "NEIGHBOURS", 3)
    weights = local_ridge.local_ridge(gram := regressions(), gram, 1.0).toarray()
    counts, tied = gram.toarray(), 0
    for item in range(1, 40):
        relative = counts[item] / np.sqrt(gram.diagonal() + np.float32(1))
        relative[item] = 0
        order = np.argsort(-relative, kind="stable")
        tied += relative[order[2]] == relative[order[3]]
        assert set(np.flatnonzero(weights[:, item])) == set(order[:3])
    assert tied > 3


@pytest.mark.parametrize("itself", [True, False])
def test_some_targets_alone_have_the_weights_that_they_have_among_all(itself, monkeypatch):
    monkeypatch.setattr(local_ridge, "NEIGHBOURS", 5)
    gram = regressions()
    right = gram if itself else sparse.csr_array(gram * (np.random.default_rng(1).random((40, 40)) < 0.5))
    every = local_ridge.local_ridge(gram, right, 2.0).toarray()
    some = local_ridge.local_ridge(gram, right, 2.0, targets := np.array([0, 3, 17, 30])).toarray()
    assert np.allclose(some[:, targets], every[:, targets], atol=1e-6)
    assert not np.delete(some, targets, axis=1).any()


def test_threads_and_blocks_change_no_weight(monkeypatch):
    gram, threads = regressions(), torch.get_num_threads()
    alone = local_ridge.local_ridge(gram, gram, 2.0).toarray()
    monkeypatch.setattr(local_ridge, "_PLACES", 200)  # five targets at a time
    monkeypatch.setattr(local_ridge, "_PAIRS", 100)
    try:
        torch.set_num_threads(3)
        found = local_ridge.local_ridge(gram, gram, 2.0).toarray()
    finally:
        torch.set_num_threads(threads)
    assert np.allclose(found, alone, atol=1e-6)


def test_items_are_numbered_in_four_bytes(sequences, monkeypatch):
    """Eight would make the matrices of a million items half as large again."""
    monkeypatch.setattr(closed_form, "DENSE_ITEMS", 0)
    weights = fitted(examples_of(sequences), ITEMS, CHOICE)
    matrices = [
        *closed_form.transitions(examples_of(sequences), ITEMS, 0.8, 3),
        weights,
        closed_form.trimmed(weights, 2),
    ]
    assert {kind for matrix in matrices for kind in (matrix.indices.dtype, matrix.indptr.dtype)} == {np.dtype("int32")}


def model_of(sequences):
    config = {
        **tiny_teachers.FIELDS,
        "train_stage": None,
        "MAX_ITEM_LIST_LENGTH": 50,
        "folds": 4,
        "seed": 1,
        "temperature": None,
    }
    model = Linear(config, SimpleNamespace(num=lambda field: ITEMS))
    examples = examples_of(sequences)
    data = SimpleNamespace(fit=examples, train=examples)
    return model, data


def test_scores_of_a_history(sequences):
    """log(floor + raw / largest raw outside the history), raw = decayed history x (B + mix R)."""
    model, data = model_of(sequences)
    model.solve(data)
    choice = model.chosen
    weights = dense(fitted(data.fit, ITEMS, choice))
    history = [3, 5, 3]
    raw = sum(choice.decay**age * weights[item] for age, item in enumerate(reversed(history))).clip(min=0)
    raw[0] = 0
    top = max(raw[item] for item in range(ITEMS) if item not in history)
    found = model.scores(model.encode_histories(torch.tensor([[*history, 0, 0]]), torch.tensor([3]), None), None)[0]
    known = model.covered_items().numpy()
    assert np.allclose(found.numpy()[known], np.log(choice.floor + raw / top)[known], atol=1e-4)


def test_nobody_is_taught_by_a_model_that_has_seen_their_targets(sequences):
    """Another target changes no score of its own example, and none of its user's part of the users."""
    model, data = model_of(sequences)
    model.choice.copy_(torch.tensor([CHOICE.ease_penalty, 2.0, 0.7, 0.5, 0.1, 0.6, 0.0]))
    model.known[1:] = True

    def taught(data):
        scores = torch.zeros(len(data.train), ITEMS)
        for index, (items, kept, rest) in model.largest_scores(data, ITEMS - 1):
            scores[index] = rest[:, None].expand(-1, ITEMS).scatter(1, items.long(), kept.float()).nan_to_num(-99)
        return scores

    before = taught(data)
    fold = model._fold_of_examples(data.fit, data.train)
    for user in (1, 8, USERS):
        changed = [list(sequence) for sequence in sequences]
        changed[user - 1][-1] = changed[user - 1][-1] % (ITEMS - 1) + 1
        _, other = model_of(changed)
        after = taught(other)
        part = fold == fold[data.train.users == user][0]
        assert torch.equal(before[part], after[part])
        assert not torch.equal(before[~part], after[~part])


def test_every_example_is_scored_once_by_the_other_parts(sequences):
    model, data = model_of(sequences)
    model.solve(data)
    numbers = torch.cat([index for index, _ in model.largest_scores(data, 3)])
    assert numbers.sort().values.tolist() == list(range(len(data.train)))


@pytest.mark.parametrize("many", [False, True])
def test_settings_are_chosen_on_users_that_the_model_has_not_seen(many, monkeypatch):
    """Items after which always the same comes: found, and the next item ranks first; of many items too."""
    if many:
        for module, name in ((closed_form, "DENSE_ITEMS"), (local_ridge, "MANY_ITEMS"), (linear_choice, "MANY_ITEMS")):
            monkeypatch.setattr(module, name, 0)
    model, data = model_of([[a, a + 1, a + 2, a + 3] for a in range(1, 8)] * 6)
    model.solve(data)
    assert model.chosen.ndcg > 0.6
    assert model.chosen.temperature in linear_judge.TEMPERATURES and model.chosen.floor in linear_judge.FLOORS


def served(kept, temperature):
    """The soft targets [B, n_items] that a student sees of these stored scores."""
    items, scores, rest = kept
    every = torch.ones(ITEMS, dtype=torch.bool).index_fill_(0, torch.tensor([0]), False)
    cached = CachedScores("L", temperature, 0.1, items.numpy(), scores.numpy(), rest.numpy(), every)
    out = torch.empty(len(items), ITEMS - 1)
    cached.scores(np.arange(len(items)), [torch.arange(1, ITEMS)], [out])
    return (out / temperature).softmax(1)


@pytest.mark.parametrize("number", [1, 4, ITEMS - 1])
def test_dense_and_sparse_scores_leave_the_same_soft_targets(sequences, number):
    examples, scale = examples_of(sequences), linear_scores.Floor(0.1, 0.6)
    index = torch.arange(len(examples))
    weights = torch.randn(ITEMS, ITEMS) * (torch.rand(ITEMS, ITEMS) < 0.3)
    weights[0], weights[:, 0], weights[3] = 0, 0, 0
    raw = closed_form.histories(examples, index, ITEMS, 0.8, 50) @ weights.numpy()
    item_seq, known = examples.histories(index, 50)[0], torch.arange(ITEMS) > 0
    dense = linear_scores.of_dense(torch.from_numpy(raw), item_seq, known, number, scale)
    few = [torch.empty_like(part) for part in dense]
    for rows, part in linear_scores.of_sparse(sparse.csr_array(raw), item_seq, known, number, scale):
        for whole, block in zip(few, part, strict=True):
            whole[rows] = block
    exact = (linear_scores.relative_to_best(torch.from_numpy(raw), item_seq) + 0.1).log()
    stored = largest(exact.masked_fill(~known, torch.nan), number, 0.6)
    says = ~dense[2].isnan()
    assert says.any() and not says.all() and torch.equal(says, ~few[2].isnan())
    for found in (dense, few):
        part = [tensor[says] for tensor in found]
        wanted = served([tensor[says] for tensor in stored], 0.6)
        assert torch.allclose(served(part, 0.6), wanted, atol=2e-3)
        assert found[1][~says].isnan().all()


def test_dense_and_sparse_scores_are_judged_alike(sequences):
    examples = examples_of(sequences)
    first, second = torch.rand(2, ITEMS, ITEMS) * (torch.rand(2, ITEMS, ITEMS) < 0.5)
    first[:, 0] = second[:, 0] = 0
    found = []
    for kind, form in ((linear_judge.Judge, Tensor.numpy), (linear_judge.SparseJudge, sparse.csr_array)):
        judge = kind(examples, ITEMS, 50)
        raw = judge.mixed(judge.raw(form(first), 0.8), judge.raw(form(second), 0.8), 0.5)
        surprise = judge._surprise(raw)
        found.append([judge.spread(raw), surprise(0.1, 0.5), surprise(0.01, 2.0), *judge.calibrated(raw)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_many_items_are_ranked_alike(sequences):
    """Of many items most have no score, and a target without one is far from the first ten."""
    examples, number = examples_of(sequences), 60
    weights = np.zeros((number, number), dtype=np.float32)
    weights[1:ITEMS, 1:ITEMS] = np.random.default_rng(0).standard_normal((ITEMS - 1, ITEMS - 1))
    weights[:, 3] = 0
    forms = ((linear_judge.Judge, weights), (linear_judge.SparseJudge, sparse.csr_array(weights)))
    found = [judge.ndcg(judge.raw(form, 0.8)) for kind, form in forms for judge in [kind(examples, number, 50)]]
    assert 0 < found[0] < 1 and found[0] == pytest.approx(found[1], abs=1e-6)


def test_the_largest_weights_of_each_row_are_kept():
    weights = sparse.csr_array(np.array([[0, 3, -4, 1], [0, 0, 0, 0], [5, 0, 0, 0], [1, 2, 3, 4]], dtype=np.float32))
    assert closed_form.trimmed(weights, 2).toarray().tolist() == [
        [0, 3, -4, 0],
        [0, 0, 0, 0],
        [5, 0, 0, 0],
        [0, 0, 3, 4],
    ]


def test_settings_of_many_items_are_compared_on_those_that_co_occur_most(sequences, monkeypatch):
    """All regressions are solved for one setting alone, that of the result."""
    for module, name in ((closed_form, "DENSE_ITEMS"), (local_ridge, "MANY_ITEMS"), (linear_choice, "MANY_ITEMS")):
        monkeypatch.setattr(module, name, 0)
    monkeypatch.setattr(linear_choice, "_COMPARED", 1)
    solved, solve = [], closed_form.local_ridge
    monkeypatch.setattr(closed_form, "local_ridge", lambda *given: solved.append(given[2:]) or solve(*given))
    model, data = model_of([[a, a + 1, a + 2, a + 3] for a in range(1, 5)] * 6 + sequences[:2])
    choice = linear_choice.choose(data.fit, model._fold_of_examples(data.fit, data.fit), ITEMS, 50)
    whole = [penalty for penalty, targets in solved if targets is None]
    assert whole == [choice.ease_penalty, choice.transition_penalty][: 1 + (choice.mix > 0)]
    assert all(0 < len(targets) < ITEMS - 1 for _, targets in solved if targets is not None)


def test_one_user_is_refused():
    model, data = model_of([[1, 2, 3]])
    with pytest.raises(UserError, match="at least two users"):
        model.solve(data)


def test_stored_scores_keep_the_largest_and_the_probability_of_the_rest():
    scores = torch.randn(5, 20)
    scores[:, 0] = torch.nan
    scores[3] = torch.nan
    items, kept, rest = largest(scores, 6, temperature=0.5)
    assert (items.diff(dim=1) > 0).all() and items.dtype is torch.int32
    known = scores[[0, 1, 2, 4], 1:] / 0.5
    for n, example in enumerate((0, 1, 2, 4)):
        approximate = torch.full((20,), rest[example])
        approximate[items[example].long()] = kept[example].float()
        exact = known[n].softmax(0)[items[example].long() - 1]
        assert torch.allclose((approximate[1:] / 0.5).softmax(0)[items[example].long() - 1], exact, atol=1e-3)
    assert rest[3].isnan() and kept[3].isnan().all()


def test_fewer_scores_of_an_example_are_stored_where_there_are_very_many_examples(monkeypatch):
    assert stored_scores.width(256, 2_000_000) == 256 == stored_scores.width(256, 0)
    assert 6 * stored_scores.width(256, 10**7) * 10**7 <= stored_scores.LARGEST < 6 * 256 * 10**7
    assert stored_scores.width(256, 10**9) == 16 and stored_scores.width(8, 10**9) == 8


def test_a_log_line_says_when_fewer_scores_are_stored(sequences, tmp_path, monkeypatch, caplog):
    model, data = model_of(sequences)
    model.solve(data)
    data.fit = data.train
    teacher = SimpleNamespace(model=model, name="Linear", config={"stored_scores": 8})
    monkeypatch.setattr(stored_scores, "LARGEST", len(data.train) * 24)
    monkeypatch.setattr(stored_scores, "_FEWEST", 2)
    with caplog.at_level("INFO"), stored_scores.made(teacher, data, tmp_path, "kind", {}, False) as (arrays, _):
        assert arrays["top"].shape == arrays["scores"].shape == (len(data.train), 3)
    assert "3 scores of each training example are stored, not 8" in caplog.text
    assert stored_scores.identity(teacher, data, {})["stored"] == 3


def test_blocks_of_one_example_are_stored_as_larger_ones_are(sequences, tmp_path, monkeypatch):
    model, data = model_of(sequences)
    model.solve(data)
    data.fit = data.train
    teacher = SimpleNamespace(model=model, name="Linear", config={"stored_scores": 4})
    with stored_scores.made(teacher, data, tmp_path, "kind", {}, False) as (whole, _):
        blocks = list(model.largest_scores(data, 4))
    rows = [(index, kept, slice(k, k + 1)) for index, kept in blocks for k in range(len(index))]
    single = [(index[row], [part[row] for part in kept]) for index, kept, row in rows]
    monkeypatch.setattr(model, "largest_scores", lambda data, number: iter(single))
    with stored_scores.made(teacher, data, tmp_path, "kind", {}, False) as (arrays, _):
        for name, array in whole.items():
            np.testing.assert_array_equal(array, arrays[name])


def test_the_cache_gives_stored_scores_in_both_forms_of_candidates():
    scores = torch.randn(7, 15)
    items, kept, rest = largest(scores, 5, temperature=1.0)
    covered = torch.ones(15, dtype=torch.bool)
    covered[4] = False
    cached = CachedScores("L", 1.0, 0.1, items.numpy(), kept.numpy(), rest.numpy(), covered)
    shared, own = torch.tensor([3, 4, 9]), torch.randint(0, 15, (3, 6))
    out = torch.empty(3, 9)
    cached.scores(np.array([2, 6, 0]), [shared, own], out.split([3, 6], dim=1))
    for row, example in enumerate((2, 6, 0)):
        for column, item in enumerate([*shared.tolist(), *own[row].tolist()]):
            stored = {int(i): float(s) for i, s in zip(items[example], kept[example], strict=True)}
            wanted = float("nan") if item == 4 else stored.get(item, float(rest[example]))
            assert out[row, column].item() == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize("model", ["SASRec", "LightGCN", "DeepFM"])
def test_a_run_with_linear_and_text(model, settings):
    given = {"kd_teachers": ["Linear", "UniSRec"], "kd_linear_stored_scores": 8}
    result = run_recbole_prmkd(model, "tiny", config_dict=settings(kd="prmkd", **given))["result"]
    teacher = result["teachers"]["Linear"]
    assert teacher["unknown_items"] < result["dataset"]["items"] and teacher["test_unseen"]["ndcg@10"] > 0
    assert 0 < result["distillation"][0]["weight_Linear"] < 1
    again = run_recbole_prmkd(model, "tiny", config_dict=settings(kd="prmkd", **given))["result"]
    assert again["steps"]["teacher Linear"]["reused"] and again["steps"]["knowledge Linear"]["reused"]
    assert again["student"]["test"] == result["student"]["test"]

"""The teachers' top items are computed once, and anew whenever anything that they depend on differs."""

import logging

import numpy as np
import pytest
import torch

from recbole_prmkd.distil.weighting import fuse
from recbole_prmkd.teacher_cache import top_items
from recbole_prmkd.teacher_cache.scores import CachedVectors, TeacherCache, Trust
from recbole_prmkd.teacher_cache.top_items import load_or_compute

EXAMPLES, ITEMS, WIDTH, NUMBER = 9, 12, 4, 6
MASKED = {"history": True, "examples": "digest"}


def teacher(seed):
    """Random vectors; the teacher does not cover two of the items."""
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(ITEMS, WIDTH))
    items[[0, 3, 5]] = 0
    return CachedVectors(
        f"T{seed}", 0.07, 0.5, torch.from_numpy(items).half(), rng.normal(size=(EXAMPLES, WIDTH)).astype(np.float16)
    )


def cache(seeds=(1, 2), order=1):
    canonical = torch.cat([torch.zeros(1), order * torch.arange(1, ITEMS) % ITEMS]).long()
    return TeacherCache([teacher(seed) for seed in seeds], canonical, torch.device("cpu"))


def excluded(examples):
    """Item n + 1 of example n, and items 1 and 2 of all."""
    position = torch.arange(len(examples))
    return position.repeat(3), torch.cat([examples + 1, torch.full_like(examples, 1), torch.full_like(examples, 2)])


@pytest.fixture
def load(tmp_path, caplog):
    """A function: the top items, and whether they were computed."""

    def make(given=None, number=NUMBER, identity=MASKED, examples=EXAMPLES, **more):
        calls = []

        def watched(index):
            calls.append(index)
            return excluded(index)

        found = load_or_compute(given or cache(), examples, number, watched, identity, tmp_path, **more)
        return found, bool(calls)

    return make


def test_each_teachers_best_items_without_the_excluded(load):
    found, computed = load()
    assert computed and isinstance(found.items, np.memmap) and isinstance(found.scores, np.memmap)
    scores = cache().scores(torch.arange(EXAMPLES), torch.arange(ITEMS)).numpy()
    for example in range(EXAMPLES):
        for t in range(2):
            allowed = [i for i in range(3, ITEMS) if i != example + 1 and not np.isnan(scores[t, example, i])]
            best = sorted(allowed, key=lambda item: -scores[t, example, item])[: NUMBER // 2]
            assert found.items[example, t * NUMBER // 2 :][: NUMBER // 2].tolist() == best
        np.testing.assert_allclose(found.scores[:, example], scores[:, example, found.items[example]], rtol=1e-6)


def test_a_products_best_items_are_those_of_the_target_that_a_student_is_taught(load):
    """By `fuse`, over all items; items 3 and 5 are covered by the second teacher alone, and 4 by none."""
    exponents = [1.2, 0.3]
    both = [teacher(1), teacher(2)]
    for one, its in ((both[0], 4), (both[1], 4)):
        one.items[its] = 0
    both[1].items[[3, 5]] = torch.tensor([[1, 0, 2, 1], [0, -1, 1, 1]]).half()
    given = TeacherCache(both, cache().canonical, torch.device("cpu"), Trust(exponents, 1.0, sum(exponents)))
    found, _ = load(given=given, product=True)
    scores = given.scores(torch.arange(EXAMPLES), torch.arange(ITEMS))  # [T, N, n_items]
    mask = torch.ones(EXAMPLES, ITEMS, dtype=torch.bool)
    position, item = excluded(torch.arange(EXAMPLES))
    mask[position, item], mask[:, 0] = False, False
    covered = ~scores.isnan() & mask
    share = covered.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    soft = (scores / 0.07).masked_fill(~covered, -torch.inf).softmax(-1) * share  # as `Objective.fuse`
    prior = torch.tensor(exponents)[:, None].expand(-1, EXAMPLES)
    target, _ = fuse(soft, prior, torch.ones_like(soft), 0.5, covered, mask, sum(exponents))
    assert found.items.shape == (EXAMPLES, NUMBER)
    for example in range(EXAMPLES):
        best = target[example].argsort(descending=True)[: min(NUMBER, int((target[example] > 0).sum()))]
        assert found.items[example][: len(best)].tolist() == best.tolist() and 4 not in found.items[example]
    assert load(given=given)[1] and not load(given=given, product=True)[1]


def test_more_than_the_teachers_cover_is_padding(load):
    found, _ = load(number=100)
    assert found.items.shape == (EXAMPLES, 2 * (ITEMS - 1)) and (found.items[:, ITEMS - 2] == 0).all()


def test_the_second_call_reads_the_same_bits(load):
    first, second = load(), load()
    assert (first[1], second[1]) == (True, False)
    assert np.array_equal(first[0].items, second[0].items)
    assert first[0].scores.tobytes() == second[0].scores.tobytes()
    batch = torch.tensor([7, 2])
    items, scores = second[0].of(batch)
    assert items.dtype == torch.int64 and items.tolist() == first[0].items[[7, 2]].tolist()
    torch.testing.assert_close(scores, cache().scores(batch, items), equal_nan=True)


@pytest.mark.parametrize(
    "changed",
    [
        {"given": cache(seeds=(2, 1))},
        {"given": cache(seeds=(1,))},
        {"given": cache(seeds=(1, 3))},
        {"given": cache(order=5)},
        {"number": NUMBER - 2},
        {"examples": EXAMPLES - 1},
        {"identity": {**MASKED, "history": False}},
        {"rebuild": True},
    ],
    ids=["order", "fewer", "another", "numbering", "number", "examples", "masks", "rebuild"],
)
def test_any_other_input_is_computed_anew(changed, load):
    load()
    assert load(**changed)[1] and not load()[1]


def test_other_code_computes_anew_and_says_why(load, monkeypatch, caplog):
    load()
    monkeypatch.setattr(top_items, "VERSION", "2.0")
    with caplog.at_level(logging.INFO):
        assert load()[1]
    assert 'differs in code ("1.0", now "2.0")' in caplog.text


def test_of_two_processes_at_once_the_first_ones_folder_stays(load, tmp_path, monkeypatch):
    """Its arrays may be mapped already."""
    first, _ = load()
    with monkeypatch.context() as patch:
        patch.setattr(top_items.store, "find", lambda *_: None)  # as before the first one had finished
        second, computed = load()
    assert computed and second.items.filename == first.items.filename
    assert len(list(tmp_path.iterdir())) == 1 and np.array_equal(first.items, second.items)

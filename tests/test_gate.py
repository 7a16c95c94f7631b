"""Weights that held-out examples teach: a gate for each candidate, one weight for each kind of example."""

import itertools
import logging

import pytest
import torch
from torch import Tensor

from recbole_prmkd import run_recbole_prmkd
from recbole_prmkd.data.examples import Examples
from recbole_prmkd.distil.weighting import fuse
from recbole_prmkd.teacher_cache.gate import GRID, About, Gate, features, profile, relative
from recbole_prmkd.teacher_cache.scores import CachedVectors, Groups, TeacherCache, Trust
from recbole_prmkd.teacher_cache.top_items import load_or_compute
from recbole_prmkd.teachers import gate_fit
from recbole_prmkd.teachers.holdout import Ranked
from recbole_prmkd.teachers.trust import by_kind, exponents

ITEMS, EXAMPLES = 60, 600


def random_scores(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def holdout(lengths: Tensor, targets: Tensor) -> Examples:
    number = len(lengths)
    return Examples(torch.arange(number), targets, torch.zeros(number, dtype=torch.int64), lengths, targets)


def ranked(scores: Tensor, targets: Tensor) -> Ranked:
    """A teacher with these scores [H, ITEMS] on the holdout, item 0 being padding."""
    scores = scores.clone()
    scores[:, 0] = -torch.inf
    logs = scores.log_softmax(1)
    own = logs.gather(1, targets[:, None])
    others = logs.scatter(1, targets[:, None], -torch.inf)[:, 1:]
    return Ranked(0.0, own.squeeze(1), torch.cat([own, others], 1).half(), profile(scores), torch.arange(1, ITEMS))


def two_experts() -> tuple[list[Ranked], Examples]:
    """The first teacher knows the targets of long histories, the second those of short ones; both are sure always."""
    targets = torch.randint(1, ITEMS, (EXAMPLES,), generator=torch.Generator().manual_seed(1))
    lengths = torch.arange(EXAMPLES) % 2 * 20 + 2
    teachers = []
    for knows_long in (True, False):
        scores = random_scores(EXAMPLES, ITEMS, seed=2 + knows_long)
        known = (lengths > 10) == knows_long
        wrong = torch.randint(1, ITEMS, (EXAMPLES,), generator=torch.Generator().manual_seed(4 + knows_long))
        scores.scatter_(1, torch.where(known, targets, wrong)[:, None], 6.0)
        teachers.append(ranked(scores, targets))
    return teachers, holdout(lengths, targets)


def test_a_profile_by_hand() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -torch.inf], [-torch.inf] * 4])
    probability = scores[0, :3].softmax(0)
    total, number, entropy, *grid = profile(scores)[0].tolist()
    assert total == pytest.approx(scores[0].exp().sum().log()) and number == pytest.approx(torch.tensor(3.0).log())
    assert entropy == pytest.approx(-(probability * probability.log()).sum())
    expected = [float((3 * probability[min(rank, 3) - 1]).log()) for rank in GRID]
    assert grid == pytest.approx(expected, rel=1e-5)
    assert bool((profile(scores)[1] == 0).all())


def test_features_by_hand() -> None:
    scores = random_scores(1, 3, 100)
    made = profile(scores)
    logs = relative(scores, made)
    torch.testing.assert_close(logs.exp().sum(-1), torch.full((1, 3), 100.0))
    logs[0, 0, 0] = torch.nan
    values = features(logs, made, torch.arange(300).view(3, 100), torch.tensor([1, 5, 500]))
    assert values.shape == (3, 100, 7) and bool(values.isfinite().all())
    log, below_first, rank, entropy, covered, popular, length = values.unbind(-1)
    assert torch.equal(log[1:], logs[0, 1:]) and float(log[0, 0]) == 0 == float(covered[0, 0])
    assert bool((covered[1:] == 1).all()) and bool((below_first[1:] <= 0).all())
    order = scores[0, 1].argsort(descending=True)
    for power, place in enumerate(GRID):
        assert float(rank[1, order[place - 1]]) == pytest.approx(power, abs=1e-4)
    ordered = rank[1, order]
    assert bool((ordered[1:] >= ordered[:-1] - 1e-5).all()) and float(ordered.max()) <= len(GRID)
    torch.testing.assert_close(popular, torch.arange(300).view(3, 100).float().log1p())
    assert length[:, 0].tolist() == pytest.approx(torch.tensor([1.0, 5.0, 50.0]).log1p().tolist())
    assert bool((entropy == made[0, :, 2:3]).all())


@pytest.mark.parametrize("product", [True, False])
def test_a_gate_that_has_learnt_nothing_is_the_base(product: bool) -> None:
    """And where a teacher does not cover an item, the others count for it too."""
    scores, base = random_scores(3, 4, 20), torch.tensor([0.5, 0.4, 0.2])
    profiles = profile(scores)
    logs = relative(scores, profiles)
    logs[0, :, :5] = torch.nan
    gate = Gate(base, product).eval()
    found = gate.weighed(logs, profiles, torch.ones(4, 20), torch.ones(4))
    torch.testing.assert_close(found[:, :, 5:], base[:, None, None].expand(-1, 4, 15))
    torch.testing.assert_close(found[:, :, :5].sum(0), torch.full((4, 5), 1.1))
    torch.testing.assert_close(found[1, :, :5] / found[2, :, :5], torch.full((4, 5), 2.0))
    covered, mask = logs.isfinite(), torch.ones(4, 20, dtype=torch.bool)
    soft = logs.nan_to_num(nan=-torch.inf).exp()
    target, _ = fuse(soft, found, covered, 0.0, covered, mask, found.sum(0) if product else None)
    torch.testing.assert_close(gate.fused(logs, found).softmax(1), target, rtol=1e-4, atol=1e-7)
    if product:
        plain, _ = fuse(soft, base[:, None].expand(-1, 4), covered, 0.0, covered, mask, 1.1)
        torch.testing.assert_close(target, plain, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("product", [True, False])
def test_it_learns_who_is_right_when(product: bool, caplog) -> None:
    """A product with two numbers cannot know it; the gate's own report says what it gains on examples not seen."""
    teachers, examples = two_experts()
    held = gate_fit.held_out(teachers, examples, torch.ones(ITEMS))
    base = exponents(teachers) if product else [0.5, 0.5]
    with caplog.at_level(logging.INFO):
        gate = gate_fit.fit(held, base, product, ["Long", "Short"], say=True)
    plain = held.ndcg(Gate(torch.tensor(base), product)) / EXAMPLES
    assert held.ndcg(gate) / EXAMPLES > plain + 0.1
    said = next(record.message for record in caplog.records if "The gate has" in record.message)
    words = said.replace(",", "").replace(".;", "").split()
    assert float(words[words.index("NDCG@10") + 1]) > plain + 0.1 and "alone" in said
    again = gate_fit.fit(held, base, product, ["Long", "Short"], say=False)
    assert all(torch.equal(*pair) for pair in zip(gate.state_dict().values(), again.state_dict().values(), strict=True))


def test_with_few_examples_it_learns_nothing_and_says_so(caplog) -> None:
    teachers, examples = two_experts()
    few = torch.arange(60)
    some = [
        Ranked(0.0, each.log_likelihood[few], each.log_probability[few], each.profile[few], each.items)
        for each in teachers
    ]
    held = gate_fit.held_out(some, holdout(examples.lengths[few], examples.targets[few]), torch.ones(ITEMS))
    gate = gate_fit.fit(held, [0.7, 0.3], True, ["Long", "Short"], say=True)
    assert "learns nothing" in caplog.text and "kd_teacher_check=weigh" in caplog.text
    logits = held.logits(gate)
    torch.testing.assert_close(logits, held.logits(Gate(torch.tensor([0.7, 0.3]), True)))


def test_held_out_candidates_are_the_teachers_first_and_the_target_once() -> None:
    teachers, examples = two_experts()
    held = gate_fit.held_out(teachers, examples, torch.arange(ITEMS).float())
    assert held.whole == EXAMPLES and 0 < len(held.counts) <= EXAMPLES and bool(held.counts[:, 0].all())
    for row in range(0, len(held.counts), 50):
        logs = held.logs[:, row][:, held.counts[row]].T.tolist()
        assert len({tuple(pair) for pair in logs}) == len(logs) <= 40


def test_top_items_are_those_that_the_gate_puts_first(tmp_path) -> None:
    generator = torch.Generator().manual_seed(9)
    unit = [torch.nn.functional.normalize(torch.randn(30, 6, generator=generator), dim=1) for _ in range(4)]
    cached = [CachedVectors(f"T{k}", 0.3, 0.1, unit[k], unit[2 + k].numpy()) for k in range(2)]
    gate = Gate(torch.tensor([0.8, 0.4]), True).eval()
    for net in gate.nets:
        torch.nn.init.normal_(net[-1].weight, std=0.5, generator=generator)
    cache = TeacherCache(cached, torch.arange(30), torch.device("cpu"), Trust([0.8, 0.4], 1.0, 1.2, gate=gate))
    about = About(torch.arange(30), torch.arange(30))
    nothing = lambda examples: (examples[:0], examples[:0])  # noqa: E731
    found = load_or_compute(cache, 30, 20, nothing, {}, tmp_path, product=True, about=about)
    every = torch.arange(1, 30)
    scores = cache.scores(torch.arange(30), torch.arange(30)) / 0.3
    scores[:, :, 0] = -torch.inf
    profiles = profile(scores)
    torch.testing.assert_close(found.profiles_of(torch.arange(30)), profiles)
    logs = relative(scores[:, :, every], profiles)
    fused = gate.fused(logs, gate.weighed(logs, profiles, every.expand(30, -1), about.lengths))
    assert torch.equal(found.of(torch.arange(30))[0], every[fused.topk(20, dim=1).indices])
    other = TeacherCache(cached, torch.arange(30), torch.device("cpu"), Trust([0.8, 0.4], 1.0, 1.2))
    assert load_or_compute(other, 30, 20, nothing, {}, tmp_path, product=True).profiles is None


@pytest.mark.parametrize("fusion", ["product", "sum"])
def test_each_kind_of_example_has_its_own_weights(fusion: str) -> None:
    teachers, examples = two_experts()
    base = [0.5, 0.5]
    groups = by_kind(teachers, examples, torch.ones(ITEMS), base, fusion)
    assert groups.priors.shape == (9, 2)
    short, long = (groups.priors[groups.kind(torch.tensor([n]), torch.tensor([1.0]))][0] for n in (2, 22))
    assert long[0] > 2 * long[1] and short[1] > 2 * short[0]
    unseen = groups.priors[groups.kind(torch.tensor([2]), torch.tensor([1000.0]))][0]
    assert unseen.tolist() == pytest.approx(base)  # a kind of which there is no example


def test_kinds_are_told_apart_by_length_and_popularity() -> None:
    groups = Groups(torch.tensor([2.0, 5.0]), torch.tensor([10.0, 20.0]), torch.zeros(9, 1))
    pairs = itertools.product((2, 5, 6), (10, 20, 21))
    kinds = [int(groups.kind(torch.tensor([length]), torch.tensor([popular]))) for length, popular in pairs]
    assert kinds == list(range(9))
    about = About(torch.tensor([6, 1]), torch.tensor([0, 15]))
    assert groups.of(about, torch.tensor([0, 1]), torch.tensor([1, 1])).tolist() == [7, 1]


@pytest.mark.parametrize("confidence", ["gate", "calibrated"])
@pytest.mark.parametrize("more", [{"kd_fusion": "product", "kd_candidates": "teacher_top"}, {}])
def test_a_run_learns_its_weights(confidence: str, more: dict, settings, monkeypatch) -> None:
    """On examples of training alone; the log and the weights of the epoch show it."""
    monkeypatch.setattr(gate_fit, "FEW", 5)
    given = {"kd_teachers": ["Linear", "Content"], "kd_confidence": confidence, "kd_teacher_check": "weigh", **more}
    found = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="mean", **given))["result"]
    epoch = found["distillation"][-1]
    assert epoch["kd_loss"] > 0
    assert epoch["weight_Linear"] + epoch["weight_Content"] == pytest.approx(1, abs=1e-4)

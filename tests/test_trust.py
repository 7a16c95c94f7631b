"""What teachers deserve by their ranks on the holdout: shares, exponents, and what the check does with them."""

import logging

import pytest
import torch

from recbole_prmkd import preparation, run_recbole_prmkd
from recbole_prmkd.distil.weighting import by_prior, fuse
from recbole_prmkd.recbole_host.keys import checked
from recbole_prmkd.teacher_cache.scores import Trust
from recbole_prmkd.teachers import TEACHERS, trust
from recbole_prmkd.teachers.holdout import Ranked
from recbole_prmkd.teachers.trust import exponents, find, mixture, report, together, trusted

EXAMPLES = 400


def ranked(*probabilities, ndcg=0.5):
    """A teacher that gives the targets these probabilities, in turns, and the rest to one other item."""
    values = torch.tensor(probabilities).repeat(EXAMPLES)[:EXAMPLES]
    return Ranked(ndcg, values.log(), torch.stack([values, 1 - values], 1).log().half())


def kept(names, ranks, least, check, fusion="sum"):
    """Each teacher's factor."""
    teaching, found = trusted(find(names, ranks, least, fusion), check)
    return dict(zip(teaching, found.priors, strict=True))


GUESS = ranked(0.01, ndcg=0.05)


def test_shares_make_the_targets_most_likely():
    first, second = ranked(0.5, 0.1, 0.1), ranked(0.1, 0.4, 0.1)
    logs = torch.stack([first.log_likelihood, second.log_likelihood])
    shares = mixture(logs)
    assert shares.sum() == pytest.approx(1)

    def likelihood(share):
        return float(torch.logsumexp(logs + torch.tensor([share, 1 - share]).log()[:, None], 0).mean())

    best = max(range(1, 1000), key=lambda share: likelihood(share / 1000)) / 1000
    assert float(shares[0]) == pytest.approx(best, abs=2e-3)


def test_a_teacher_that_adds_nothing_gets_no_share():
    names, good, same = ["Good", "Noise"], ranked(0.3, 0.2), ranked(0.01, ndcg=0.01)
    factors = kept(names, {"Good": good, "Noise": same}, GUESS, "weigh")
    assert factors["Good"] == pytest.approx(1, abs=1e-3) and factors["Noise"] == pytest.approx(0, abs=1e-3)
    assert kept(names, {"Good": good, "Noise": same}, GUESS, "warn") == {"Good": 1, "Noise": 1}
    assert kept(names, {"Good": good, "Noise": same}, GUESS, "drop") == {"Good": 1}


def test_one_teacher_always_stays():
    assert kept(["Noise"], {"Noise": ranked(0.001)}, GUESS, "drop") == {"Noise": 1}
    assert kept(["Noise"], {"Noise": ranked(0.001)}, GUESS, "weigh") == {"Noise": pytest.approx(0, abs=1e-3)}


def test_the_report_names_what_is_of_no_use(caplog):
    caplog.set_level(logging.INFO)
    names = ["Good", "Noise", "Echo"]
    good = ranked(0.3, 0.2)
    all_ranked = {"Good": good, "Noise": ranked(0.001, ndcg=0.01), "Echo": ranked(0.02, ndcg=0.2)}
    report(find(names, all_ranked, GUESS, "sum"), all_ranked, GUESS, "warn", "sum")
    assert "Noise ranks the holdout worse than popularity" in caplog.text
    assert "Echo adds nothing" in caplog.text and "Good adds" not in caplog.text
    assert f"Teachers on {EXAMPLES} held-out" in caplog.text


def test_without_a_holdout_nothing_is_weighed(caplog):
    caplog.set_level(logging.INFO)
    empty = Ranked(0.0, torch.zeros(0))
    both = {"A": empty, "B": empty}
    report(find(["A", "B"], both, empty, "sum"), both, empty, "weigh", "sum")
    assert "no holdout" in caplog.text
    assert kept(["A", "B"], {"A": empty, "B": empty}, empty, "weigh") == {"A": 1, "B": 1}


class Signals:
    """Teachers that see a part each of what decides the next of 20 items."""

    def __init__(self):
        random = torch.Generator().manual_seed(3)
        self.first, self.second = (torch.randn(3000, 20, generator=random) for _ in range(2))
        truth = (1.5 * self.first + 0.5 * self.second).softmax(1)
        self.target = torch.multinomial(truth, 1, generator=random)

    def of(self, scores):
        logs = scores.log_softmax(1)
        own = logs.gather(1, self.target)
        others = logs.scatter(1, self.target, -torch.inf)
        return Ranked(0.1, own.squeeze(1), torch.cat([own, others], 1).half())


def test_exponents_are_those_that_made_the_targets():
    signals = Signals()
    noise = torch.randn(3000, 20, generator=torch.Generator().manual_seed(4))
    found = exponents([signals.of(signals.first), signals.of(signals.second), signals.of(noise)])
    assert found == pytest.approx([1.5, 0.5, 0.0], abs=0.08)
    # A teacher who says the opposite of the truth is left out; its exponent cannot be below 0.
    assert exponents([signals.of(signals.first), signals.of(-signals.second)])[1] == 0


def test_together_they_rank_better_than_the_best_alone():
    signals = Signals()
    both = [signals.of(signals.first), signals.of(signals.second)]
    product = together(both, Trust([1.5, 0.5], 1.0, 2.0), "product")
    alone = together(both[:1], Trust([1.0]), "product")
    assert product > alone + 0.01
    assert together(both[:1], Trust([1.0]), "sum") == pytest.approx(alone)
    order = (1.5 * signals.first + 0.5 * signals.second).argsort(1, descending=True)
    rank = (order == signals.target).float().argmax(1)
    wanted = torch.where(rank < 10, 1 / torch.log2(rank + 2.0), 0).mean()
    assert product == pytest.approx(float(wanted), abs=2e-3)  # half precision ties a few scores


def test_items_that_one_teacher_alone_covers_count_by_the_others():
    signals = Signals()
    half = signals.of(signals.second)
    half.log_probability[:, 1:11] = -torch.inf
    first = signals.of(signals.first)
    found = exponents([first, half])
    assert found[0] == pytest.approx(1.5, abs=0.1) and 0 < found[1] < 1
    fused = together([first, half], Trust(found, 1.0, sum(found)), "product")
    assert fused > together([first], Trust([1.0]), "product") + 0.003


def test_the_student_sees_the_same_product():
    """`fuse` with the priors of the check is the product of the powers."""
    soft = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(1)).softmax(-1)
    powers = torch.tensor([0.6, 0.3])
    everything = torch.ones(2, 5, 7)
    confidence = by_prior(torch.full((2, 5), 0.5), powers)
    target, _ = fuse(soft, confidence, everything, 0.5, everything, everything[0], float(powers.sum()))
    wanted = (soft ** powers[:, None, None]).prod(0)
    assert torch.allclose(target, wanted / wanted.sum(-1, keepdim=True), atol=1e-6)


def test_a_product_leaves_out_what_a_teacher_does_not_cover():
    soft = torch.tensor([[[0.5, 0.3, 0.2]], [[0.9, 0.1, 0.0]]])
    covered = torch.tensor([[[True, True, True]], [[True, True, False]]])
    mask = torch.tensor([[True, False, True]])
    confidence = torch.tensor([[0.5], [0.5]])
    target, weights = fuse(soft, confidence, covered, 1.0, covered, mask, 2.0)
    wanted = torch.tensor([[0.5 * 0.9, 0.0, 0.2**2]])  # the last by the first teacher alone
    assert torch.allclose(target, wanted / wanted.sum(), atol=1e-6)
    assert torch.allclose(weights[:, 0].sum(0), torch.tensor([1.0, 0.0, 1.0]))
    nothing, _ = fuse(soft, confidence, covered, 1.0, torch.zeros_like(covered), mask, 2.0)
    assert (nothing == 0).all()


def test_prior_times_confidence():
    confidence = torch.tensor([[0.5, 0.0, 0.0], [0.5, 1.0, 0.0]])  # the third example is covered by nobody
    found = by_prior(confidence, torch.tensor([1.5, 0.5]))
    assert torch.allclose(found, torch.tensor([[0.75, 0.0, 0.0], [0.25, 1.0, 0.0]]))
    assert torch.equal(by_prior(confidence, torch.tensor([1.0, 0.0])), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))


def test_a_useless_teacher_gets_little_weight_in_a_run(settings):
    """Two epochs of a tiny UniSRec beside Linear: what the log and the weights of a run say."""
    given = {"kd_teachers": ["Linear", "UniSRec"], "kd_teacher_check": "weigh", "kd_confidence": "uniform"}
    run = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="mean", **given))["result"]
    weights = [run["distillation"][0][f"weight_{name}"] for name in ("Linear", "UniSRec")]
    assert sum(weights) == pytest.approx(1, abs=1e-4) and abs(weights[0] - 0.5) > 1e-3


def test_dropped_teachers_are_not_in_the_result(settings, monkeypatch):
    monkeypatch.setattr(trust, "shares_of", lambda names, *_: [0.9 if name == "Linear" else 0.0 for name in names])
    given = {"kd_teachers": ["Linear", "UniSRec"], "kd_teacher_check": "drop"}
    run = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="mean", **given))["result"]
    assert list(run["teachers"]) == ["Linear"]


@pytest.mark.parametrize("fusion", ["sum", "product"])
def test_teachers_that_rank_no_better_than_popularity_do_not_teach(fusion):
    signals = Signals()
    noise = signals.of(torch.randn(3000, 20, generator=torch.Generator().manual_seed(4)))
    useful = signals.of(signals.second)
    _, trust_of_noise = trusted(find(["Noise"], {"Noise": noise}, useful, fusion), "weigh")
    assert trust_of_noise.strength == 0
    both = {"Noise": noise, "Good": signals.of(signals.first)}
    _, trust_of_both = trusted(find(list(both), both, useful, fusion), "weigh")
    assert trust_of_both.strength > 0.5


def test_teachers_that_know_nothing_teach_little(settings):
    """Shuffled teachers, a control: the check sees them as they teach, and their KD loss weighs little or nothing."""
    given = {"kd_teachers": ["Linear"], "kd_teacher_check": "weigh", "epochs": 1}
    weight = {}
    for shuffled in (False, True):
        own = settings(kd="mean", kd_shuffled_teachers=shuffled, **given)
        kd = run_recbole_prmkd("SASRec", "tiny", config_dict=own)["result"]["student"]["kd"]
        weight[shuffled] = kd["weight"] if kd else 0
    assert weight[True] < 0.5 < 2.5 < weight[False] <= 5


def test_without_anything_to_teach_the_student_trains_alone(settings, monkeypatch):
    """As it is, its dropout too."""
    monkeypatch.setattr(preparation, "decided", lambda _, ranked, *__, **___: (list(ranked), Trust([1.0], 0.0)))
    given = {"kd_teachers": ["Linear"], "kd_dropout": 0.0, "epochs": 1}
    alone = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="mean", **given))["result"]
    assert alone["student"]["kd"] is None and alone["distillation"] == []
    own = settings(kd="none", kd_protocol="ranking", kd_shared_prefixes=True, epochs=1)
    plain = run_recbole_prmkd("SASRec", "tiny", config_dict=own)["result"]
    assert plain["student"]["train_losses"] == alone["student"]["train_losses"]


def test_a_run_multiplies_its_teachers(settings, tmp_path):
    given = {"kd_teachers": ["Linear", "Content"], "kd_teacher_check": "weigh", "kd_confidence": "uniform"}
    run = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="mean", kd_fusion="product", **given))["result"]
    log = next((tmp_path / "out" / "log").rglob("*.log")).read_text()
    assert "target = p_Linear ** (" in log and "Their product" in log
    weights = [run["distillation"][0][f"weight_{name}"] for name in ("Linear", "Content")]
    assert sum(weights) == pytest.approx(1, abs=1e-4)


def test_yaml_reads_off_as_false():
    assert checked({"kd_teacher_check": False}, TEACHERS)["kd_teacher_check"] == "off"


def test_exponents_are_those_of_the_first_places(monkeypatch):
    """A teacher that is right about the first places alone keeps its exponent beside one that knows the rest."""
    random = torch.Generator().manual_seed(5)
    head = torch.zeros(4000, 500)
    first = torch.rand(4000, 500, generator=random).topk(10, dim=1).indices
    head.scatter_(1, first, 3 * torch.rand(4000, 10, generator=random) + 2)
    rest = torch.randn(4000, 500, generator=random)
    truth = torch.where(head > 0, head, rest)
    signals = Signals.__new__(Signals)
    signals.target = torch.multinomial(truth.softmax(1), 1, generator=random)
    # The head teacher gives all other items so little that whoever weighs all targets must mistrust it.
    teachers = [signals.of(torch.where(head > 0, head, -6.0)), signals.of(rest)]
    of_first = exponents(teachers)
    monkeypatch.setattr(trust, "_FIRST", 501)
    of_all = exponents(teachers)
    ranks = [together(teachers, Trust(powers, 1.0, sum(powers)), "product") for powers in (of_first, of_all)]
    assert ranks[0] > ranks[1] + 0.004

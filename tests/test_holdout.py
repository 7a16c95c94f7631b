"""What the teachers are worth on the holdout: ranks, likelihoods, shares, and what the check does with them."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch

from recbole_prmkd import run_recbole_prmkd
from recbole_prmkd.distil.weighting import by_prior
from recbole_prmkd.recbole_host.keys import checked
from recbole_prmkd.teachers import TEACHERS, holdout
from recbole_prmkd.teachers.holdout import Ranked, kept, mixture, report

EXAMPLES = 400


def ranked(*probabilities, ndcg=0.5):
    """A teacher that gives the targets these probabilities, in turns."""
    values = torch.tensor(probabilities).repeat(EXAMPLES)[:EXAMPLES]
    return Ranked(ndcg, values.log())


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
    report(names, all_ranked, GUESS, "warn")
    assert "Noise ranks the holdout worse than popularity" in caplog.text
    assert "Echo adds nothing" in caplog.text and "Good adds" not in caplog.text
    assert f"Teachers on {EXAMPLES} held-out" in caplog.text


def test_without_a_holdout_nothing_is_weighed(caplog):
    caplog.set_level(logging.INFO)
    empty = Ranked(0.0, torch.zeros(0))
    report(["A", "B"], {"A": empty, "B": empty}, empty, "weigh")
    assert "no holdout" in caplog.text
    assert kept(["A", "B"], {"A": empty, "B": empty}, empty, "weigh") == {"A": 1, "B": 1}


def test_prior_times_confidence():
    confidence = torch.tensor([[0.5, 0.0, 0.0], [0.5, 1.0, 0.0]])  # the third example is covered by nobody
    found = by_prior(confidence, torch.tensor([1.5, 0.5]))
    assert torch.allclose(found, torch.tensor([[0.75, 0.0, 0.0], [0.25, 1.0, 0.0]]))
    assert torch.equal(by_prior(confidence, torch.tensor([1.0, 0.0])), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))


class Fixed:
    """Scores of four items, whatever the history: item 3 first, then 2, then 1."""

    temperature = 2.0

    def encode_items(self):
        return torch.zeros(4, 1)

    def covered_items(self):
        return torch.tensor([False, True, True, True])

    def encode_batch(self, batch, items):
        return torch.tensor([[9.0, 1.0, 2.0, 4.0]]).expand(len(batch), -1)

    def scores(self, histories, items):
        return histories


class Batch(list):
    def to(self, device):
        return self


def test_ranks_and_likelihoods_leave_the_history_out(monkeypatch):
    from recbole_prmkd.data.examples import Examples

    items = torch.tensor([3, 1, 2, 2])
    examples = Examples(torch.ones(2).long(), torch.tensor([2, 1]), torch.tensor([0, 2]), torch.tensor([1, 3]), items)
    data = SimpleNamespace(holdout=examples, dataset=lambda config, part: SimpleNamespace(__getitem__=None))
    data.dataset = lambda config, part: type("D", (), {"__getitem__": lambda self, index: Batch(index)})()
    found = holdout.rank(Fixed(), {"device": "cpu"}, data)
    # Example 0: history 3, so item 2 is first of 1 and 2. Example 1: history 2, so item 1 is second after 3.
    assert found.ndcg == pytest.approx((1 + 1 / math.log2(3)) / 2)
    wanted = [math.log(1 / (1 + math.exp(-0.5))), math.log(1 / (1 + math.exp(1.5)))]
    assert found.log_likelihood.tolist() == pytest.approx(wanted, abs=1e-5)


def test_a_useless_teacher_gets_little_weight_in_a_run(settings):
    """Two epochs of a tiny UniSRec beside Linear: what the log and the weights of a run say."""
    given = {"kd_teachers": ["Linear", "UniSRec"], "kd_teacher_check": "weigh", "kd_confidence": "uniform"}
    run = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="mean", **given))["result"]
    weights = [run["distillation"][0][f"weight_{name}"] for name in ("Linear", "UniSRec")]
    assert sum(weights) == pytest.approx(1, abs=1e-4) and abs(weights[0] - 0.5) > 1e-3


def test_dropped_teachers_are_not_in_the_result(settings, monkeypatch):
    monkeypatch.setattr(holdout, "_shares", lambda names, *_: [0.9 if name == "Linear" else 0.0 for name in names])
    given = {"kd_teachers": ["Linear", "UniSRec"], "kd_teacher_check": "drop"}
    run = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="mean", **given))["result"]
    assert list(run["teachers"]) == ["Linear"]


def test_teachers_that_know_nothing_teach_nothing(settings):
    """Shuffled teachers, a control: the check sees them as they teach, so that their KD loss weighs little."""
    given = {"kd_teachers": ["Linear"], "kd_teacher_check": "weigh", "epochs": 1}
    weight = {
        shuffled: run_recbole_prmkd(
            "SASRec", "tiny", config_dict=settings(kd="mean", kd_shuffled_teachers=shuffled, **given)
        )["result"]["student"]["kd"]["weight"]
        for shuffled in (False, True)
    }
    assert weight[True] < 0.5 < 2.5 < weight[False] <= 5


def test_yaml_reads_off_as_false():
    assert checked({"kd_teacher_check": False}, TEACHERS)["kd_teacher_check"] == "off"

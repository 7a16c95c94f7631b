"""How a teacher ranks the holdout."""

import math
from types import SimpleNamespace

import pytest
import torch

from recbole_prmkd.teachers import holdout


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
    # The target first, then items 1 to 3, of which neither the target again nor the history counts.
    stored = found.log_probability.float().exp()
    assert torch.allclose(stored[0], torch.tensor([math.exp(wanted[0]), 1 - math.exp(wanted[0]), 0, 0]), atol=1e-3)
    assert torch.allclose(stored[1], torch.tensor([math.exp(wanted[1]), 0, 0, 1 - math.exp(wanted[1])]), atol=1e-3)


def test_what_is_stored_has_an_end():
    assert len(holdout.items_beside_target(2000, 50)) == 49
    assert len(holdout.items_beside_target(2000, 1_000_000)) * 2000 <= 1 << 24

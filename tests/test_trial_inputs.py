"""A trial gets from the sweep the teacher cache that a plain run with its settings would have."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recbole_prmkd.preparation import Steps, prepare
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.tune import trial_inputs
from recbole_prmkd.tune.trial_inputs import make_trial_inputs


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_trial_has_the_teacher_cache_of_a_plain_run(shuffled, nodes, settings, monkeypatch):
    """On one node it is mapped from its folder; where a node does not see that, it comes from the object store."""
    monkeypatch.setattr(trial_inputs.ray, "put", lambda stored: stored)
    monkeypatch.setattr(trial_inputs.ray, "get", lambda stored: stored)
    monkeypatch.setattr(trial_inputs.ray, "nodes", lambda: [{"Alive": True}] * nodes)
    prepared = prepare(load_config("BPR", "tiny", config_dict=settings(kd="mean")), Steps())
    inputs = make_trial_inputs(prepared, {})
    config = load_config("BPR", "tiny", config_dict=settings(kd="mean", kd_shuffled_teachers=shuffled))
    plain = prepare(config, Steps())
    if nodes == 2:
        unseen = {name: replace(teacher, folder=Path("elsewhere")) for name, teacher in inputs.teachers.items()}
        inputs = replace(inputs, teachers=unseen)
    examples, items = torch.arange(len(plain.split.train)), torch.arange(1, plain.knowledge.n_items)
    given, expected, unshuffled = (
        torch.nan_to_num(each.knowledge.scores(examples, items)[0])
        for each in (inputs.prepared(config), plain, prepared)
    )
    torch.testing.assert_close(given, expected, rtol=0, atol=0)
    assert torch.equal(given, unshuffled) == (not shuffled)

"""A trial gets from the sweep the knowledge that a plain run with its settings would have."""

import pytest
import torch

from recbole_prmkd.preparation import Steps, prepare
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.tune import trial_inputs
from recbole_prmkd.tune.trial_inputs import HandedTeacher, TrialInputs, packed


@pytest.mark.parametrize("shuffled", [False, True])
def test_knowledge_is_that_of_a_plain_run(shuffled, settings, monkeypatch):
    monkeypatch.setattr(trial_inputs.ray, "get", lambda stored: stored)
    prepared = prepare(load_config("BPR", "tiny", config_dict=settings(kd="mean")), Steps())
    (teacher,), (folder,) = prepared.teachers, prepared.folders
    handed = HandedTeacher(teacher.model.temperature, teacher.holdout, folder.path, arrays=None)
    config = load_config("BPR", "tiny", config_dict=settings(kd="mean", kd_shuffled_teachers=shuffled))
    trial = TrialInputs(packed(prepared.split), {teacher.name: handed}, {}).prepared(config)
    plain = prepare(config, Steps())
    rows, items = torch.arange(len(plain.split.train)), torch.arange(1, plain.knowledge.n_items)
    given, expected, unshuffled = (one.knowledge.scores(rows, items) for one in (trial, plain, prepared))
    torch.testing.assert_close(given, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(given.nan_to_num(), unshuffled.nan_to_num()) == (not shuffled)

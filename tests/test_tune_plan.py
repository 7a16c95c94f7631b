"""What all trials of a sweep share, settled and checked before Ray starts."""

from contextlib import nullcontext

import pytest
import ray
import yaml

from recbole_prmkd import UserError
from recbole_prmkd.tune.sweep import plan_and_folder


@pytest.fixture
def planned(settings, tmp_path, monkeypatch):
    """Plan a sweep of this space, in which Ray must not start; what a test searches is not fixed."""
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    monkeypatch.chdir(tmp_path)

    def plan(space, model="SASRec", sweep=None, **more):
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump({"space": space, **(sweep or {})}))
        fixed = {key: value for key, value in settings(**more).items() if key not in space}
        return plan_and_folder(model, "tiny", None, fixed, str(file))

    return plan


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_students_alone_and_distilled_ones_are_ranked_on_one_split(model, planned):
    plan, _ = planned({"kd": {"choice": ["none", "prmkd"]}}, model)
    alone, distilled = (plan.config({"kd": kd}) for kd in ("none", "prmkd"))
    assert alone["eval_args"] == distilled["eval_args"] and alone["metrics"] == distilled["metrics"]
    assert plan.settings["kd_protocol"] == "ranking"  # best.yaml has the settings


@pytest.mark.parametrize(
    ("space", "more"),
    [
        ({"kd": {"choice": ["mean", "prmkd"]}}, {}),
        ({"kd": {"choice": ["none"]}}, {}),
        ({"learning_rate": {"choice": [0.1]}}, {"kd": "none"}),
        ({"kd": {"choice": ["none", "prmkd"]}}, {"kd_protocol": "host"}),
    ],
)
def test_the_protocol_is_as_it_was_elsewhere(space, more, planned):
    assert planned(space, **more)[0].settings.get("kd_protocol") == more.get("kd_protocol")


LOSSES = {"kd_loss": {"choice": ["kl", "rd", "dllm2rec"]}}
GAMMAS = {f"kd_rank_by_{part}": 0 for part in ("confidence", "consistency")}


@pytest.mark.parametrize(
    ("space", "more", "sentence"),
    [
        (LOSSES, {}, "kd_loss holds .*kd_loss=(rd|dllm2rec) learns .*kd_candidates=teacher_top"),
        (LOSSES, {"kd_candidates": "teacher_top"}, None),
        ({**LOSSES, "kd_candidates": {"choice": ["batch", "both_top"]}}, {}, None),  # rd with batch fails alone
        ({"kd_loss": {"choice": ["rd", "kl"]}, "kd_candidates": {"choice": ["batch", "both_top"]}}, {}, None),
        ({"kd_weight": {"choice": [1, 2]}}, {"kd_loss": "rd"}, "^kd_loss=rd learns"),
        ({**LOSSES, "kd_candidates": {"choice": ["batch", "student_top"]}}, {}, "kd_loss holds"),
        ({"kd": {"choice": ["none", "prmkd", "rd"]}}, {"kd_loss": "rd"}, 'kd holds "prmkd"'),
        ({"kd": {"choice": ["none", "mean", "rd"]}}, {}, None),
        ({"kd_rank_by_position": {"choice": [0, 0.5]}}, {"kd": "dllm2rec", **GAMMAS}, "kd_rank_by_position holds 0,"),
        ({"kd_rank_by_position": {"uniform": [0, 0.5]}}, {"kd": "dllm2rec", **GAMMAS}, None),
    ],
)
def test_values_that_make_no_loss_are_refused(space, more, sentence, planned):
    """A winner is trained again as a plain run, which refuses them."""
    expected = nullcontext() if sentence is None else pytest.raises(UserError, match=sentence)
    with expected:
        planned(space, **{"kd": "prmkd", **more})

"""What all trials of a sweep share, settled and checked before Ray starts."""

import pytest
import ray
import yaml

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

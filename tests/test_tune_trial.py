"""One trial without Ray: what it trains, what it finds done, what it reports."""

from types import SimpleNamespace

import pytest
from ray import tune

from recbole_prmkd import UserError
from recbole_prmkd.preparation import Steps, prepare
from recbole_prmkd.tune.outcome import trials_of
from recbole_prmkd.tune.plan import Plan
from recbole_prmkd.tune.settings import SweepSettings
from recbole_prmkd.tune.trial import failure, run_trial, trial_folder

SPACE = {"learning_rate": {"uniform": [0.001, 0.1]}, "mlp_hidden_size": {"choice": [[8], [4, 4]]}}
VALUES = {"learning_rate": 0.01, "mlp_hidden_size": "[8]"}


@pytest.fixture
def trial(cpu_settings, tmp_path, monkeypatch):
    """Run trial 7 of a sweep with these sampled values; what it reported, one dict for each epoch."""
    reports = []
    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "7"))
    monkeypatch.setattr(tune, "get_checkpoint", lambda: None)
    monkeypatch.setattr(tune, "report", lambda metrics, checkpoint=None: reports.append(metrics))
    fixed = {key: value for key, value in cpu_settings(kd="none").items() if key not in {*SPACE, "kd_output_dir"}}
    sweep = SweepSettings.model_validate({"space": SPACE})
    plan = Plan(model="NeuMF", dataset="tiny", settings=fixed, sweep=sweep, data="")
    inputs = SimpleNamespace(prepared=lambda config: prepare(config, Steps()))

    def run(**values):
        reports.clear()
        run_trial({**VALUES, **values}, plan, inputs, tmp_path)
        return reports[:]

    run.plan = plan
    return run


def test_a_finished_trial_is_not_trained_again_with_the_same_settings(trial):
    first = trial()
    assert [report["epoch"] for report in first] == [0, 1]
    assert trial() == first[-1:]


def test_a_takeover_at_the_last_report_is_trained(trial, tmp_path):
    """PBT gives a trial that has just ended another's student and settings: no old score under these."""
    before = trial()
    after = trial(learning_rate=0.05, mlp_hidden_size="[4, 4]")
    assert len(after) == 2 and after[-1]["best_score"] != before[-1]["best_score"]
    # Ray's note may have settings that the trial was given after its last report.
    noted = {**after[-1], "config": {"learning_rate": 0.07, "mlp_hidden_size": "[8]"}}
    result = SimpleNamespace(path=str(tmp_path / "ray" / "7"), metrics=noted, config=noted["config"], error=None)
    (line,) = trials_of([result], trial.plan, trial.plan.config(), tmp_path)
    assert line["learning_rate"] == 0.05 and line["mlp_hidden_size"] == [4, 4] and line["status"] == "finished"
    assert line[f"valid {trial.plan.config()['valid_metric'].lower()}"] == after[-1]["best_score"]


def test_a_trial_without_a_loss_fails_with_the_sentence_of_a_plain_run(trial, tmp_path):
    trial.plan.settings.update(kd="prmkd", kd_loss="rd")
    assert trial() == []
    assert failure(trial_folder(tmp_path, "7"))["error"].startswith("kd_loss=rd learns")


@pytest.mark.parametrize("error", [ValueError("Training loss is nan"), AssertionError("heads")])
def test_what_the_settings_cause_is_a_result_and_not_trained_again(error, trial, tmp_path, monkeypatch):
    """Ray tries again where a trial raises; this one returns."""
    calls = []

    def train(*given, **named):
        calls.append(1)
        raise error

    monkeypatch.setattr("recbole_prmkd.tune.trial.train", train)
    assert trial() == trial() == [] and len(calls) == 1
    trial(learning_rate=0.05)  # as PBT may give it
    assert len(calls) == 2
    log = next(trial_folder(tmp_path, "7").glob("log/**/*.log")).read_text()
    assert "Traceback" in log and str(error) in log
    result = SimpleNamespace(path=str(tmp_path / "ray" / "7"), metrics=None, config={**VALUES}, error=None)
    (line,) = trials_of([result], trial.plan, trial.plan.config(), tmp_path)
    assert line["status"] == "failed" and line["error"].startswith(f"{type(error).__name__}: {error} (traceback: ")


@pytest.mark.parametrize("error", [OSError("disk"), RuntimeError("CUDA out of memory"), MemoryError()])
def test_a_fault_of_the_machine_is_left_to_ray(error, trial, tmp_path, monkeypatch):
    def train(*given, **named):
        raise error

    monkeypatch.setattr("recbole_prmkd.tune.trial.train", train)
    with pytest.raises(OSError if isinstance(error, OSError) else UserError) as caught:
        trial()
    assert isinstance(error, OSError) or "memory does not suffice to train NeuMF" in str(caught.value)
    assert failure(trial_folder(tmp_path, "7")) is None


def test_a_line_has_the_best_and_the_last_score(trial, tmp_path):
    reports = trial()
    noted = SimpleNamespace(path=str(tmp_path / "ray" / "7"), metrics=reports[-1], config={**VALUES}, error=None)
    (line,) = trials_of([noted], trial.plan, trial.plan.config(), tmp_path)
    scores = [report["mrr@10"] for report in reports]
    assert line["valid mrr@10"] == max(scores) and line["last valid mrr@10"] == scores[-1]


def test_a_trial_shorter_than_a_validation_step_is_validated_at_its_end(trial):
    trial.plan.settings.update(eval_step=10)
    assert [report["epoch"] for report in trial()] == [1]


def test_what_recbole_raises_in_a_trial_is_a_sentence(trial, tmp_path):
    trial.plan.settings.update(weight_decay=[1])
    assert trial() == []
    said = failure(trial_folder(tmp_path, "7"))["error"]
    assert said.startswith("RecBole cannot ") and "weight_decay = [1]" in said and "\n" not in said

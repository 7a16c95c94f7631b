"""Controls: teachers that know nothing, and teachers whose scores go to other items."""

import pytest
import torch

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.data.split import load_split
from recbole_prmkd.preparation import Steps, prepare_on
from recbole_prmkd.recbole_host.config import load_config


def cache_of(settings, **more):
    """The teacher cache of a run."""
    config = load_config("SASRec", "tiny", config_dict=settings(kd="mean", kd_teacher_check="off", **more))
    return prepare_on(config, load_split(config), Steps()).teacher_cache


def scores(cache):
    return cache.scores(torch.arange(20), torch.arange(cache.n_items))


def test_to_uniform_all_items_are_alike(cpu_settings):
    found = scores(cache_of(cpu_settings, kd_teachers=["Uniform"]))
    covered = found.isfinite()
    assert bool(covered[:, :, 1:].any()) and torch.equal(found[covered], torch.ones(int(covered.sum())))


def test_noise_is_a_rule_by_its_seed(cpu_settings):
    first = scores(cache_of(cpu_settings, kd_teachers=["Noise"]))
    again = scores(cache_of(cpu_settings, kd_teachers=["Noise"], kd_rebuild=True))
    other = scores(cache_of(cpu_settings, kd_teachers=["Noise"], kd_teacher_seed=7))
    torch.testing.assert_close(first, again, equal_nan=True)
    assert not torch.allclose(first.nan_to_num(), other.nan_to_num())
    assert abs(float(first.nanmean())) < 0.1


def test_one_of_two_teachers_is_shuffled(cpu_settings):
    """The other one is as it was; the shuffled one has the same scores, for other items."""
    teachers = {"kd_teachers": ["Linear", "Content"]}
    plain, shuffled = (cache_of(cpu_settings, **teachers, kd_shuffled_teachers=which) for which in (False, ["Content"]))
    everyone = cache_of(cpu_settings, **teachers, kd_shuffled_teachers=True)
    before, after, every = scores(plain), scores(shuffled), scores(everyone)
    torch.testing.assert_close(after[0], before[0], equal_nan=True)
    torch.testing.assert_close(after[1], every[1], equal_nan=True)
    assert not torch.equal(after[1].nan_to_num(), before[1].nan_to_num())
    values = [part[1].nan_to_num(nan=-9).sort(dim=1).values for part in (before, after)]
    torch.testing.assert_close(*values)
    assert shuffled.teachers[1].digest != plain.teachers[1].digest == shuffled.teachers[1].teacher.digest


def test_controls_without_a_teacher_take_none_of_those_that_are_named(settings):
    for kd in ("label_smoothing", "mean_teacher"):
        found = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd=kd, kd_teachers=["UniSRec"]))["result"]
        assert list(found["teachers"]) == ["Uniform"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kd_shuffled_teachers": ["Linear"]}, ["kd_shuffled_teachers", "Linear", "UniSRec"]),
        ({"kd_shuffled_teachers": 3}, ["true, false or a list"]),
        ({"kd": "dcd", "kd_rank_discrepancy": 0.0}, ["kd_rank_discrepancy", "above 0"]),
        ({"kd": "de", "kd_teachers": ["Linear"]}, ["compares vectors", "Linear", "UniSRec"]),
        ({"kd": "cd", "kd_candidates": "all"}, ["kd_candidates=teacher_top"]),
        ({"kd": "align", "kd_history_negatives": True}, ["kd_history_negatives", "align"]),
    ],
)
def test_what_cannot_be_is_said_before_teachers_are_made(given, words, settings):
    with pytest.raises(UserError) as error:
        run_recbole_prmkd("SASRec", "tiny", config_dict=settings(**{"kd": "mean", **given}))
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("kd", ["hinton", "de"])
def test_a_student_in_pairs_has_no_scores_of_all_and_no_vectors(kd, settings):
    with pytest.raises(UserError, match="DeepFM"):
        run_recbole_prmkd("DeepFM", "tiny", config_dict=settings(kd=kd))


def test_all_candidates_are_all_items(settings, tmp_path):
    run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="hinton"))
    log = next((tmp_path / "out" / "log").rglob("*.log")).read_text()
    n_items = load_split(load_config("SASRec", "tiny", config_dict=settings(kd="none"))).dataset.item_num
    assert f"{n_items - 1} candidates each" in log

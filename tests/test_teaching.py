"""What teaches nothing is said."""

import numpy as np

from recbole_prmkd import run_recbole_prmkd


def test_that_nothing_is_distilled_is_said_at_the_start_and_at_the_end(settings, tmp_path, capfd):
    """External vectors of one item alone: of no example two candidates are covered."""
    vectors = np.ones((1, 4), dtype=np.float32)
    files = {part: str(tmp_path / f"{part}.npz") for part in ("items", "users")}
    np.savez(files["items"], item_id=np.array(["i0"]), feat=vectors)
    np.savez(files["users"], user_id=np.array(["u0"]), feat=vectors)
    given = {"kd_teachers": ["Vectors"], "kd_vectors_items": files["items"], "kd_vectors_users": files["users"]}
    run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="mean", **given))
    out = "".join(capfd.readouterr())
    assert "examples of the first batch teach" in out and "Nothing was distilled" in out


def test_a_run_that_teaches_says_nothing(settings, capfd):
    run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="prmkd"))
    out = "".join(capfd.readouterr())
    assert "of the first batch teach" not in out and "Nothing was distilled" not in out

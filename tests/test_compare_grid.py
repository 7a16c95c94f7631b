"""The grid of a comparison: its cells and their settings, what is rejected, what an earlier one allows."""

import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import yaml
from conftest import write_tiny

import run_recbole_prmkd as command_line
from recbole_prmkd.compare import run, schedule
from recbole_prmkd.compare.grid import Cell, Grid, default_folder, make_grid, open_folder, parse_seeds, read_grid
from recbole_prmkd.compare.job import Job
from recbole_prmkd.compare.plan import cell_job, check_finished, preparations, result_of
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host import keys
from recbole_prmkd.results.run_folder import RESULT, write_result


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        (None, (2020, 2021, 2022, 2023, 2024)),
        ("2", (2020, 2021)),
        ("7, 3", (7, 3)),
        ("2025,", (2025,)),
        ("[1,2]", (1, 2)),
    ],
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["0", "2020", "1,x", "-3", "", "4,4", "1,4294967296"])
def test_seeds_that_are_none(text):
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


def test_cells_and_their_settings(settings):
    given = settings(kd_weight=3, epochs=1, kd="single", seed=9)
    grid = make_grid("none,prmkd_plus", "SASRec,LightGCN", "tiny", "2", None, given)
    assert [str(cell) for cell in grid.cells()][:3] == [
        "SASRec on tiny, none, seed 2020",
        "SASRec on tiny, prmkd_plus, seed 2020",
        "SASRec on tiny, none, seed 2021",
    ]
    assert len(grid.cells()) == 8
    for cell in grid.cells():
        own = grid.settings_of(cell)
        assert (own["kd"], own["seed"], own["kd_teacher_seed"]) == (cell.kd, cell.seed, 2020)
        assert own["kd_protocol"] == "ranking" and own["kd_shared_prefixes"] and own["kd_save_ranks"]
        assert own["kd_weight"] == 3 and "kd_output_dir" not in own
        config = grid.config(cell)
        assert config["eval_args"]["split"] == {"LS": "valid_and_test"} and config["stopping_step"] == 10


def test_what_the_user_sets_stands_for_all_cells(settings):
    given = settings(kd_teacher_seed=5, kd_shared_prefixes=False, valid_metric="NDCG@10")
    grid = make_grid("none,mean", "SASRec", "tiny", "1", None, given)
    for cell in grid.cells():
        config = grid.config(cell)
        assert config["kd_teacher_seed"] == 5 and config["kd_shared_prefixes"] is False
        assert config["valid_metric"].upper() == "NDCG@10"


def test_a_context_student_may_come_first_with_other_eval_args(settings):
    """Its own defaults, metrics of values, would be rejected beside a ranking."""
    sampled = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": {"valid": "uni3", "test": "full"}}
    grid = make_grid("none,mean", "DeepFM", "tiny", "1", None, settings(eval_args=sampled))
    for cell in grid.cells():
        config = grid.config(cell)
        assert config["eval_args"]["mode"] == sampled["mode"] and "NDCG" in config["metrics"]


def test_a_folder_goes_on_only_with_its_own_settings(tmp_path):
    first = Grid(("a",), ("SASRec",), ("none",), (1, 2), {"epochs": 3})
    assert open_folder(first, tmp_path / "out") == first == read_grid(tmp_path / "out")
    more = Grid(("a",), ("BPR",), ("none", "mean"), (1, 2, 3), {"epochs": 3})
    joined = open_folder(more, tmp_path / "out")
    assert (joined.models, joined.kds, joined.seeds) == (("SASRec", "BPR"), ("none", "mean"), (1, 2, 3))
    with pytest.raises(UserError, match=r"other settings \(epochs\)"):
        open_folder(Grid(("a",), ("BPR",), ("none",), (1,), {"epochs": 4}), tmp_path / "out")
    with pytest.raises(UserError, match=r"other settings \(kd_teacher_seed\)"):
        open_folder(Grid(("a",), ("BPR",), ("none",), (2,), {"epochs": 3}), tmp_path / "out")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").touch()
    with pytest.raises(UserError, match="no comparison"):
        open_folder(first, tmp_path / "else")
    with pytest.raises(UserError, match=r"comparison\.json is missing"):
        read_grid(tmp_path / "else")


def test_other_data_are_another_comparison(settings, tmp_path):
    """Cells of two states of a data set would be averaged as one."""
    write_tiny(tmp_path / "data", "tiny")
    write_tiny(tmp_path / "data", "other")
    given = settings(data_path=str(tmp_path / "data"))
    begun = open_folder(make_grid("none", "BPR", "tiny", "1", None, given).with_data(), tmp_path / "out")
    more = make_grid("none", "BPR", "tiny,other", "2", None, given).with_data()
    assert open_folder(more, tmp_path / "out").data == more.data and set(more.data) == {"tiny", "other"}
    assert more.data["tiny"] == begun.data["tiny"] != more.data["other"]
    (tmp_path / "data" / "tiny" / "tiny.images").mkdir()  # what no run reads there changes nothing
    (tmp_path / "data" / "tiny" / "tiny.inter.bak").write_text("old")
    assert more.with_data().data == more.data
    file = tmp_path / "data" / "tiny" / "tiny.inter"
    file.write_text(file.read_text().rstrip("\n").rpartition("\n")[0] + "\n")
    before = (tmp_path / "out" / "comparison.json").read_text()
    with pytest.raises(UserError, match=r"files of tiny have changed .*--kd_output_dir"):
        open_folder(make_grid("none", "BPR", "tiny", "3", None, given).with_data(), tmp_path / "out")
    assert (tmp_path / "out" / "comparison.json").read_text() == before


def test_the_same_command_finds_its_folder_again(settings):
    def folder(kds="none,mean", seeds="2", **more):
        return default_folder(make_grid(kds, "BPR,SASRec", "tiny", seeds, None, settings(**more)))

    assert folder() == folder() == folder(kds="none,prmkd", seeds="3")  # these join it
    assert folder().parent.name == "runs" and folder().name.startswith("compare-BPR+SASRec-tiny-")
    assert len({folder(), folder(epochs=7), folder(seeds="5,")}) == 3  # other settings or teachers
    many = [
        default_folder(make_grid("none", f"BPR,SASRec,LightGCN,{last}", "tiny", "2", None, settings()))
        for last in ("GRU4Rec", "NeuMF")
    ]
    assert many[0] != many[1]  # though the name does not hold the fourth


@pytest.fixture
def rejected(settings, tmp_path, monkeypatch):
    """Run the command line with these options; returns the sentence it ends with, nothing having been started."""

    def run_it(*options):
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(settings()))
        monkeypatch.setattr(sys, "argv", ["run_recbole_prmkd.py", f"--config_files={config}", *options])

        def too_late(*_, **__):
            raise AssertionError("a job began")

        monkeypatch.setattr(run, "run_jobs", too_late)
        with pytest.raises(SystemExit) as caught:
            command_line.main()
        assert not (tmp_path / "out").exists()
        sentence = str(caught.value.code)
        assert sentence.startswith("recbole_prmkd: ") and "\n" not in sentence
        return sentence

    return run_it


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--compare=none,prmkdd", "--models=SASRec", "--datasets=tiny"], ["prmkdd", "did you mean 'prmkd'"]),
        (["--compare=none,mean,none", "--models=SASRec", "--datasets=tiny"], ["none twice"]),
        (["--compare=none,mean", "--datasets=tiny"], ["--models"]),
        (["--compare=none,mean", "--models=SASRec"], ["--datasets"]),
        (["--compare=none,mean", "--models=SASRek", "--datasets=tiny"], ["SASRek"]),
        (["--compare=none,mean", "--models=BPR,EASE", "--datasets=tiny"], ["EASE", "--kd=none"]),
        (["--compare=none,mean", "--models=SASRec", "--datasets=tiny,nowhere"], ["nowhere.inter"]),
        (
            ["--compare=none,mean", "--models=SASRec", "--datasets=tiny", "--seeds=2020"],
            ["2020 seeds", "--seeds=2020,"],
        ),
        (["--compare=none,mean", "--models=SASRec", "--datasets=tiny", "--compare_jobs=0"], ["--compare_jobs"]),
        (["--compare=none,mean", "--models=SASRec", "--datasets=tiny", "--seed=3"], ["--seeds"]),
        (["--compare=none,mean", "--models=SASRec", "--datasets=tiny", "--kd=mean"], ["--compare"]),
        (["--compare=none,mean", "--models=SASRec", "--datasets=tiny", "--nproc=2"], ["--compare_jobs"]),
        (["--compare=none,mean", "--models=SASRec", "--datasets=tiny", "--kd_wieght=2"], ["kd_weight"]),
        (
            ["--compare=none,mean", "--models=SASRec", "--datasets=tiny", "--kd_protocol=auto"],
            ["kd_protocol", "eval_args"],
        ),
        (
            ["--compare=none,mean", "--models=SASRec", "--datasets=tiny", "--tune_trials=3"],
            ["--tune_trials", "--tune="],
        ),
        (["--models=SASRec", "--datasets=tiny"], ["--compare"]),
        (["--model=SASRec", "--dataset=tiny", "--seeds=3"], ["--compare"]),
    ],
)
def test_rejected_options(options, words, rejected):
    sentence = rejected(*options)
    assert all(word in sentence for word in words), sentence


def test_a_finished_cell_is_known_by_its_settings_and_its_result(tmp_path, made_up_run):
    grid = Grid(("a",), ("SASRec",), ("none",), (1,), {})
    (cell,) = grid.cells()
    job = cell_job(grid, cell, tmp_path)
    assert result_of(job) is None
    job.write()
    assert result_of(job) is None  # started, not ended
    write_result(job.folder, made_up_run("a", "SASRec", "none", 1, 0.1))
    assert result_of(job).student.test["ndcg@10"] == 0.1
    assert result_of(cell_job(replace(grid, settings={"epochs": 4}), cell, tmp_path)) is None


def test_cells_of_another_method_are_rejected(tmp_path, made_up_run):
    """A preset or default that has changed since: a mean over both would be of two methods."""
    grid = Grid(("a",), ("SASRec",), ("none", "prmkd_plus"), (1,), {"kd_temperature": 2.0})
    for cell in grid.cells():
        job = cell_job(grid, cell, tmp_path)
        job.write()
        made = made_up_run("a", "SASRec", cell.kd, 1, 0.1)
        made.config.update({**keys.defaults(), **keys.preset(cell.kd), **job.settings})
        write_result(job.folder, made)
    check_finished(grid, tmp_path)
    del made.config["kd_top_items"]  # a key that is newer than the cell, at its default
    write_result(job.folder, made)
    check_finished(grid, tmp_path)
    made.config["kd_weight"] = 1.2
    write_result(job.folder, made)
    with pytest.raises(UserError, match=r"prmkd_plus, seed 1 was made with kd_weight 1.2, which is 10.0 by now"):
        check_finished(grid, tmp_path)


def test_a_job_with_other_settings_leaves_no_result_of_the_one_before(tmp_path, made_up_run):
    job = Job("x", tmp_path, "train", "SASRec", "a", {"epochs": 1})
    job.write()
    write_result(tmp_path, made_up_run("a", "SASRec", "none", 1, 0.1))
    job.write()
    assert (tmp_path / RESULT).is_file()
    Job("x", tmp_path, "train", "SASRec", "a", {"epochs": 2}).write()
    assert not (tmp_path / RESULT).is_file()


def test_one_comparison_at_a_time_in_a_folder(tmp_path):
    with (
        run.one_at_a_time(tmp_path),
        pytest.raises(UserError, match=r"Another comparison runs in .*--kd_output_dir"),
        run.one_at_a_time(tmp_path),
    ):
        raise AssertionError("two of them")
    with run.one_at_a_time(tmp_path):  # free again
        pass


def test_a_second_comparison_changes_nothing_while_the_first_runs(settings, tmp_path, monkeypatch):
    given = settings(kd_output_dir=str(tmp_path / "out"))
    grid = make_grid("none", "BPR", "tiny", "1", None, given)
    open_folder(grid, tmp_path / "out")
    before = (tmp_path / "out" / "comparison.json").read_text()
    monkeypatch.setattr(run, "run_jobs", lambda *_, **__: pytest.fail("a job began"))
    with run.one_at_a_time(tmp_path / "out"), pytest.raises(UserError, match="Another comparison runs"):
        run.run_comparison("none,mean", "BPR", "tiny", "2", None, given)
    assert (tmp_path / "out" / "comparison.json").read_text() == before


def test_teachers_are_rebuilt_before_the_first_cell_and_never_after(settings, tmp_path):
    grid = make_grid("none,mean", "SASRec,BPR", "tiny", "1", None, settings(kd_rebuild=True))
    jobs = [cell_job(grid, cell, tmp_path) for cell in grid.cells()]
    assert not any(job.settings["kd_rebuild"] for job in jobs)
    made = preparations(grid, list(jobs), tmp_path)
    assert [job.settings["kd_rebuild"] for job in made] == [True, False]
    again = preparations(grid, jobs[1:], tmp_path, {"tiny"})  # a cell has ended: the others go on with its teachers
    assert [job.settings["kd_rebuild"] for job in again] == [False, False]


def test_an_ensemble_has_no_student_to_start():
    grid = Grid(("a",), ("SASRec",), ("mean", "ensemble"), (1,), {"kd_item_init": "text"})
    assert ["kd_item_init" in grid.settings_of(cell) for cell in grid.cells()] == [True, False]


def test_teachers_are_made_once_before_the_cells_that_need_them(settings, tmp_path):
    grid = make_grid(
        "none,single,prmkd", "SASRec,BPR", "tiny", "1", None, settings(kd_teachers=["UniSRec", "Recformer"])
    )
    left = [cell_job(grid, cell, tmp_path) for cell in grid.cells()]
    first, second = preparations(grid, left, tmp_path)
    assert first.settings["kd_teachers"] == ["UniSRec", "Recformer"] and first.settings["kd"] == "prmkd"
    assert first.needs is None and second.needs == first.folder  # one after the other: the teachers are the same
    needs = {(job.model, job.settings["kd"]): job.needs for job in left}
    assert needs["SASRec", "none"] is None and needs["BPR", "none"] is None
    assert needs["SASRec", "prmkd"] == first.folder and needs["BPR", "single"] == second.folder


def test_texts_are_encoded_once_for_warm_started_cells(settings, tmp_path):
    """Where the KD method itself reads none, too; alone, a warm start needs no teacher."""
    for kds, kd in (("none,warm_start,prmkd", "prmkd"), ("none,warm_start", "warm_start")):
        grid = make_grid(kds, "BPR", "tiny", "1", None, settings(kd_teachers=["Linear"]))
        left = {cell.kd: cell_job(grid, cell, tmp_path) for cell in grid.cells()}
        (made,) = preparations(grid, list(left.values()), tmp_path)
        assert (made.settings["kd"], made.settings["kd_item_init"]) == (kd, "text")
        assert left["warm_start"].needs == made.folder and left["none"].needs is None
        assert "kd_item_init" not in left["none"].settings


class Made:
    """Workers that end each job at once; those named in `wrong` fail."""

    def __init__(self, room, wrong=()):
        self.room, self.wrong, self.order, self.closed = room, wrong, [], False

    def __call__(self, job):
        self.order.append(job.name)
        return "it broke" if job.name in self.wrong else None

    def close(self):
        self.closed = True


def made_jobs(folder):
    first = Job("first", folder / "first", "prepare", "m", "d", {})
    return [
        first,
        Job("needs", folder / "needs", "train", "m", "d", {}, needs=first.folder),
        Job("free", folder / "free", "train", "m", "d", {}),
    ]


def test_jobs_wait_for_what_they_need(tmp_path):
    workers = Made(room=2)
    assert schedule.run_jobs(made_jobs(tmp_path), workers, "train") == {}
    assert workers.order.index("first") < workers.order.index("needs") and len(workers.order) == 3 and workers.closed


def test_a_failed_job_takes_those_that_need_it_along_and_no_others(tmp_path):
    workers = Made(room=1, wrong=["first"])
    failed = schedule.run_jobs(made_jobs(tmp_path), workers, "train")
    assert failed == {tmp_path / "first": "it broke", tmp_path / "needs": "it broke"}
    assert workers.order == ["first", "free"]


def test_no_more_jobs_at_a_time_than_there_is_room(tmp_path):
    now, most, lock = [0], [0], threading.Lock()

    class Counting(Made):
        def __call__(self, job):
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            time.sleep(0.05)
            with lock:
                now[0] -= 1

    jobs = [Job(str(n), tmp_path / str(n), "train", "m", "d", {}) for n in range(6)]
    assert schedule.run_jobs(jobs, Counting(room=2)) == {} and most == [2]


def test_interrupted_jobs_are_killed(tmp_path, monkeypatch):
    """The process of a job ends with the comparison that began it; what waits does not begin."""
    started = []

    def start(folder, threads, gpu):
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[-1]

    def interrupted(*_, **__):
        while not started:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(schedule, "start_in", start)
    monkeypatch.setattr(schedule, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        schedule.run_jobs(made_jobs(tmp_path), schedule.Local([None], threads=1))
    assert len(started) == 1 and started[0].wait(timeout=5) == -9


def test_room_on_this_machine(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    here = schedule.workers_here(None, [])
    assert (here.gpus, here.threads) == ([None] * 4, 4)
    here = schedule.workers_here(None, ["0", "3"])
    assert (here.gpus, here.threads) == (["0", "3"], 8)
    here = schedule.workers_here(4, ["0", "3"])
    assert (here.gpus, here.threads) == (["0", "3", "0", "3"], 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    here = schedule.workers_here(None, [])
    assert (here.room, here.threads) == (16, 1)


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        (0, ["0"]),
        (1, ["1"]),
        ("0,2", ["0", "2"]),
        (",0", ["0"]),
        (None, ["0", "1", "2"]),
        ("", []),
        ((0, 2), ["0", "2"]),
        ((1,), ["1"]),
        (-1, []),
    ],
)
def test_gpus_that_are_chosen(named, wanted):
    assert schedule.chosen_gpus(named, ["0", "1", "2"]) == wanted and schedule.chosen_gpus(named, []) == []


def test_cell_folders(tmp_path):
    assert Cell("d", "m", "none", 3).folder(tmp_path) == tmp_path / "d" / "m" / "none" / "3"


def test_a_comparison_that_was_killed_as_it_began_is_begun_again(tmp_path):
    """A half-written file is nothing that a comparison would lose."""
    grid = Grid(("a",), ("BPR",), ("none",), (1,), {})
    (tmp_path / ".part-comparison.json-7").write_text('{"schema"')
    (tmp_path / ".running").touch()
    assert open_folder(grid, tmp_path) == grid
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(UserError, match="holds files but no comparison"):
        open_folder(grid, tmp_path / "other")

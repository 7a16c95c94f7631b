"""Statistics against numbers worked out elsewhere; tables, figures and page from made-up results."""

import html.parser
import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from recbole_prmkd.compare import figures, page, statistics
from recbole_prmkd.compare.gather import gather
from recbole_prmkd.compare.grid import Cell, Grid, open_folder
from recbole_prmkd.compare.page import write_report
from recbole_prmkd.compare.tables import (
    cell_text,
    headline,
    headline_table,
    label,
    number,
    paired_table,
    users_table,
    write_tables,
)
from recbole_prmkd.compare.user_gains import gain_by_group, group_bounds, interval, ndcg_of_ranks, user_gains
from recbole_prmkd.recbole_host.keys import key_table
from recbole_prmkd.results.run_folder import write_result
from recbole_prmkd.results.schema import GuardResult

PLAIN, BETTER = [0.10, 0.12, 0.11, 0.13, 0.12], [0.14, 0.17, 0.15, 0.18, 0.155]


def test_paired_by_hand():
    """Differences 1, 2, 3, 4, 5: mean 3, deviation sqrt(2.5), t = 3 / sqrt(2.5 / 5) = 4.2426 on 4 degrees."""
    test = statistics.paired([0, 0, 0, 0, 0], [1, 2, 3, 4, 5])
    assert test.gain == 3 and test.effect == pytest.approx(3 / math.sqrt(2.5))
    assert test.p == pytest.approx(0.013235, abs=1e-6)  # R: t.test(1:5)$p.value
    assert test.p == pytest.approx(2 * stats.t.sf(4.242641, 4), abs=1e-7)


def test_no_test_without_seeds_or_variation():
    assert statistics.paired([1, 2], [2, 4]).reason == "a test needs 3 seeds"
    constant = statistics.paired([0.1, 0.2, 0.3], [0.2, 0.3, 0.4])
    assert math.isnan(constant.p) and constant.gain == pytest.approx(0.1)


def test_holm_by_hand():
    """p.adjust(c(.01, .04, .03, .005), "holm") in R gives .03 .06 .06 .02."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_ndcg_of_ranks():
    assert ndcg_of_ranks(np.array([1, 3, 10, 11])) == pytest.approx([1, 0.5, 1 / math.log2(11), 0])


def test_interval_holds_the_mean():
    gains = np.random.default_rng(1).normal(0.1, 1, 500)
    low, high = interval(gains)
    half = 1.96 * gains.std() / math.sqrt(500)
    assert (low, high) == pytest.approx((gains.mean() - half, gains.mean() + half), abs=0.02)
    assert interval(np.zeros(5)) == (0.0, 0.0)


def test_groups_of_equal_size():
    assert group_bounds(np.array([1, 1, 2, 3, 4, 5, 6, 9])) == [(1, 1), (2, 3), (4, 5), (6, 9)]
    assert group_bounds(np.array([2, 2, 2])) == [(2, 2)]
    assert group_bounds(np.array([1] * 76 + list(range(2, 26)))) == [(1, 1), (2, 9), (10, 17), (18, 25)]  # one is most
    assert group_bounds(np.array([4] * 60 + [5] * 20 + [6] * 20)) == [(4, 4), (5, 5), (6, 6)]
    values = np.arange(1000) ** 2
    sizes = [((values >= low) & (values <= high)).sum() for low, high in group_bounds(values)]
    assert sizes == [250] * 4


@pytest.fixture
def comparison(tmp_path, made_up_run):
    """Two students, three KD methods and a teacher on made-up results; one cell has none."""
    grid = Grid(("a_b",), ("SASRec", "BPR"), ("none", "mean", "prmkd"), (1, 2, 3, 4, 5), {"epochs": 3})
    folder = tmp_path / "out"
    open_folder(grid, folder)
    rng = np.random.default_rng(0)
    for cell in grid.cells():
        if (cell.model, cell.kd, cell.seed) == ("BPR", "prmkd", 5):
            continue
        place = cell.seed - 1
        worth = {"none": PLAIN[place], "mean": PLAIN[place] + 0.01 * (-1) ** place, "prmkd": BETTER[place]}[cell.kd]
        where = cell.folder(folder)
        where.mkdir(parents=True)
        run = made_up_run("a_b", cell.model, cell.kd, cell.seed, worth, teachers={"UniSRec": 0.2})
        write_result(where, run)
        rank = rng.integers(1, 20, 40) if cell.kd == "none" else np.ones(40, dtype=int)
        rows = {"user": np.arange(40), "item": np.arange(40), "history": np.arange(40) % 8, "popularity": np.arange(40)}
        np.savez(where / "test_ranks.npz", **rows, rank=rank, rank_unseen=rank)
    for model in grid.models:
        entry = {"ms": 10.0, "low": 9.0, "high": 12.0, "ratio": 1.0, "parameters": 1000, "bytes": 4000}
        students = {kd: entry for kd in (*grid.kds, "the plain student again")}
        content = {"device": "CPU", "threads": 1, "students": students, "teachers": {"UniSRec": {**entry, "ms": 300.0}}}
        (folder / "a_b" / model / "cost.json").write_text(json.dumps(content))
    return grid, folder


def test_summary_and_stars(comparison):
    gathered = gather(*comparison)
    assert [str(cell) for cell in gathered.missing] == ["BPR on a_b, prmkd, seed 5"]
    frame = statistics.summary(gathered, ["test ndcg@10", "test unseen ndcg@10"])
    own = frame[frame["metric"] == "test ndcg@10"].set_index(["model", "kd"])
    best = own.loc[("SASRec", "prmkd")]
    assert best["mean"] == pytest.approx(np.mean(BETTER)) and best["deviation"] == pytest.approx(np.std(BETTER, ddof=1))
    p = stats.ttest_rel(BETTER, PLAIN).pvalue
    assert best["p"] == pytest.approx(p)
    # Four comparisons: both rankings of these students are the same, so they count once.
    assert best["p_holm"] == pytest.approx(4 * p) and best["mark"] == "*"
    assert own.loc[("SASRec", "mean"), "mark"] == "" and own.loc[("BPR", "prmkd"), "paired_seeds"] == 4
    assert own.loc[("UniSRec", "teacher"), "mean"] == 0.2 and own.loc[("SASRec", "none"), "mark"] == ""
    assert not own.loc[("BPR", "prmkd"), "whole"] and own.loc[("BPR", "mean"), "whole"]
    assert "% over 4 shared seeds)" in cell_text(own.loc[("BPR", "prmkd")])


@pytest.mark.parametrize(
    ("settings", "seed"),
    [({}, 1), ({"kd_teacher_seed": 3}, 3), ({"kd_teacher_seed": 3, "kd_unisrec_2_seed": 0}, 0)],
)
def test_a_teachers_row_has_its_seed(settings, seed, tmp_path, made_up_run):
    grid = Grid(("a",), ("SASRec",), ("mean",), (1,), {})
    run = made_up_run("a", "SASRec", "mean", 1, 0.1, teachers={"UniSRec_2": 0.2})
    run.config.update(settings)
    (cell,) = grid.cells()
    cell.folder(tmp_path).mkdir(parents=True)
    write_result(cell.folder(tmp_path), run)
    rows = gather(grid, tmp_path).cells.set_index("model")
    assert rows.loc["UniSRec_2", "seed"] == seed


def test_a_dagger_where_it_is_worse(comparison, made_up_run):
    grid, folder = comparison
    for cell in grid.cells():
        if cell.kd == "mean":
            write_result(
                cell.folder(folder), made_up_run("a_b", cell.model, "mean", cell.seed, PLAIN[cell.seed - 1] / 2)
            )
    frame = statistics.summary(gather(grid, folder), ["test ndcg@10"])
    assert set(frame[frame["kd"] == "mean"]["mark"]) == {"†"}


def test_less_is_better_for_some_metrics(comparison):
    gathered = gather(*comparison)
    fallen = replace(gathered, cells=gathered.cells.rename(columns={"test ndcg@10": "test averagepopularity@10"}))
    rises = statistics.summary(gathered, ["test ndcg@10"])
    falls = statistics.summary(fallen, ["test averagepopularity@10"])
    assert "*" in set(rises["mark"])
    assert falls["mark"].tolist() == [{"*": "†", "†": "*"}.get(mark, mark) for mark in rises["mark"]]


def test_no_two_kd_methods_look_the_same():
    kds = key_table()["kd"]["choices"]
    gathered = SimpleNamespace(grid=SimpleNamespace(kds=kds))
    assert len({figures.style(gathered, kd, "color")["color"] for kd in kds}) < len(kds)  # colours come again
    for names in (("color", "hatch"), ("color", "marker", "ls"), ("color", "fillstyle")):
        assert len({tuple(figures.style(gathered, kd, *names).values()) for kd in kds}) == len(kds)


@pytest.fixture
def plotted(monkeypatch):
    """Arguments of all calls of a method of matplotlib's axes while these figures are made."""

    def calls(method, make, *arguments):
        original, found = getattr(figures.Axes, method), []

        def noting(axes, *given, **named):
            found.append((given, named))
            return original(axes, *given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(figures.Axes, method, noting)
            assert list(make(*arguments))
        return found

    return calls


def test_curves_end_with_the_first_seed_that_stops(comparison, plotted):
    """The mean of those that are left would jump."""
    gathered = gather(*comparison)
    gathered.runs[Cell("a_b", "SASRec", "none", 2)].student.valid_scores[:] = [0.1, 0.2]
    curves = [np.asarray(given[1]) for given, _ in plotted("plot", figures.learning_curves, gathered, "a_b")]
    assert len(curves) == 6 and len(curves[0]) == 3
    assert np.isfinite(curves[0][:2]).all() and np.isnan(curves[0][2])
    assert all(np.isfinite(others).all() for others in curves[1:])


def test_teachers_are_shown_where_students_rank_as_they_do(comparison, plotted):
    gathered = gather(*comparison)
    columns = headline(gathered)

    def lines(gathered):
        summary = statistics.summary(gathered, columns)
        return len(plotted("axhline", figures.quality, gathered, summary, columns, "a_b"))

    assert lines(gathered) == 2  # both rankings of these students are one, so NDCG and Recall unseen alone
    for run in gathered.runs.values():
        run.student.test_unseen["ndcg@10"] += 0.1
    assert lines(gathered) == 4


@pytest.mark.parametrize(
    ("metrics", "wanted"),
    [
        (["hit@20", "hit@5", "ndcg@20", "ndcg@5", "recall@20", "recall@5"], ["ndcg@5", "recall@5"]),
        (["mrr@10", "ndcg@10", "ndcg@5"], ["ndcg@10"]),
        (["averagepopularity@5", "giniindex@5", "hit@5"], ["hit@5"]),
        (["averagepopularity@5", "giniindex@5"], ["averagepopularity@5", "giniindex@5"]),
    ],
)
def test_what_heads_the_tables(metrics, wanted):
    assert headline(SimpleNamespace(metrics=metrics)) == [
        f"{part} {name}" for part in ("test", "test unseen") for name in wanted
    ]


def test_latex_signs(comparison, tmp_path):
    frame = statistics.summary(gather(*comparison), ["test ndcg@10"])
    write_tables(frame.assign(dataset="a & b_{x}^2 ~<>\\"), tmp_path)
    caption = r"a \& b\_\{x\}\textasciicircum{}2 \textasciitilde{}$<$$>$\textbackslash{}. Mean $\pm$"
    assert rf"\caption{{{caption}" in (tmp_path / "table.tex").read_text()


@pytest.fixture
def no_pictures(monkeypatch):
    """A page without figures, which take seconds."""
    monkeypatch.setattr(
        page, "pictures", lambda *_: {name: [] for name in ("quality", "learning", "teachers", "groups", "cost")}
    )


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ({}, "20 trials of seed"),
        ({"trials": 7}, "7 trials of seed"),
        ({"search": "grid"}, "all combinations as trials"),
    ],
)
def test_the_page_says_how_many_settings_were_tried(sweep, words, comparison, no_pictures):
    grid, folder = comparison
    space = {"learning_rate": {"choice": [0.1, 0.2]}}
    write_report(replace(grid, tune={"space": space, **sweep}), folder)
    assert words in (folder / "report.html").read_text()


def test_the_page_says_how_the_data_were_split(comparison, no_pictures):
    grid, folder = comparison
    write_report(grid, folder)
    leave_one_out = "the same split (last interaction for test, last but one for validation, in time order)"
    assert leave_one_out in (folder / "report.html").read_text()
    for cell, made in gather(grid, folder).runs.items():
        made.config["eval_args"] = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "mode": "full"}
        write_result(cell.folder(folder), made)
    write_report(grid, folder)
    text = html.unescape((folder / "report.html").read_text())
    assert "the same split (split {'RS': [0.8, 0.1, 0.1]}, order TO)" in text and leave_one_out not in text
    for cell, made in gather(grid, folder).runs.items():
        made.config["benchmark_filename"] = ["train", "valid", "test"]
        write_result(cell.folder(folder), made)
    write_report(grid, folder)
    assert "the same split (pre-split files)" in (folder / "report.html").read_text()


def test_two_seeds_have_no_stars(comparison):
    grid, folder = comparison
    few = Grid(grid.datasets, grid.models, grid.kds, (1, 2), grid.settings)
    frame = statistics.summary(gather(few, folder), ["test ndcg@10"])
    assert frame["p"].isna().all() and set(frame["mark"]) == {""}
    assert "a test needs 3 seeds" in set(paired_table(frame, "a_b")["no test because"])


def test_texts():
    assert (number(0.0561), number(-0.05, 2), number(1.5, 1), number(math.nan)) == (".0561", "-.05", "1.5", "–")
    assert label("test unseen ndcg@10") == "NDCG@10 unseen" and label("test recall@5") == "Recall@5"
    row = {"mean": 0.0612, "deviation": 0.0012, "percent": 9.06, "mark": "*", "whole": True, "paired_seeds": 3}
    assert cell_text(row) == ".0612 ± .0012 (+9.1 %)*"
    assert cell_text({**row, "whole": False}) == ".0612 ± .0012 (+9.1 % over 3 shared seeds)*"


def test_gain_by_group(comparison):
    gathered = gather(*comparison)
    gains, deviations = gain_by_group(gathered, "a_b", "SASRec", "history")
    assert list(gains.index) == list(deviations.index) == ["0-1", "2-3", "4-5", "6-7"]
    assert list(gains) == ["mean", "prmkd"]
    every = user_gains(gathered, "a_b", "SASRec", "prmkd", "rank_unseen")  # 40 users, histories 0 to 7 in turn
    inside = np.isin(np.arange(40) % 8, [2, 3])
    assert gains.loc["2-3", "prmkd"] == pytest.approx(every[inside].mean()) and (deviations > 0).all().all()


def test_no_groups_without_ranks(tmp_path):
    gathered = gather(Grid(("a",), ("SASRec",), ("none", "mean"), (1,), {}), tmp_path)
    assert gain_by_group(gathered, "a", "SASRec", "history")[0].empty


def test_files_of_a_report(comparison):
    grid, folder = comparison
    write_report(grid, folder)
    table = pd.read_csv(folder / "results.csv")
    assert len(table) == 29 + 1 and set(table["kd"]) == {"none", "mean", "prmkd", "teacher"}
    stored = json.loads((folder / "a_b" / "BPR" / "cost.json").read_text())
    measured = table.set_index(["model", "kd"])["ms_per_1000_users"].sort_index()
    assert set(measured[("BPR", "mean")]) == {stored["students"]["mean"]["ms"]}
    assert set(measured[("UniSRec", "teacher")]) == {300.0}
    text = (folder / "table.md").read_text()
    assert "| SASRec | alone | 5 | .1160 ± .0114 | .2320 ± .0228 | .1160 ± .0114 | .2320 ± .0228 |" in text
    assert "| SASRec | prmkd | 5 | .1590 ± .0160 (+37.1 %)* |" in text
    latex = (folder / "table.tex").read_text()
    assert r"\caption{a\_b. " in latex and r".1590 $\pm$ .0160 (+37.1 \%)$^*$" in latex
    assert "†" not in latex and "±" not in latex


class Reader(html.parser.HTMLParser):
    """Every tag with its attributes; complains of a tag that is closed in the wrong place."""

    def __init__(self):
        super().__init__()
        self.tags, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone(comparison):
    grid, folder = comparison
    write_report(grid, folder, {"BPR on a_b, prmkd, seed 5": "it <broke> (log: x)"})
    text = (folder / "report.html").read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert "it &lt;broke&gt;" in text and "29 of 30 runs have a result" in text
    images = [attrs for tag, attrs in reader.tags if tag == "img"]
    assert len(images) == 4 + 1 + 2 + 2 + 1
    assert all(attrs["src"].startswith("data:image/svg+xml;base64,") and len(attrs["alt"]) > 40 for attrs in images)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in reader.tags}
    assert not re.search(r"https?://", text)
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for tag, attrs in reader.tags if tag == "a"} <= set(ids)


def test_a_report_on_nothing_yet(tmp_path):
    grid = Grid(("a",), ("SASRec",), ("none", "mean"), (1,), {})
    open_folder(grid, tmp_path / "out")
    write_report(grid, tmp_path / "out")
    assert "0 of 2 runs have a result" in (tmp_path / "out" / "report.html").read_text()


def test_intervals_over_users(comparison):
    gathered = gather(*comparison)
    frame = users_table(gathered, "a_b")
    assert len(frame) == 4 and frame["users"].tolist() == ["40"] * 4
    assert headline_table(statistics.summary(gathered, ["test ndcg@10"]), "a_b").shape == (7, 4)


def test_tables_say_where_the_guard_kept_another_student(tmp_path, made_up_run):
    grid = Grid(("d",), ("SASRec",), ("none", "warm_start", "prmkd"), (1, 2), {})
    for cell in grid.cells():
        run = made_up_run("d", "SASRec", cell.kd, cell.seed, 0.1 + cell.seed / 100)
        if cell.kd == "prmkd":
            kept = "none" if cell.seed == 1 else "prmkd"
            run = run.model_copy(update={"guard": GuardResult(kept=kept, valid={"prmkd": 0.1, "none": 0.2})})
        cell.folder(tmp_path).mkdir(parents=True)
        write_result(cell.folder(tmp_path), run)
    gathered = gather(grid, tmp_path)
    names = headline_table(statistics.summary(gathered, headline(gathered)), "d")[""].tolist()
    assert names == ["alone", "warm_start", "prmkd (guard kept another in 1 of 2)"]
    assert gathered.cells["kept"].dropna().tolist() == ["none", "prmkd"]

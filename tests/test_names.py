"""A data set called anything: its name meets figures, pages, tables, spreadsheets, comments and folders unharmed."""

import csv
import html.parser
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml

from recbole_prmkd import quick_start, run_recbole_prmkd
from recbole_prmkd.compare.grid import Grid, open_folder
from recbole_prmkd.compare.page import write_report
from recbole_prmkd.compare.tables import write_tables
from recbole_prmkd.errors import UserError
from recbole_prmkd.results.names import for_csv, for_folder, printable
from recbole_prmkd.results.plots import draw_distillation
from recbole_prmkd.results.run_folder import write_result
from recbole_prmkd.tune.outcome import PARALLEL, draw_sweep
from recbole_prmkd.tune.space import read_space

NAMES = [
    r"a$\frac$b",
    r"$x_$",
    "$5 and $6",
    r"a\$b$",
    "a_b^c%#&{}~",
    "<script>alert(1)</script>",
    'x" onload="y',
    "{{ 7 * 7 }}",
    "a|b`c[d](e)",
    "two\nlines\rthree",
    "bell\x07 null\x01",
    "half \udce9 sign",
    "日本 🎬",
    "=1+1",
    "@SUM(A1)",
    "-2+3",
]
HISTORY = [{"epoch": epoch, "rec_loss": 1.0, "kd_loss": 0.5, "weight_A": 1.0, "share": 0.1} for epoch in range(2)]


@pytest.mark.parametrize("name", NAMES)
def test_the_figure_of_a_run_and_the_report_of_a_comparison(name, tmp_path, made_up_run):
    draw_distillation(HISTORY, tmp_path / "a.svg", f"SASRec on {name}, kd=mean")
    title, *_ = re.findall(r"<dc:title>(.*?)</dc:title>", (tmp_path / "a.svg").read_text(encoding="utf-8"), re.DOTALL)
    ElementTree.parse(tmp_path / "a.svg")
    assert "SASRec on " in title and "\n" not in title
    grid = Grid((name,), ("BPR",), ("none", "mean"), (1, 2, 3), {})
    folder = tmp_path / "comparison"
    open_folder(grid, folder)
    for cell in grid.cells():
        place = cell.folder(folder)
        place.mkdir(parents=True)
        write_result(
            place, made_up_run(name, "BPR", cell.kd, cell.seed, 0.1 + cell.seed / 100, teachers={"UniSRec": 0.2})
        )
    write_report(grid, folder, {name: "failed"})
    page = (folder / "report.html").read_text(encoding="utf-8")
    tags = set()
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.update([tag, *(key for key, _ in attributes)])
    parser.feed(page)
    assert not tags & {"script", "onload"} and "49 on" not in page and "on 49" not in page
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 7 and not any(line["dataset"].startswith(("=", "@", "-", "+")) for line in lines)
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert len(set(map(len, (re.findall(r"(?<!\\)\|", line) for line in table.splitlines() if line[:1] == "|")))) == 1
    assert "<script" not in table and len(table.splitlines()[0].split("**")) == 3


def test_a_name_in_latex(tmp_path):
    columns = {"metric": "test ndcg@10", "mean": 0.1, "deviation": 0.01, "percent": np.nan, "mark": "", "seeds": 3}
    write_tables(pd.DataFrame([{"dataset": r"a$\frac$b" + "\n%x", "model": "M_1", "kd": "none", **columns}]), tmp_path)
    text = (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert r"\caption{a\$\textbackslash{}frac\$b \%x. " in text and r"M\_1" in text


def test_only_texts_that_a_spreadsheet_would_compute_change():
    table = pd.DataFrame({"=n": ["=1", "plain", None], "x": [-1.5, np.nan, 2], "y": pd.array([1, None, -3], "Int64")})
    assert for_csv(table).to_csv(index=False) == "'=n,x,y\n'=1,-1.5,1\nplain,,\n,2.0,-3\n"
    plain = pd.DataFrame({"id": ["a_1"], "kd": [0.5], "error": [""], "flag": [True]})
    assert for_csv(plain).to_csv(index=False) == plain.to_csv(index=False)


def test_as_part_of_a_folders_name():
    assert for_folder("../../etc/x\0y") == ".._.._etc_x_y" and for_folder("ml-100k") == "ml-100k"
    assert "/" not in for_folder("/" * 500) and len(for_folder("x" * 500)) < 200


def test_what_no_file_can_hold_has_a_mark():
    assert printable("a\x00\udce9\n\tb é 日本") == "a\ufffd\ufffd  b é 日本"


def test_a_value_of_a_sweep_that_matplotlib_takes_for_a_formula(tmp_path):
    domains = read_space({"kd_text_file": {"choice": [r"a$\frac$b", "c"]}, "kd_weight": {"uniform": [0.1, 2]}})
    lines = [
        {
            "id": str(number),
            "status": "finished",
            "kd_text_file": value,
            "kd_weight": 0.2 + number,
            "valid mrr@10": number,
        }
        for number, value in enumerate([r"a$\frac$b", "c"])
    ]
    draw_sweep(lines, domains, "valid mrr@10", True, tmp_path)
    for file in tmp_path.iterdir():
        ElementTree.parse(file)
    assert not (tmp_path / PARALLEL).exists() or (tmp_path / PARALLEL).stat().st_size


def test_a_comment_of_best_yaml_holds_no_setting():
    text = f"# {printable('Trial 1 of /tmp/x' + chr(10) + 'kd_weight: 9')}\n" + yaml.safe_dump({"model": "BPR"})
    assert yaml.safe_load(text) == {"model": "BPR"}


@pytest.mark.parametrize("error", [ValueError("ParseFatalException"), OSError(28, "No space left"), MemoryError()])
def test_a_figure_that_fails_loses_no_run(error, settings, tmp_path, monkeypatch):
    def fails(history, path: Path, title):
        path.write_text("half")
        raise error

    monkeypatch.setattr(quick_start, "draw_distillation", fails)
    run = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="mean", epochs=1))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "SASRec.pth",
        "data.safetensors",
        "log",
        "result.json",
        "tensorboard",
    ]
    assert run["result"]["distillation"]
    (log,) = (tmp_path / "out" / "log" / "SASRec").iterdir()
    assert "distillation.svg is left out" in log.read_text()


def test_an_output_that_is_a_folder_is_refused_before_training(settings, tmp_path, monkeypatch):
    (tmp_path / "out" / "SASRec.pth").mkdir(parents=True)
    monkeypatch.setattr(quick_start, "prepare", None)
    with pytest.raises(UserError, match=r"SASRec\.pth is a folder"):
        run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="none"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["SASRec.pth"]

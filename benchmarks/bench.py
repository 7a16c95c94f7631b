"""All benchmarks, and one table of their ratios: what was measured, against what, how much, how far the runs differ.

python benchmarks/bench.py                      # `make bench`: small sizes, at most 15 minutes on 2 quiet cores
python benchmarks/bench.py --all                # `make bench-all`: the sizes of docs/costs.md; hours
python benchmarks/bench.py --only=epoch,linear  # some of them

Each script prints its JSON lines as it goes. The table has those with a ratio. A script that fails is named at the end,
and the others run all the same. Every other --key=value goes to the scripts that read a data set, such as
--dataset=amazon18-scientific --data_path=data.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

FOLDER = Path(__file__).parent
# Script, whether it reads a data set, its options in `make bench`, and in `make bench-all`.
SCRIPTS: dict[str, tuple[bool, list[str], list[str]]] = {
    "epoch": (True, ["--models=SASRec,GRU4Rec,LightGCN,BPR,DeepFM", "--batches=2"], ["--batches=4", "--runs=5"]),
    "lightgcn": (True, ["--runs=3"], []),
    "encoding": (True, ["--rows=1000", "--items=100", "--recformer_rows=40"], []),
    "teacher_epoch": (False, ["--steps=4", "--ways=full;sampled"], []),
    "catalogue": (False, ["--items=10000,100000", "--steps=2"], []),
    "recommend": (False, [], []),
    "linear": (False, ["--items=20000", "--interactions=200000"], []),
    "go_on": (True, [], []),
}
LONG = ("linear", "go_on")  # not in `make bench`


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--only", default="")
    arguments, settings = parser.parse_known_args()
    names = arguments.only.split(",") if arguments.only else [n for n in SCRIPTS if arguments.all or n not in LONG]
    if unknown := [name for name in names if name not in SCRIPTS]:
        parser.error(f"there is no benchmark {unknown[0]!r}: use some of {', '.join(SCRIPTS)}")
    started, lines, failed = time.monotonic(), [], []
    for name in names:
        reads, few, many = SCRIPTS[name]
        print(f"# {name}", flush=True)
        code, found = run([str(FOLDER / f"{name}.py"), *(many if arguments.all else few), *(settings if reads else [])])
        lines += found
        failed += [name] if code else []
    print(f"\n{summary(lines)}\n\n{(time.monotonic() - started) / 60:.1f} minutes.")
    if failed:
        print(f"Failed, see above: {', '.join(failed)}.", file=sys.stderr)
    return int(bool(failed))


def run(command: Sequence[str]) -> tuple[int, list[dict[str, Any]]]:
    """Run a script, pass on what it prints, and return its exit code and its JSON lines."""
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            if line.startswith("{"):
                print(line, end="", flush=True)
                lines.append(json.loads(line))
    return process.returncode, lines


def summary(lines: Sequence[dict[str, Any]]) -> str:
    """The lines with a ratio as one table; each script has its own, with all that it measured (`measure.table`)."""
    rows = [
        {
            "what": f"{line['benchmark']}: {line['model']}",
            "against": line["peer"],
            "ratio": f"{line['ratio']:g}",
            "runs": f"{min(line['runs']):g} to {max(line['runs']):g}",
            "of": "its time" if line["ratio_of"] == "ours / plain" else "its speed",
        }
        for line in lines
        if line.get("ratio") is not None and "benchmark" in line
    ]
    return pd.DataFrame(rows).to_string(index=False) if rows else "No ratio was measured."


if __name__ == "__main__":
    sys.exit(main())

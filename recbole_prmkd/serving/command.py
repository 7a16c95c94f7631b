"""The command line of a trained student: `--recommend=RUN_FOLDER` and `--export=RUN_FOLDER`."""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path

from recbole_prmkd.errors import UserError
from recbole_prmkd.serving.exports import FORMATS, HISTORIES, export
from recbole_prmkd.serving.loaded_model import load
from recbole_prmkd.serving.recommendation import TOPK, recommend

_OF = {
    "recommend": ("users", "histories", "topk", "unseen", "output", "new_items", "model"),
    "export": ("format", "history", "output", "model"),
}


def serve(arguments: Sequence[str]) -> None:
    """Read these arguments and write what they ask for.

    Raises:
        UserError: bad input, in one sentence.
    """
    parser = _Parser(description="Use a trained student.", allow_abbrev=False)
    parser.add_argument("--recommend", metavar="RUN_FOLDER", help="write the best items of each user")
    parser.add_argument("--users", metavar="FILE", help="users by their tokens, one in each line; left out: all users")
    parser.add_argument(
        "--histories", metavar="FILE", help="a table user_id, item_id: histories of users that the model never saw"
    )
    parser.add_argument("--topk", type=_whole, help=f"items of a list ({TOPK})")
    parser.add_argument("--unseen", type=_boolean, help="leave out what is in the user's history (True)")
    parser.add_argument(
        "--new_items", metavar="FILE", help="a table item_id and the text columns: items added after training"
    )
    parser.add_argument("--export", metavar="RUN_FOLDER", help="write the student for other programs")
    parser.add_argument("--format", help=f"of the export: {', '.join(FORMATS)}")
    parser.add_argument(
        "--history", help=f"which part the exported users' vectors come from: {', '.join(HISTORIES)} (all)"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="lists: .parquet or .csv; an export: its file, of vectors a folder"
    )
    parser.add_argument("--model", metavar="MODULE:CLASS", help="class of the student, where it is one of your own")
    given, others = parser.parse_known_args(list(arguments))
    _check(vars(given), others)
    if given.recommend is not None:
        _recommend(given)
    else:
        _export(given)


def _recommend(given: argparse.Namespace) -> None:
    loaded = load(given.recommend, given.model)
    folder = loaded.kept.file.parent
    output = Path(given.output) if given.output else folder / "recommendations.parquet"
    file = recommend(
        loaded,
        users=given.users,
        histories=given.histories,
        topk=TOPK if given.topk is None else given.topk,
        unseen=given.unseen is not False,
        output=output,
        progress=True,
        new_items=given.new_items,
    )
    print(f"Lists: {file}")


def _export(given: argparse.Namespace) -> None:
    if given.format is None:
        raise UserError(f"--export needs a format: add --format={', --format='.join(FORMATS)}.")
    for file in export(load(given.export, given.model), given.format, given.output, given.history or "all"):
        print(f"Written: {file}")


def _check(given: dict[str, object], others: Sequence[str]) -> None:
    commands = [name for name in _OF if given[name] is not None]
    if len(commands) > 1:
        raise UserError("Write --recommend or --export, not both.")
    command = commands[0]
    allowed = (command, *_OF[command])
    for name, value in given.items():
        if value == "":  # a shell variable that is not set
            raise UserError(f"--{name}= is empty: give it a value, or leave it out.")
        if value is not None and name not in allowed:
            raise UserError(
                f"--{name} is not for --{command}, which takes --{', --'.join(_OF[command])}: leave it out."
            )
    for other in others:
        name = other.partition("=")[0]
        near = difflib.get_close_matches(name, [f"--{option}" for option in allowed], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"it takes --{', --'.join(_OF[command])}."
        raise UserError(f"--{command} has no option {other!r}: {hint}")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in the words of all other bad input."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message[:1].upper()}{message[1:]}: write --option=value.")


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"

"""A data set with some of its users, to see what distillation is worth where training examples are few.

    python -m recbole_prmkd.data.fewer_users ml-100k --share=0.1 --into=dataset
    python run_recbole_prmkd.py --model=SASRec --dataset=ml-100k-users10 --data_path=dataset --kd=auto

Users are drawn by a hash of their token and the seed, so that the users of 10 % are among those of 30 %. The lines of
the interaction file are kept as they are. The other files whose names begin with the data set's are copied whole, with
all users and items in them; folders are not.
"""

import argparse
import shutil
import sys
from hashlib import blake2b
from pathlib import Path

import recbole

from recbole_prmkd.data.atomic_files import columns
from recbole_prmkd.errors import UserError
from recbole_prmkd.storage.disk import replacing


def fewer_users(
    folder: Path, dataset: str, share: float, into: Path, seed: int = 0, user: str = "user_id", separator: str = "\t"
) -> tuple[str, int, int]:
    """Write `<dataset>-users<per cent>` into a folder of data sets; its name, and how many users and lines it has.

    Args:
        folder: of the data set's files. share: of the users, in (0, 1). user: the column of their tokens.
    Raises:
        UserError: there is no interaction file or no such column, no user is left, or the new data set is there.
    """
    if not 0 < share < 1:
        raise UserError(f"share = {share} is out of range: the range is (0,1).")
    interactions, name = folder / f"{dataset}.inter", f"{dataset}-users{100 * share:g}"
    if not interactions.is_file():
        raise UserError(f"There is no {interactions}: name a data set in RecBole's atomic files.")
    names = list(columns(interactions, separator, None))
    if user not in names:
        raise UserError(f"{interactions} has no column {user}: name the users' column by --user.")
    if (into / name).exists():
        raise UserError(f"{into / name} is there already: remove it, or name another folder by --into.")
    with replacing(into / name) as new:
        new.mkdir(parents=True)
        kept, lines = _copy_lines(interactions, new / f"{name}.inter", names.index(user), separator, share, seed)
        if not kept:
            raise UserError(f"No user of {dataset} is left at share {share:g}: take a larger one, or another --seed.")
        for other in sorted(folder.iterdir()):
            if other.is_file() and other != interactions and other.name.startswith(f"{dataset}."):
                shutil.copyfile(other, new / f"{name}{other.name.removeprefix(dataset)}")
    return name, len(kept), lines


def _copy_lines(old: Path, new: Path, column: int, separator: str, share: float, seed: int) -> tuple[set[str], int]:
    """Write the header and the lines of the users that are drawn; who they are, and how many lines they have."""
    kept: set[str] = set()
    number = 0
    with old.open(encoding="utf-8", newline="") as lines, new.open("w", encoding="utf-8", newline="") as written:
        header = next(lines)
        written.write(header)
        width = len(header.split(separator))
        for line in lines:
            cells = line.rstrip("\r\n").split(separator)
            if len(cells) != width:
                raise UserError(f"{old} has a line of {len(cells)} cells under {width} columns: {line!r}.")
            if _draw(cells[column], seed) < share:
                kept.add(cells[column])
                written.write(line)
                number += 1
    return kept, number


def _draw(token: str, seed: int) -> float:
    """A number in [0, 1) that depends on token and seed alone."""
    return int.from_bytes(blake2b(f"{seed}\t{token}".encode(), digest_size=8).digest()) / 2**64


def shipped_folder(dataset: str) -> Path | None:
    """Of a data set that comes with RecBole."""
    folder = Path(recbole.__path__[0]) / "dataset_example" / dataset
    return folder if folder.is_dir() else None


def main() -> None:
    """The command above."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_prmkd.data.fewer_users", description=__doc__.split("\n")[0]
    )
    parser.add_argument("dataset")
    parser.add_argument("--share", type=float, required=True, help="of the users, such as 0.1")
    parser.add_argument("--data_path", type=Path, default=Path("dataset"), help="folder of data sets")
    parser.add_argument("--into", type=Path, default=Path("dataset"), help="folder of data sets to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--user", default="user_id", help="name of the users' column")
    given = parser.parse_args()
    own = given.data_path / given.dataset
    folder = own if own.is_dir() else shipped_folder(given.dataset) or own
    try:
        name, users, lines = fewer_users(folder, given.dataset, given.share, given.into, given.seed, given.user)
    except UserError as error:
        sys.exit(f"recbole_prmkd: {error}")
    print(f"{given.into / name}: {users} users, {lines} interactions.")


if __name__ == "__main__":
    main()

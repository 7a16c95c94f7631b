"""Hypothesis strategies for the files of a data set and of a teacher's vectors, with a few faults each.

Most of each file is right, so that the faults reach the code behind the checks.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from fuzz_inputs import CODE, PICKLE, of
from hypothesis import strategies as st

USERS, ITEMS = 10, 14
Files = dict[str, bytes | None]  # by suffix; None: a folder of that name


def small_data(users: int = USERS, items: int = ITEMS, parts: bool = False) -> dict[str, str]:
    """A data set `d` with all kinds of atomic files, by suffix; parts: pre-split, each line with its history."""
    rng = np.random.default_rng(3)
    lines: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for user in range(users):
        chosen = (user + np.arange(rng.integers(4, 8))) % items
        for step, item in enumerate(chosen):
            part = {1: "test", 2: "valid"}.get(len(chosen) - step, "train")
            line = f"u{user}\ti{item}\t{1 + (step + user) % 5}\t{100 * step + user}"
            lines[part].append(line + ("\t" + " ".join(f"i{i}" for i in chosen[:step]) if parts else ""))
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    if parts:
        kept = {part: [line for line in lines[part] if not line.endswith("\t")] for part in lines}
        made = {f"{part}.inter": [f"{head}\titem_id_list:token_seq", *kept[part]] for part in kept}
    else:
        made = {"inter": [head, *lines["train"], *lines["valid"], *lines["test"]]}
    made["item"] = ["item_id:token\ttitle:token_seq\tbrand:token\tprice:float\tsizes:float_seq"]
    words = ["red", "green", "blue", "round", "flat", "tall", "old"]
    made["item"] += [f"i{i}\t{words[i % 7]} thing {i}\tb{i % 3}\t{i}.5\t1 {i}" for i in range(items)]
    made["user"] = ["user_id:token\tage:float\ttags:token_seq", *(f"u{u}\t{20 + u}\tt{u % 2} t3" for u in range(users))]
    made["kg"] = ["head_id:token\trelation_id:token\ttail_id:token"]
    made["kg"] += [f"e{i}\tr{i % 2}\te{(i + 1) % items}" for i in range(items)]
    made["link"] = ["item_id:token\tentity_id:token", *(f"i{i}\te{i}" for i in range(items))]
    made["net"] = ["source_id:token\ttarget_id:token", *(f"u{u}\tu{(u + 1) % users}" for u in range(users))]
    return {suffix: "\n".join(lines_of) + "\n" for suffix, lines_of in made.items()}


def processed_data() -> Files:
    """The same in UniSRec's layout, with ready vectors."""
    files: Files = {}
    for suffix, text in small_data(parts=True).items():
        if "inter" in suffix:
            rows = [line.split("\t") for line in text.splitlines()[1:]]
            lines = [f"{row[0]}\t{row[4].replace('i', '')}\t{row[1][1:]}" for row in rows]
            head = "user_id:token\titem_id_list:token_seq\titem_id:token"
            files[suffix] = "\n".join([head, *lines, ""]).encode()
    files["item2index"] = "".join(f"B{i}\t{i}\n" for i in range(ITEMS)).encode()
    files["text"] = ("item_id:token\ttext:token_seq\n" + "".join(f"B{i}\tthing {i}\n" for i in range(ITEMS))).encode()
    files["feat1CLS"] = np.random.default_rng(0).standard_normal((ITEMS, 8)).astype("<f4").tobytes()
    return files


def _cell(draw: st.DrawFn, text: str) -> bytes:
    """One cell, or every second one of a column, or all of it, become another."""
    table = [line.split("\t") for line in text.splitlines()]
    column, value = draw(st.integers(0, len(table[0]) - 1)), draw(of("cells"))
    step, first = draw(st.sampled_from([1, 2, len(table)])), draw(st.integers(1, max(1, len(table) - 1)))
    for line in table[1 if step == 1 else first :: step]:
        line[min(column, len(line) - 1)] = value
    return "".join("\t".join(line) + "\n" for line in table).encode()


def _header(draw: st.DrawFn, text: str) -> bytes:
    """The header's names, types and number of columns."""
    head, _, body = text.partition("\n")
    cells = head.split("\t")
    place, other = draw(st.integers(0, len(cells) - 1)), draw(st.integers(0, len(cells) - 1))
    name, _, kind = cells[place].partition(":")
    kinds = ["token", "float", "token_seq", "float_seq", "int", "", "Token", "token ", "float:x", CODE]
    names = ["", f" {name}", name.upper(), f"{name}_list", "ü", CODE, "a b", f'"{name}']
    odd = [*(f"{name}:{one}" for one in kinds), *(f"{one}:{kind}" for one in names), name, "", ":", cells[other]]
    cells[place] = draw(st.sampled_from(odd))
    cells = draw(
        st.sampled_from([cells, cells, cells, cells[:-1], cells[1:], [*cells, "more:float"], cells[::-1], cells * 2])
    )
    return ("\t".join(cells) + "\n" + body).encode()


def _lines(draw: st.DrawFn, text: str) -> bytes:
    """Lines more, fewer, longer, shorter, other ends."""
    lines = text.splitlines()
    place = draw(st.integers(0, len(lines) - 1))
    line = lines[place]
    odd = [
        "",
        " ",
        "\t",
        "\t\t\t",
        line + "\t",
        line + "\ta\tb",
        line.rpartition("\t")[0],
        f"# {line}",
        line * 2,
        lines[0],
    ]
    kept: list[list[str]] = [lines, lines[:1], lines[:2], lines[:3], lines[1:], lines[::-1], lines * 2, []]
    kept += [[*lines[:place], one, *lines[place + draw(st.integers(0, 1)) :]] for one in odd]
    ends = draw(st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n", "\u2028"]))
    return (ends.join(draw(st.sampled_from(kept))) + draw(st.sampled_from([ends, ""]))).encode()


def _bytes(draw: st.DrawFn, text: str) -> bytes:
    """Other encodings, other separators, and bytes that are no text."""
    text = text.replace("thing", "Größe")
    content = text.encode()
    place = draw(st.integers(0, len(content)))
    odd = draw(
        st.one_of(st.binary(max_size=6), st.sampled_from([b"\x00", b"\xff", b"\xed\xa0\x80", b"\x1a", b"\x1f\x8b"]))
    )
    broken = [content[:place] + odd + content[place:], content[:place], content[place:], odd, b"\xef\xbb\xbf" + content]
    encoded = [text.encode(name) for name in ("utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-7")]
    parted = [content.replace(b"\t", separator) for separator in (b",", b" ", b"::")]
    return draw(st.sampled_from([*broken, *encoded, *parted, bytes(range(256))]))


@st.composite
def data_files(draw: st.DrawFn, fuzz: list[str] | None = None, most: int = 2, parts: bool | None = None) -> Files:
    """A data set's files, with up to `most` faults in the interactions and in those that `fuzz` names (all)."""
    sizes = st.sampled_from([(USERS, ITEMS)] * 4 + [(1, ITEMS), (USERS, 1), (1, 1), (2, 2), (30, 8)])
    files = small_data(*draw(sizes), parts=draw(st.sampled_from([False, False, True])) if parts is None else parts)
    made: Files = {suffix: text.encode() for suffix, text in files.items()}
    names = st.sampled_from([*(suffix for suffix in files if "inter" in suffix), *(fuzz or files)])
    for suffix in draw(st.lists(names, max_size=most, unique=True)):
        change: Callable[[st.DrawFn, str], bytes] = draw(
            st.sampled_from([_cell, _cell, _cell, _header, _lines, _bytes])
        )
        made[suffix] = change(draw, files[suffix])
        fate = draw(st.integers(0, 39))
        if fate == 0:
            del made[suffix]
        elif fate == 1:
            made[suffix] = None
    return made


def _table(draw: st.DrawFn, number: int) -> Any:
    """The array `feat`, right in about half of all draws."""
    wide = draw(st.sampled_from([4, 4, 4, 4, 4, 4, 1, 0, 5]))
    feat: Any = np.random.default_rng(1).standard_normal((number, wide))
    fill = draw(st.sampled_from([None] * 5 + [np.nan, np.inf, -np.inf, 0, 1e30, 1e-30, 1e300]))
    if fill is not None:
        feat[draw(st.sampled_from([slice(None), slice(0, 1), slice(0, None, 2)]))] = fill
    with np.errstate(all="ignore"):
        feat = feat.astype(draw(st.sampled_from(["f4"] * 4 + ["f2", "f8", "i4", "u1", "c8", "?", ">f4"])))
    wrong = [
        feat[:-1],
        feat[:0],
        feat.ravel(),
        feat[None],
        feat[:, :0],
        np.float32(1),
        feat.astype("O"),
        feat.astype("U9"),
    ]
    return draw(st.sampled_from([feat] * 12 + wrong))


def _tokens(draw: st.DrawFn, tokens: list[str]) -> Any:
    """An array of ids, right in most draws."""
    number, right = len(tokens), np.array(tokens)
    wrong: list[Any] = [np.array(tokens, object), np.arange(number), np.arange(number) * 1.0, np.array("a"), right[:1]]
    wrong += [
        np.array([token.encode() for token in tokens]),
        right[::-1],
        right[None],
        np.array([]),
        right.astype("U1"),
    ]
    wrong += [np.array([token] * number) for token in (tokens[0], "nobody", CODE)]
    return draw(st.sampled_from([right] * 16 + wrong))


def good_vectors(**ids: list[str]) -> bytes:
    """An `.npz` file of these id columns and `feat`."""
    file, number = io.BytesIO(), len(next(iter(ids.values())))
    np.savez(file, feat=np.random.default_rng(1).standard_normal((number, 4)), **ids)  # type: ignore[arg-type]
    return file.getvalue()


@st.composite
def vectors(draw: st.DrawFn, **ids: list[str]) -> bytes:
    """The same, often with a fault; or a file of another kind."""
    columns = {name: _tokens(draw, tokens) for name, tokens in ids.items()}
    columns["feat"] = _table(draw, len(next(iter(ids.values()))))
    plain, file = io.BytesIO(), io.BytesIO()
    np.save(plain, columns["feat"])
    if draw(st.integers(0, 15)) == 7:
        columns["more"] = columns.pop(draw(st.sampled_from(sorted(columns))))
    draw(st.sampled_from([np.savez, np.savez, np.savez_compressed]))(file, **columns)
    content = file.getvalue()
    place = draw(st.integers(0, len(content) - 1))
    other = [
        content[:place],
        content[place:],
        content[:place] + b"\x00\xff" + content[place + 2 :],
        b"",
        plain.getvalue(),
    ]
    other += [(8).to_bytes(8, "little") + b"{}      ", b"PK\x05\x06" + bytes(18), CODE.encode(), PICKLE]
    return draw(st.sampled_from([content] * 20 + other))

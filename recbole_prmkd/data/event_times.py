"""Times as files give them, numbers or dates in words, in double precision and in their exact order."""

import re
import warnings

import numpy as np
import pandas as pd

WRITE = "write the number of seconds since 1970, or a date such as 2020-09-13T12:26:40"
_SECOND = 10**9  # nanoseconds
# Any other form of day, month and year does not say which is which, or leaves one to be guessed.
_YEAR_FIRST = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})(?!\d)")
_COMPACT = re.compile(r"\d{8}T\d")
_DAY, _CLOCK = r"\d{1,2}(?:st|[nr]d|th)?\.?", r"\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?"
_ZONE = r"(?:z|utc|gmt|[+-]\d\d(?::?\d\d)?)"
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_TIME = rf"(?:,?\s+{_CLOCK}\s*(?:[ap]m)?\s*{_ZONE}?)?"
_NAMED_MONTH = re.compile(
    r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*,?\s+)?(?:"
    rf"{_DAY}[\s-]+{_MONTH}[\s,-]+\d{{4}}{_TIME}|{_MONTH}[\s-]+{_DAY},?\s+\d{{4}}{_TIME}|"
    rf"{_MONTH}\s+{_DAY}\s+{_CLOCK}(?:\s+(?:utc|gmt))?\s+\d{{4}})",
    re.IGNORECASE,
)


class NoTime(ValueError):
    """A text that gives no time. text: the text; the message says why, and what to write."""

    def __init__(self, text: str, said: str) -> None:
        super().__init__(said)
        self.text = text


def times_of(texts: pd.Series) -> np.ndarray:
    """The times of texts, [N] float64: numbers as they are, dates in seconds since 1970; missing ones are NaN.

    Different whole numbers and dates give different times in their order, also where double precision would round them
    to one. Dates are those of ISO 8601, and those with the month's name in English and the year in four digits. Dates
    without a time zone are in UTC.

    Raises:
        NoTime: a text is neither, the order of its day and month would be a guess, or several ways are mixed.
    """
    times = np.full(len(texts), np.nan)
    present = texts.notna().to_numpy()
    given = texts[present].astype(str).str.strip()
    numbers = pd.to_numeric(given, errors="coerce")
    words = numbers.isna()
    if not words.any():
        times[present] = _distinct(numbers.to_numpy(), 1) if numbers.dtype.kind in "iu" else numbers.astype(np.float64)
    elif words.all():
        times[present] = _distinct(_nanoseconds(given), _SECOND)
    else:
        raise NoTime(texts[present][words].iloc[0], "is no number, while other times are numbers: write all in one way")
    return times


def _nanoseconds(given: pd.Series) -> np.ndarray:
    """Nanoseconds since 1970 of dates, [N] int64."""
    year_first = given.str.match(_YEAR_FIRST) | given.str.match(_COMPACT)
    odd = ~(year_first | given.str.fullmatch(_NAMED_MONTH))
    if odd.any():
        raise NoTime(given[odd].iloc[0], f"is no number and no date with a clear day and month: {WRITE}")
    with_zone = given.str.contains(rf"(?::\d\d(?:\.\d+)?|T\d\d)\s*(?:[ap]m)?\s*{_ZONE}\b", case=False)
    if with_zone.any() and not with_zone.all():
        text = given[~with_zone].iloc[0]
        raise NoTime(text, "has no time zone, while other dates have one: write the zone (+00:00) in all, or in none")
    iso = given[year_first].str.replace(_YEAR_FIRST, _padded, regex=True)
    iso = iso.str.replace(r"\s*(?:UTC|GMT)$", "Z", regex=True)
    dates = pd.Series(pd.NaT, index=given.index, dtype="datetime64[ns, UTC]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dates[year_first] = pd.to_datetime(iso, format="ISO8601", utc=True, errors="coerce")
        dates[~year_first] = pd.to_datetime(given[~year_first], format="mixed", utc=True, errors="coerce")
    if dates.isna().any():
        raise NoTime(given[dates.isna()].iloc[0], f"is no date from 1678 to 2261 that can be read: {WRITE}")
    return dates.astype(np.int64).to_numpy()


def _padded(date: re.Match[str]) -> str:
    return f"{date[1]}-{date[3]:0>2}-{date[4]:0>2}"


def _distinct(whole: np.ndarray, unit: int) -> np.ndarray:
    """Whole numbers divided by `unit` in double precision, each above those of all smaller ones, [N]."""
    numbers, place = np.unique(whole, return_inverse=True)
    times = numbers // unit + (numbers % unit) / unit
    if (np.diff(times) <= 0).any():
        for index in range(1, len(times)):
            if times[index] <= times[index - 1]:
                times[index] = np.nextafter(times[index - 1], np.inf)
    return times[place]

"""Times of texts: numbers and dates, in their exact order or refused."""

import pandas as pd
import pytest

from recbole_prmkd.data.event_times import NoTime, times_of


def test_zones_count():
    texts = ["2020-09-13T12:00:00+02:00", "2020-09-13T11:00:00+00:00", "2020-09-13T05:30-07:00"]
    assert times_of(pd.Series(texts)).argsort().tolist() == [0, 1, 2]
    assert times_of(pd.Series(["2020-09-13T12:26:40", None, "1969-12-31"])).tolist()[::2] == [1_600_000_000, -86400]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["2020-09-13", "1600000000"], "write all in one way"),
        (["2020-09-13T10:00", "2020-09-13T10:00Z"], "in all, or in none"),
        (["2500-01-01"], "1678 to 2261"),
    ],
)
def test_times_in_several_ways_are_refused(texts, said):
    with pytest.raises(NoTime, match=said):
        times_of(pd.Series(texts))

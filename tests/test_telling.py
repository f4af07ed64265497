"""Lines about long work: how often they come and what they say."""

from __future__ import annotations

from itertools import count

from latbench.telling import Pace, told


def test_long_work_is_told_every_ten_seconds_with_the_time_that_is_left() -> None:
    lines: list[str] = []
    clock = count(0, 4).__next__  # four seconds an item
    assert list(told("abcdefg", "net: epoch 1 of 2", lines.append, total=7, further=7, clock=clock)) == list("abcdefg")
    assert lines == [
        "net: epoch 1 of 2, step 3 of 7, about 44 s left",
        "net: epoch 1 of 2, step 6 of 7, about 32 s left",
    ]


def test_hours_and_minutes_are_written_as_such() -> None:
    lines: list[str] = []
    for _ in told(range(2), "w", lines.append, total=2, clock=count(0, 600).__next__):
        pass
    for _ in told(range(2), "w", lines.append, total=2, further=11, clock=count(0, 600).__next__):
        pass
    assert [line.rpartition("about ")[2] for line in lines] == ["10 min left", "2 h 00 min left"]


def test_work_that_is_over_soon_tells_nothing_and_its_last_item_no_line() -> None:
    lines: list[str] = []
    assert list(told(range(5), "w", lines.append, total=5, clock=count(0, 1).__next__)) == list(range(5))
    assert list(told(range(1), "w", lines.append, total=1, clock=count(0, 99).__next__)) == [0]
    assert lines == []


def test_the_time_left_is_by_the_pace_since_the_first_answer_of_this_sitting() -> None:
    pace = Pace(count(100, 5).__next__)
    assert pace.left_s(40, 100) is None  # 39 of them were there before
    assert pace.left_s(41, 100) == 5 * 59
    assert pace.left_s(42, 100) == 5 * 58

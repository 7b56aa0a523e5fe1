"""Numbers for people."""

from __future__ import annotations

from stages import wording


def test_numbers_are_written_for_people() -> None:
    spoken = [
        (wording.percent(0.8349), "83.5 %"),
        (wording.percent(None), "–"),
        (wording.points(-0.012), "−1.2"),
        (wording.points(0.1129), "+11.3"),
        (wording.points(0.0), "0.0"),
        (wording.scaled(4_900_000), "4.9 M"),
        (wording.scaled(999_700), "1 M"),
        (wording.size(38_000), "38 kB"),
        (wording.duration(0.0312), "31.2 ms"),
        (wording.duration(0.9994), "999 ms"),
        (wording.duration(0.9996), "1 s"),
        (wording.duration(432), "7 min 12 s"),
        (wording.duration(12_000), "3 h 20 min"),
        (wording.plural(1, "video"), "1 video"),
        (wording.plural(2400, "video"), "2,400 videos"),
    ]
    assert [text.replace("\u202f", " ") for text, _ in spoken] == [wanted for _, wanted in spoken]

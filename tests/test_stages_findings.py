"""What a run found: which videos were won and lost, and which of them are shown."""

from __future__ import annotations

import numpy as np

from stages import findings


def test_videos_won_and_lost_take_turns_over_the_classes() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 0])
    wrong = (labels + 1) % 3
    answers = {
        "label": labels,
        "student_answer": np.where([1, 1, 1, 1, 0, 0, 1, 0], labels, wrong),
        "baseline_answer": np.where([0, 0, 0, 0, 1, 0, 1, 1], labels, wrong),
    }
    found = findings.compare(answers)
    assert found.won.tolist() == [0, 1, 2, 3]
    assert found.lost.tolist() == [4, 7]
    assert findings.spread_out(found.won, labels, 3) == [0, 3, 1]


def test_of_many_classes_there_is_no_confusion_matrix() -> None:
    assert findings.confusion_chart({}, [str(number) for number in range(31)]) is None

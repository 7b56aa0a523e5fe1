"""What runs beside the main thread: in order, bounded, and nothing after an error."""

from __future__ import annotations

import threading
from collections.abc import Generator
from functools import partial

import pytest
import torch

from stages.overlap import ahead, behind


def counted(made: list[int], most: int = 9) -> Generator[int, None, None]:
    for number in range(most):
        made.append(number)
        yield number


def test_items_come_in_order_from_another_thread_and_few_are_ready() -> None:
    made: list[int] = []
    seen = []
    for number in ahead(counted(made)):
        seen.append(number)
        assert len(made) <= number + 3  # the one that is used, and two that are ready
    assert seen == made == list(range(9))


def test_an_error_of_an_item_comes_in_its_turn_and_the_source_is_closed() -> None:
    closed = threading.Event()

    def broken() -> Generator[int, None, None]:
        try:
            yield 0
            raise ValueError("the second")
        finally:
            closed.set()

    seen = []
    with pytest.raises(ValueError, match="the second"):
        seen.extend(ahead(broken()))
    assert closed.is_set()
    items = ahead(counted([]))
    next(items)
    items.close()  # an interrupted loop leaves no thread behind
    assert not [one for one in threading.enumerate() if one.name.startswith("ahead")]


def test_calls_are_carried_out_in_order_before_the_block_ends() -> None:
    done: list[int] = []
    with behind() as call:
        for number in range(20):
            call(partial(done.append, number))
    assert done == list(range(20))


def test_nothing_after_a_failed_call_is_carried_out() -> None:
    """Not even what was asked for before it failed: a chunk is not written half entered."""
    done: list[str] = []
    asked = threading.Event()

    def fail() -> None:
        asked.wait()
        raise ValueError("half entered")

    def work() -> None:
        with behind() as call:
            call(fail)
            call(partial(done.append, "written"))
            asked.set()

    with pytest.raises(ValueError, match="half entered"):
        work()
    assert done == []


def test_an_error_of_the_block_drops_what_was_not_begun() -> None:
    done: list[int] = []

    def work() -> None:
        with behind() as call:
            call(partial(done.append, 0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done in ([], [0])
    assert not [one for one in threading.enumerate() if one.name.startswith("behind")]


def test_the_helpers_leave_torchs_threads_to_the_main_one() -> None:
    before = torch.get_num_threads()
    inside: list[int] = []
    with behind() as call:
        call(lambda: inside.append(torch.get_num_threads()))
    assert list(ahead(counted([]))) == list(range(9))
    assert inside == [1]
    assert torch.get_num_threads() == before

"""A signal is a flag that is looked at between two pieces of work."""

from __future__ import annotations

import signal

import pytest

from configs.interrupt import Interrupted, stop_flag


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_a_signal_sets_the_flag_and_ends_nothing_by_itself(number: int, code: int) -> None:
    with stop_flag() as flag:
        flag.raise_if_set()
        signal.raise_signal(number)
        assert flag.exit_code == code
        with pytest.raises(Interrupted) as stopped:
            flag.raise_if_set()
    assert stopped.value.exit_code == code


def test_a_second_ctrl_c_stops_at_once() -> None:
    with stop_flag() as flag:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert flag.exit_code == 130


def test_the_handlers_that_were_there_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stop_flag():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before

"""What ranks do about one that has gone, with a group that fails in every way in which an accelerator's library may.

No NCCL here: a sum on a device is a fake that ends, fails or never ends.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from support.fake_group import DEVICE, FakeGroup, FakeMeeting, FakeWork

from shared.errors import ConfigError, TrainingError
from shared.training import heartbeats, ranks
from shared.training.heartbeats import Heartbeats
from shared.training.ranks import JoinedRanks, RankLost, joined

alarms: list[int] = []
"""What was asked for."""


@pytest.fixture(autouse=True)
def process_wide_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    alarm = signal.getsignal(signal.SIGALRM)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    root = logging.getLogger()
    level = root.level
    monkeypatch.setattr(ranks.signal, "alarm", alarms.append)  # the tests' own limits use the same timer
    yield
    alarms.clear()
    root.setLevel(level)
    signal.signal(signal.SIGALRM, alarm)


def test_a_sum_on_a_device_is_everybody_s_before_it_is_used() -> None:
    """The device's sum, then a word over the hosts; only then does the caller go on."""
    group = FakeGroup(FakeWork(looks=5))
    joined_ranks = JoinedRanks(group, patience=60)
    joined_ranks.sum_(DEVICE)
    assert group.told == ["device", "host"] and group.work.is_awaited
    joined_ranks.leave()
    assert group.told[-1] == "leave"


def test_a_rank_that_gives_no_sign_of_life_is_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeats, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(heartbeats, "LOST_SECONDS", 0.2)
    group = FakeGroup(FakeWork(looks=None))
    with pytest.raises(RankLost, match=r"no sign of life from rank 1 for 0 s\); all ranks end\. .* --resume"):
        JoinedRanks(group, patience=600).sum_(DEVICE)
    assert group.told == ["device"], "the others were asked after a sum that has failed"
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_rank_that_lives_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(heartbeats, "LOST_SECONDS", 0.5)
    group = FakeGroup(FakeWork(looks=None))
    beating = Heartbeats(group.meeting, 1, 2)
    beating.start()
    began = time.monotonic()
    with pytest.raises(RankLost, match="a sum on the devices took longer than 1 s"):
        JoinedRanks(group, patience=1).sum_(DEVICE)
    assert time.monotonic() - began >= 1
    beating.stop()


def test_what_the_library_says_is_said() -> None:
    group = FakeGroup(FakeWork(looks=1, failure="NCCL communicator was aborted on rank 0. Original reason: x"))
    with pytest.raises(RankLost, match=r"\(NCCL communicator was aborted on rank 0\); all ranks end"):
        JoinedRanks(group, patience=60).sum_(DEVICE)


def test_a_signal_is_heard_while_a_sum_never_ends() -> None:
    def looked(count: int) -> None:
        if count == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        JoinedRanks(FakeGroup(FakeWork(None, looked=looked)), patience=600).sum_(DEVICE)


def test_a_lost_rank_ends_the_process_whatever_the_library_does() -> None:
    """The message once, the code of bad input, the library's work given up, and a limit to how long it may hang."""
    group = FakeGroup(FakeWork(looks=1, failure="gone"))
    aborted = threading.Event()
    group.abort = aborted.set  # type: ignore[method-assign]
    with pytest.raises(SystemExit) as ended, joined(lambda: JoinedRanks(group, patience=60)) as both:
        both.sum_(DEVICE)
    assert ended.value.code == 2 and aborted.wait(30)
    assert alarms == [ranks.EXIT_SECONDS]
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL, "a handler in Python is not run within a library"
    assert group.meeting.numbers["spoken"] == 1


@pytest.mark.parametrize("error", [ConfigError("no"), ZeroDivisionError()])
def test_ranks_that_talk_over_hosts_alone_have_no_such_limit_and_leave(error: Exception) -> None:
    """After the error is said: the others take their going for a loss."""

    class Left(FakeGroup):
        def leave(self) -> None:
            self.told += self.meeting.numbers  # what was said by then
            super().leave()

    group = Left(FakeWork(looks=1), is_asynchronous=False)
    is_bug = isinstance(error, ZeroDivisionError)
    with (
        pytest.raises(ZeroDivisionError if is_bug else SystemExit),
        joined(lambda: JoinedRanks(group, patience=60)),
    ):
        raise error
    assert group.told == (["leave"] if is_bug else ["spoken", "leave"]) and alarms == []
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeats" and not thread.daemon]


def test_heartbeats_compare_no_clocks_of_others() -> None:
    now = [0.0, 5000.0]
    meeting = FakeMeeting()
    first, second = Heartbeats(meeting, 0, 2, lambda: now[0]), Heartbeats(meeting, 1, 2, lambda: now[1])
    for _ in range(100):
        now[0] += heartbeats.LOST_SECONDS / 2
        now[1] += 1
        first.beat()
        second.beat()
        assert first.loss() == "" and second.loss() == ""
    now[0] += heartbeats.LOST_SECONDS + 1
    first.beat()
    assert first.loss() == "", "it had beaten since"
    now[0] += heartbeats.LOST_SECONDS + 1
    first.beat()
    assert first.loss() == f"no sign of life from rank 1 for {heartbeats.LOST_SECONDS:.0f} s"
    second.beat()
    first.beat()
    assert first.loss() == ""


def test_a_meeting_place_that_has_gone_is_a_loss() -> None:
    meeting = FakeMeeting()
    beating = Heartbeats(meeting, 0, 2)
    meeting.failing = RuntimeError("Broken pipe")
    beating.beat()
    assert beating.loss() == "the ranks' meeting place has gone: Broken pipe"


def test_weights_that_differ_are_named() -> None:
    group = FakeGroup(FakeWork(1), is_asynchronous=False)
    group.gather = lambda value, world: [value, "other"]  # type: ignore
    with pytest.raises(TrainingError, match=r"at step 3 the weights of ranks \[1\] differ"):
        JoinedRanks(group, patience=60).check_digests("one", "at step 3")

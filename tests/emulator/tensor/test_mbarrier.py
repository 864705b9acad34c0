"""The mbarrier state machine against a small model, by random sequences of operations."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

LIMIT = 2**20 - 1


@dataclass
class Model:
    expected: int
    pending: int
    tx: int = 0
    phase: int = 0

    def settle(self) -> bool:
        if self.pending or self.tx:
            return False
        self.pending, self.phase = self.expected, self.phase + 1
        return True

    def expect(self, count: int) -> bool:
        if abs(self.tx + count) > LIMIT:
            return False
        self.tx += count
        return True


operations = st.one_of(
    st.tuples(st.just("arrive"), st.integers(0, 4), st.booleans(), st.booleans(), st.none() | st.integers(0, 600)),
    st.tuples(st.just("expect"), st.integers(0, LIMIT + 1) | st.integers(0, 64)),
    st.tuples(st.just("complete"), st.integers(0, LIMIT + 1) | st.integers(0, 64)),
    st.tuples(st.just("settle")),  # completes exactly what is pending, so that phases do end
)


def check_waits(native, model: Model, object_: int, tokens: list[tuple[int, int]]) -> None:
    parity = model.phase & 1
    assert native.mbarrier_decode(object_) == (model.pending, model.expected, model.tx, parity)
    for p in (0, 1):  # parity p: the current phase is incomplete, the one before is complete
        assert native.mbarrier_test_parity(object_, p) == ("", p != parity)
    for phase, state in tokens:
        if phase >= model.phase - 1:  # only the current or the preceding phase may be asked for
            assert native.mbarrier_test_state(object_, state) == ("", phase != model.phase)


@settings(max_examples=300, deadline=None)
@given(count=st.integers(1, 4), sequence=st.lists(operations, max_size=40))
def test_random_sequences(native, count, sequence):
    reason, object_ = native.mbarrier_init(0, count)
    assert reason == ""
    model = Model(count, count)
    tokens: list[tuple[int, int]] = []
    for name, *args in sequence:
        before = object_
        if name == "arrive":
            n, no_complete, drop, expects = args
            phase, pending, tx = model.phase, model.pending, model.tx + (expects or 0)
            legal = 1 <= n <= pending and not (no_complete and n == pending and tx == 0)
            reason, object_, completed, state = native.mbarrier_arrive(object_, n, no_complete, drop, expects)
            if legal:
                model.tx, model.pending, model.expected = tx, pending - n, model.expected - n * drop
                assert completed == model.settle()
                tokens.append((phase, state))
                assert native.mbarrier_pending_count(state) == ("", pending)
        elif name == "expect":
            legal = model.expect(args[0])
            reason, object_ = native.mbarrier_expect_tx(object_, args[0])
        elif name == "complete":
            legal = model.expect(-args[0])
            reason, object_, completed = native.mbarrier_complete_tx(object_, args[0])
            assert completed == (legal and model.settle())
        else:
            legal = model.tx >= 0
            if not legal:
                continue
            reason, object_, completed = native.mbarrier_complete_tx(object_, model.tx)
            model.tx = 0
            assert completed == model.settle()
        assert (reason == "") == legal, (name, args, reason)
        assert legal or object_ == before
        check_waits(native, model, object_, tokens)


def test_a_ring_slot(native):
    """The life of a TMA pipeline slot: one arrival that expects bytes, then the copy in two pieces, twice over."""
    _, full = native.mbarrier_init(0, 1)
    assert native.mbarrier_test_parity(full, 1) == ("", True)  # "the phase before" counts as complete
    for phase in range(4):
        assert native.mbarrier_test_parity(full, phase & 1) == ("", False)
        _, full, completed, _ = native.mbarrier_arrive(full, expect_bytes=4096)
        assert not completed
        _, full, completed = native.mbarrier_complete_tx(full, 1024)
        assert not completed
        _, full, completed = native.mbarrier_complete_tx(full, 3072)
        assert completed
        assert native.mbarrier_test_parity(full, phase & 1) == ("", True)


def test_bytes_may_land_before_they_are_expected(native):
    _, barrier = native.mbarrier_init(0, 1)
    _, barrier, completed = native.mbarrier_complete_tx(barrier, 512)
    assert not completed
    assert native.mbarrier_describe(barrier) == "phase parity 0, 1 of 1 arrivals and -512 bytes pending"
    _, barrier, completed, _ = native.mbarrier_arrive(barrier, expect_bytes=512)
    assert completed
    assert native.mbarrier_describe(barrier) == "phase parity 1, 1 of 1 arrivals and 0 bytes pending"


def test_dropped_arrivals_are_not_expected_again(native):
    _, barrier = native.mbarrier_init(0, 3)
    _, barrier, completed, _ = native.mbarrier_arrive(barrier, drop=True)
    assert not completed
    _, barrier, completed, _ = native.mbarrier_arrive(barrier, 2)
    assert completed
    assert native.mbarrier_decode(barrier) == (2, 2, 0, 1)


@pytest.mark.parametrize("object_", [0, 0x7FF77FF77FF77FF7, 2**64 - 1, 0x0000000100000001, 12345])
def test_every_operation_needs_an_object(native, object_):
    results = [
        native.mbarrier_inval(object_),
        native.mbarrier_expect_tx(object_, 1),
        native.mbarrier_complete_tx(object_, 1),
        native.mbarrier_arrive(object_),
        native.mbarrier_test_parity(object_, 0),
        native.mbarrier_test_state(object_, object_),
    ]
    for result in results:
        assert "there is no mbarrier here" in result[0]
    assert "state operand" in native.mbarrier_pending_count(object_)[0]


def test_misuse(native):
    for count in (0, LIMIT + 1, 2**32 - 1):
        reason, object_ = native.mbarrier_init(7, count)
        assert "must be 1 to 1048575" in reason
        assert object_ == 7
    reason, barrier = native.mbarrier_init(0, LIMIT)
    assert (reason, native.mbarrier_decode(barrier)) == ("", (LIMIT, LIMIT, 0, 0))
    reason, barrier = native.mbarrier_init(barrier, 2)
    assert reason.startswith("a second init without mbarrier.inval")
    assert native.mbarrier_decode(barrier) == (2, 2, 0, 0)
    assert "arrival of 3 where 2 of 2 are still pending" in native.mbarrier_arrive(barrier, 3)[0]
    assert "must be 1 to" in native.mbarrier_arrive(barrier, 0)[0]
    assert ".noComplete" in native.mbarrier_arrive(barrier, 2, no_complete=True)[0]
    assert native.mbarrier_arrive(barrier, 2, no_complete=True, expect_bytes=16)[0] == ""
    assert native.mbarrier_expect_tx(barrier, LIMIT)[0] == ""
    assert "beyond 2^20 - 1 bytes" in native.mbarrier_expect_tx(barrier, LIMIT + 1)[0]
    assert "beyond 2^20 - 1 bytes" in native.mbarrier_complete_tx(barrier, LIMIT + 1)[0]
    assert "must be 0 or 1, got 2" in native.mbarrier_test_parity(barrier, 2)[0]
    reason, gone = native.mbarrier_inval(barrier)
    assert reason == ""
    assert native.mbarrier_init(gone, 1)[0] == ""

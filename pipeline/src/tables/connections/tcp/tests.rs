//! Conversations, segment by segment.

use super::*;
use Direction::{Original, Reply};

const fn segment(flags: u8, sequence: u32, acknowledgment: u32) -> Segment {
    Segment { flags, sequence, acknowledgment, window: 1000, payload_len: 0 }
}

/// Runs a conversation: who, the segment, the state after it.
fn talk(first: Segment, steps: &[(Direction, Segment, Result<State, Invalid>)]) -> (State, Numbers) {
    let (mut state, mut numbers) = Numbers::begin(&first);
    for (number, (direction, segment, expected)) in steps.iter().enumerate() {
        let after = numbers.step(state, *direction, segment, true);
        assert_eq!(after, *expected, "step {number}: {direction:?} {segment:?} in {state:?}");
        state = after.unwrap_or(state);
    }
    (state, numbers)
}

const OPENED: [(Direction, Segment, Result<State, Invalid>); 2] = [
    (Reply, segment(SYN | ACK, 500, 101), Ok(State::SynReceived)),
    (Original, segment(ACK, 101, 501), Ok(State::Established)),
];

fn opened(steps: &[(Direction, Segment, Result<State, Invalid>)]) -> (State, Numbers) {
    talk(segment(SYN, 100, 0), &[&OPENED, steps].concat())
}

#[test]
fn a_connection_opens_and_closes() {
    opened(&[
        (Reply, segment(ACK, 501, 101), Ok(State::Established)),
        (Original, segment(FIN | ACK, 101, 501), Ok(State::HalfClosed)),
        (Original, segment(FIN | ACK, 101, 501), Ok(State::HalfClosed)),
        (Reply, segment(ACK, 501, 102), Ok(State::HalfClosed)),
        (Reply, segment(FIN | ACK, 501, 102), Ok(State::Closed)),
        (Original, segment(ACK, 102, 502), Ok(State::Closed)),
    ]);
}

#[test]
fn syns_may_cross_or_come_again() {
    talk(
        segment(SYN, 100, 0),
        &[
            (Original, segment(SYN, 100, 0), Ok(State::SynSent)),
            (Reply, segment(SYN, 500, 0), Ok(State::SynReceived)),
            (Reply, segment(SYN | ACK, 500, 101), Ok(State::SynReceived)),
            (Original, segment(SYN | ACK, 100, 501), Ok(State::Established)),
        ],
    );
    talk(
        segment(SYN, 100, 0),
        &[
            (Original, segment(SYN, 7000, 0), Ok(State::SynSent)),
            (Reply, segment(SYN | ACK, 500, 101), Ok(State::SynSent)),
            (Reply, segment(SYN | ACK, 500, 7001), Ok(State::SynReceived)),
        ],
    );
}

#[test]
fn an_old_acknowledgment_answers_no_syn() {
    talk(
        segment(SYN, 100, 0),
        &[
            (Reply, segment(ACK, 12_345, 999_999), Ok(State::SynSent)),
            (Original, segment(RST, 999_999, 0), Ok(State::SynSent)),
            (Original, segment(SYN, 100, 0), Ok(State::SynSent)),
            (Reply, segment(SYN | ACK, 500, 101), Ok(State::SynReceived)),
        ],
    );
}

#[test]
fn a_refusal_has_to_name_the_syn() {
    let blind = [
        (Reply, segment(RST, 0, 0), Err(Invalid::Sequence)),
        (Reply, segment(RST | ACK, 0, 77_777_777), Err(Invalid::Sequence)),
        (Reply, segment(RST | ACK, 0, 101), Ok(State::Reset)),
    ];
    talk(segment(SYN, 100, 0), &blind);
}

#[test]
fn a_reset_is_believed_within_the_window_only() {
    opened(&[
        (Reply, segment(RST, 500, 0), Err(Invalid::Sequence)),
        (Reply, segment(RST, 501 + 1001, 0), Err(Invalid::Sequence)),
        (Original, segment(RST, 100, 0), Err(Invalid::Sequence)),
        (Original, segment(RST, 101, 0), Ok(State::Reset)),
        (Reply, segment(ACK, 501, 101), Ok(State::Reset)),
    ]);
    opened(&[(Reply, segment(RST, 501 + 1000, 0), Ok(State::Reset))]);
}

#[test]
fn numbers_wrap() {
    talk(
        segment(SYN, u32::MAX, 0),
        &[
            (Reply, segment(SYN | ACK, u32::MAX, 0), Ok(State::SynReceived)),
            (Original, segment(ACK, 0, 0), Ok(State::Established)),
            (Original, segment(ACK, 0, u32::MAX - 5), Ok(State::Established)),
            (Reply, segment(RST, 3, 0), Ok(State::Reset)),
        ],
    );
}

#[test]
fn a_reset_that_cannot_be_judged_is_doubted() {
    let (state, mut numbers) = opened(&[]);
    numbers.outdate(Original);
    let far = segment(RST, 5_000_000, 0);
    assert_eq!(numbers.step(state, Reply, &far, true), Ok(State::Doubted), "what was expected is not known");
    assert_eq!(numbers.step(state, Original, &far, true), Err(Invalid::Sequence), "here it is");
    assert_eq!(numbers.step(state, Original, &far, false), Ok(State::Doubted), "or may not be any more");
    let data = segment(ACK, 101, 501);
    assert_eq!(numbers.step(State::Doubted, Original, &data, true), Ok(State::Established));
    assert_eq!(numbers.step(State::Doubted, Original, &segment(SYN, 1, 0), true), Ok(State::SynSent));
}

#[test]
fn a_closed_connection_opens_anew_from_its_own_side_only() {
    let closed = [
        (Original, segment(FIN | ACK, 101, 501), Ok(State::HalfClosed)),
        (Reply, segment(FIN | ACK, 501, 102), Ok(State::Closed)),
    ];
    let anew = [
        (Original, segment(SYN, 3, 0), Ok(State::SynSent)),
        (Reply, segment(SYN | ACK, 900, 4), Ok(State::SynReceived)),
        (Original, segment(ACK, 4, 901), Ok(State::Established)),
    ];
    opened(&[&closed[..], &anew].concat());
    opened(&[&closed[..], &[(Reply, segment(SYN, 3, 0), Err(Invalid::Ended))]].concat());
}

#[test]
fn a_syn_does_not_disturb_an_open_connection() {
    opened(&[
        (Original, segment(SYN, 9999, 0), Ok(State::Established)),
        (Reply, segment(SYN, 9999, 0), Ok(State::Established)),
        (Reply, segment(RST, 501, 0), Ok(State::Reset)),
    ]);
}

#[test]
fn what_began_unseen_is_half_open_until_the_other_side_is_heard() {
    let (state, _) = talk(
        segment(ACK, 100, 500),
        &[
            (Original, segment(ACK, 200, 500), Ok(State::PickedUp)),
            (Reply, segment(ACK, 500, 200), Ok(State::Established)),
        ],
    );
    assert!(!state.is_half_open());
    assert!(Numbers::begin(&segment(ACK, 100, 500)).0.is_half_open());
    talk(segment(FIN | ACK, 100, 500), &[(Reply, segment(ACK, 500, 101), Ok(State::HalfClosed))]);
}

#[test]
fn flags_that_do_not_go_together_are_refused() {
    for flags in [0, SYN | FIN, SYN | RST, SYN | FIN | ACK] {
        opened(&[(Original, segment(flags, 101, 501), Err(Invalid::Flags))]);
    }
}

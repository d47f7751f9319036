//! The controller on simulated lines.

mod line;

use line::{Control, MBIT, PACKET, World, line};

use super::*;

fn slots() -> Slots {
    Slots::new(Instant::now(), Duration::ZERO)
}

#[test]
fn a_line_is_filled_whatever_it_loses_at_random() {
    for (mbit, rtt, queue, loss) in [
        (100.0, 30, 100.0, 0.0),
        (100.0, 30, 100.0, 0.01),
        (100.0, 30, 100.0, 0.03),
        (1000.0, 1, 20.0, 0.0),
        (1000.0, 20, 20.0, 0.005),
        (10.0, 80, 200.0, 0.02),
        (100.0, 600, 300.0, 0.005),
        (2.0, 40, 200.0, 0.01),
    ] {
        let mut world = World::new(line(mbit, rtt, queue, loss));
        // As many packets as the test has time for.
        let seconds = (1_500.0 / mbit).clamp(2.0, 12.0).max(rtt as f64 / 30.0);
        let start = world.run_one((seconds / 3.0).max(rtt as f64 * 0.02));
        let share = world.run_one(seconds);
        eprintln!("{mbit} Mbit/s, {rtt} ms, {loss}: the first seconds {:.3}, then {share:?}", start.used);
        let possible = 1.0 - loss;
        assert!(share.used > 0.95 * possible, "{mbit} Mbit/s, {rtt} ms, loss {loss}: {share:?}");
        // No more than half of the line's length, what the slack is, and what two acknowledgements are.
        let most = rtt as f64 / 1e3 * 0.6 + 0.010 + 45.0 * PACKET as f64 / (mbit * MBIT);
        assert!(
            share.waited.as_secs_f64() < most,
            "{mbit} Mbit/s, {rtt} ms, loss {loss}: {share:?} of {most}"
        );
        assert!(share.lost < loss + 0.03, "{mbit} Mbit/s, {rtt} ms, loss {loss}: {share:?}");
    }
}

#[test]
fn a_short_queue_is_not_overrun_for_long() {
    for (mbit, rtt, queue) in [
        (100.0, 30, 5.0),
        (50.0, 60, 10.0),
        (400.0, 10, 3.0),
        (2.0, 100, 40.0),
        (1.0, 50, 50.0),
        (10.0, 100, 10.0),
    ] {
        let mut world = World::new(line(mbit, rtt, queue, 0.0));
        world.run(4.0);
        let share = world.run_one(12.0);
        eprintln!("{mbit} Mbit/s, {rtt} ms, queue of {queue} ms: {share:?}");
        assert!(share.used > 0.85, "{mbit} Mbit/s: {share:?}");
        // Two acknowledgements are a good part of a slow line's queue.
        let most = if mbit < 20.0 { 0.12 } else { 0.02 };
        assert!(share.lost < most, "{mbit} Mbit/s: {share:?}");
    }
}

#[test]
fn a_line_that_changes_is_followed() {
    let mut world = World::new(line(100.0, 30, 100.0, 0.005));
    world.run(5.0);
    world.line.rate = 20.0 * MBIT;
    world.run(3.0);
    let share = world.run_one(10.0);
    assert!(share.used > 0.93 && share.lost < 0.05, "slower: {share:?}");
    assert!(share.waited < Duration::from_millis(65), "slower: {share:?}");
    world.line.rate = 200.0 * MBIT;
    world.run(3.0);
    let share = world.run_one(10.0);
    assert!(share.used > 0.93, "faster: {share:?}");
    world.line.round_trip = Duration::from_millis(90);
    world.run(3.0);
    let share = world.run_one(10.0);
    assert!(share.used > 0.9, "longer: {share:?}");
}

#[test]
fn a_line_that_becomes_far_longer_is_full_again_soon() {
    for (mbit, queue) in [(1000.0, 20.0), (100.0, 100.0), (20.0, 200.0)] {
        let mut world = World::new(line(mbit, 1, queue, 0.0));
        world.run(2.0);
        world.line = line(mbit.min(100.0), 30, 100.0, 0.005);
        let first = world.run_one(2.0);
        let then = world.run_one(2.0);
        eprintln!("{mbit} Mbit/s from 1 ms to 30: {first:?}, then {then:?}");
        assert!(first.used > 0.5, "{first:?}");
        assert!(then.used > 0.93, "{then:?}");
        world.line = line(mbit, 1, queue, 0.0);
        world.run(1.0);
        let back = world.run_one(2.0);
        assert!(back.used > 0.93, "{back:?}");
    }
}

#[test]
fn what_is_sent_rarely_does_not_make_the_line_look_slow() {
    let mut world = World::new(line(100.0, 30, 100.0, 0.0));
    world.run(3.0);
    let before = world.flows[0].ours().rate();
    // A thousandth of the line, for half a minute.
    (world.flows[0].supply, world.flows[0].supplied) = (Some(12.5), 0.0);
    world.run(30.0);
    let rate = world.flows[0].ours().rate();
    assert!(rate > before * 0.9, "{rate} of {before}");
    world.flows[0].supply = None;
    world.sends_in(0, 0);
    let share = world.run_one(2.0);
    assert!(share.used > 0.9, "{share:?}");
}

#[test]
fn flows_of_ours_share_a_line() {
    for (mbit, rtt, queue, flows) in
        [(100.0, 30, 100.0, 2), (100.0, 30, 100.0, 6), (100.0, 30, 10.0, 3), (20.0, 80, 50.0, 3)]
    {
        let mut world = World::empty(line(mbit, rtt, queue, 0.001));
        for _ in 0..flows {
            world.add_ours();
            world.run(1.7);
        }
        world.run(10.0);
        let shares = world.run(10.0);
        let used: Vec<f64> = shares.iter().map(|s| s.used).collect();
        let (least, most) = used.iter().fold((f64::MAX, 0.0_f64), |(l, m), u| (l.min(*u), m.max(*u)));
        let waited = shares[0].waited;
        eprintln!("{flows} flows, {mbit} Mbit/s, {rtt} ms, {queue} ms: {shares:?}");
        assert!(used.iter().sum::<f64>() > 0.9, "{used:?}");
        assert!(most < 6.0 * least, "{used:?}");
        assert!(shares.iter().all(|s| s.lost < 0.06), "{shares:?}");
        // The queue does not grow with the number of flows for ever.
        let bound = rtt as f64 / 1e3 * 1.1 + 0.012 + flows as f64 * 25.0 * PACKET as f64 / (mbit * MBIT);
        assert!(waited.as_secs_f64() < bound, "{waited:?} of {bound}");
    }
}

#[test]
fn others_are_left_their_share() {
    for (mbit, rtt, queue) in [(100.0, 30, 100.0), (100.0, 30, 30.0), (100.0, 30, 10.0), (20.0, 60, 60.0)] {
        for (name, other) in [("Reno", Control::reno as fn() -> Control), ("Cubic", Control::cubic)] {
            for ours_first in [true, false] {
                let mut world = World::empty(line(mbit, rtt, queue, 0.0));
                if ours_first {
                    world.add_ours();
                    world.run(3.0);
                }
                world.add(other());
                world.run(3.0);
                if !ours_first {
                    world.add_ours();
                }
                world.run(20.0);
                let shares = world.run(30.0);
                let (ours, theirs) = if ours_first { (shares[0], shares[1]) } else { (shares[1], shares[0]) };
                eprintln!(
                    "{mbit} Mbit/s, {rtt} ms, {queue} ms, {name}, ours first: {ours_first}: {ours:.3?} {theirs:.3?}"
                );
                assert!(ours.used + theirs.used > 0.9, "{ours:?} {theirs:?}");
                // A queue that holds a third of what the line does is short for them even alone.
                let fair = if queue * 2.0 < rtt as f64 { 8.0 } else { 5.0 };
                let (less, more) = (ours.used.min(theirs.used), ours.used.max(theirs.used));
                assert!(more < fair * less, "{name}: {ours:?} {theirs:?}");
            }
        }
    }
}

#[test]
fn after_a_silence_the_window_is_small_and_grows_back() {
    let mut world = World::new(line(100.0, 30, 100.0, 0.0));
    world.run(5.0);
    let before = world.flows[0].ours().window();
    world.flows[0].ours().lost(before, true);
    assert_eq!(world.flows[0].ours().window(), MIN_PACKETS * PACKET);
    world.run(2.0);
    let after = world.flows[0].ours().window();
    assert!(after > before / 2, "{after} of {before}");
    assert!(world.flows[0].ours().sent.len() <= REMEMBERED);
}

#[test]
fn what_is_remembered_is_bounded() {
    let (mut control, start) = (Measuring::new(1_200, slots()), Instant::now());
    for i in 0..100_000 {
        control.sends(start + Duration::from_micros(i));
    }
    assert_eq!(control.sent.len(), REMEMBERED);
    // Acknowledgements of what is forgotten do no harm.
    control.acknowledged(start + Duration::from_secs(1), start, 1_200);
    control.end_of_acknowledgements(start + Duration::from_secs(1), 0, true);
    assert!(control.window() >= MIN_PACKETS * 1_200);
}

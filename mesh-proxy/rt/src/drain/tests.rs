use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

fn config(drain_for: Duration) -> DrainConfig {
    DrainConfig { not_ready_for: Duration::ZERO, drain_for, cancel_for: Duration::from_secs(5) }
}

#[tokio::test]
async fn work_in_flight_finishes_before_the_end() {
    let drain = Drain::new();
    let tasks = Tasks::new(drain.clone());
    let readiness = Readiness::new();
    let done = Arc::new(AtomicBool::new(false));
    let guard = drain.guard();
    let work = {
        let (drain, done) = (drain.clone(), Arc::clone(&done));
        async move {
            drain.stop_accepting().await;
            done.store(true, Ordering::SeqCst);
            drop(guard);
        }
    };
    tasks.spawn("work", work);
    drain.begin(Reason::Signal("SIGTERM"));
    drain.begin(Reason::Requested("too late to be the reason"));
    let report = drain.run(config(Duration::from_secs(3600)), &readiness, &tasks).await;
    assert_eq!(report, DrainReport { reason: Reason::Signal("SIGTERM"), cut_off: 0, stuck: vec![] });
    assert_eq!(report.reason.exit_code(), 0);
    assert!(done.load(Ordering::SeqCst));
    assert!(!readiness.is_ready());
    assert_eq!(drain.stage(), Stage::Cancelled);
}

#[tokio::test]
async fn the_deadline_cuts_off_work_that_does_not_finish() {
    let drain = Drain::new();
    let tasks = Tasks::new(drain.clone());
    let guard = drain.guard();
    tasks.spawn("endless", async move {
        let _guard = guard;
        std::future::pending::<()>().await;
    });
    drain.begin(Reason::Requested("test"));
    let report = drain.run(config(Duration::from_millis(20)), &Readiness::new(), &tasks).await;
    assert_eq!((report.cut_off, report.stuck.len()), (1, 0));
}

#[tokio::test]
async fn a_second_signal_ends_the_drain_at_once() {
    let drain = Drain::new();
    let tasks = Tasks::new(drain.clone());
    let _guard = drain.guard();
    drain.begin(Reason::Signal("SIGINT"));
    let forcer = drain.clone();
    tasks.spawn("second signal", async move {
        forcer.stop_accepting().await;
        forcer.force();
    });
    // Would take an hour without the second signal.
    let report = drain.run(config(Duration::from_secs(3600)), &Readiness::new(), &tasks).await;
    assert_eq!((report.reason, report.cut_off), (Reason::Signal("SIGINT"), 1));
}

#[tokio::test]
async fn a_panic_in_a_critical_task_goes_the_same_way() {
    let drain = Drain::new();
    let tasks = Tasks::new(drain.clone());
    tasks.spawn("harmless", async { panic!("only counted") });
    tasks.spawn_critical("swarm", async { panic!("broken") });
    let report = drain.run(config(Duration::from_secs(3600)), &Readiness::new(), &tasks).await;
    assert_eq!(report.reason, Reason::TaskPanicked("swarm"));
    assert_eq!(report.reason.exit_code(), 1);
    assert_eq!(tasks.stats().panicked, 2);
}

#[tokio::test]
async fn a_critical_task_that_returns_early_ends_the_process_but_not_after_the_drain_began() {
    let drain = Drain::new();
    let tasks = Tasks::new(drain.clone());
    tasks.spawn_critical("listener", async {});
    assert_eq!(drain.begun().await, Reason::TaskEnded("listener"));

    let drain = Drain::new();
    let tasks = Tasks::new(drain.clone());
    let stop = drain.clone();
    tasks.spawn_critical("listener", async move { stop.stop_accepting().await });
    drain.begin(Reason::Signal("SIGTERM"));
    let report = drain.run(config(Duration::from_secs(3600)), &Readiness::new(), &tasks).await;
    assert_eq!(report.reason, Reason::Signal("SIGTERM"));
}

#[tokio::test]
async fn listeners_accept_until_traffic_is_no_longer_led_to_them() {
    let drain = Drain::new();
    let tasks = Tasks::new(drain.clone());
    let hold = drain.hold_accepting();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (watcher, noted) = (drain.clone(), Arc::clone(&seen));
    tasks.spawn("capture", async move {
        watcher.reached(Stage::NotReady).await;
        // Time for the drain to go on, if it did not wait.
        tokio::time::sleep(Duration::from_millis(50)).await;
        noted.lock().unwrap().push(watcher.stage());
        drop(hold);
    });
    drain.begin(Reason::Signal("SIGTERM"));
    let report = drain.run(config(Duration::from_secs(3600)), &Readiness::new(), &tasks).await;
    assert_eq!(*seen.lock().unwrap(), [Stage::NotReady]);
    assert_eq!(report.cut_off, 0);
}

#[tokio::test]
async fn a_last_task_finishes_after_everything_else_was_cancelled() {
    let drain = Drain::new();
    let tasks = Tasks::new(drain.clone());
    let done = Arc::new(AtomicBool::new(false));
    let (watcher, finished) = (drain.clone(), Arc::clone(&done));
    tasks.spawn_last("rules", async move {
        watcher.cancelled().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        finished.store(true, Ordering::SeqCst);
    });
    drain.begin(Reason::Signal("SIGTERM"));
    let report = drain.run(config(Duration::ZERO), &Readiness::new(), &tasks).await;
    assert!(done.load(Ordering::SeqCst));
    assert_eq!((report.reason, report.stuck.len()), (Reason::Signal("SIGTERM"), 0));
}

//! Data workers: each is a thread that gets its seat (listeners, acceptor) once the tunnel knows the threads.

use std::{
    net::{TcpListener, UdpSocket},
    sync::Arc,
    time::Duration,
};

use mesh_tunnel::Acceptor;
use node_rt::{Drain, Workers, start_workers};
use tokio::{
    runtime::Handle,
    sync::{Mutex, mpsc, oneshot},
};

use super::{
    StartError,
    sockets::{ControlSockets, Sockets},
    system,
};
use crate::{
    inbound::Inbound,
    outbound::{self, Listeners},
};

/// Threads that do not come up in this time are no threads.
const START_WAIT: Duration = Duration::from_secs(10);

/// What a worker serves.
struct Seat {
    outbound: Arc<outbound::Shared>,
    inbound: Arc<Inbound>,
    acceptor: Option<Acceptor>,
    captured: Vec<TcpListener>,
    proxy: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

/// Workers that wait for their seats, by number.
pub(super) struct Seats {
    pub(super) handles: Vec<Handle>,
    waiting: Vec<oneshot::Sender<Seat>>,
}

/// Starts the threads. They wait for [`seat`].
pub(super) async fn start(count: usize, drain: &Drain) -> Result<(Workers, Seats), StartError> {
    let (say, mut heard) = mpsc::channel::<(usize, Handle)>(count.max(1));
    let (mut waiting, mut seats) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let (give, take) = oneshot::channel();
        waiting.push(give);
        seats.push(Some(take));
    }
    let seats = Arc::new(Mutex::new(seats));
    let end = drain.clone();
    let workers = start_workers(count, "worker", drain, move |index| {
        let (say, seats, end) = (say.clone(), seats.clone(), end.clone());
        async move {
            let _receiver_gone = say.send((index, Handle::current())).await;
            drop(say);
            let seat = seats.lock().await.get_mut(index).and_then(Option::take);
            match seat {
                Some(seat) => match seat.await {
                    Ok(seat) => run(seat, end).await,
                    // The start failed elsewhere, and that is said there.
                    Err(_) => end.cancelled().await,
                },
                None => end.cancelled().await,
            }
        }
    })
    .map_err(system("worker threads"))?;
    let mut handles = vec![None; count];
    for _ in 0..count {
        let Ok(Some((index, handle))) = tokio::time::timeout(START_WAIT, heard.recv()).await else {
            return Err(system("worker threads")(std::io::ErrorKind::TimedOut.into()));
        };
        handles[index] = Some(handle);
    }
    Ok((workers, Seats { handles: handles.into_iter().flatten().collect(), waiting }))
}

/// Gives every worker its part. Listeners beyond the number of workers go round. What is left is the control side's.
pub(super) fn seat(
    seats: Seats,
    outbound: Arc<outbound::Shared>,
    inbound: Arc<Inbound>,
    acceptors: Vec<Acceptor>,
    sockets: Sockets,
) -> ControlSockets {
    let count = seats.waiting.len();
    let mut parts: Vec<_> = (0..count)
        .map(|_| Seat {
            outbound: outbound.clone(),
            inbound: inbound.clone(),
            acceptor: None,
            captured: Vec::new(),
            proxy: Vec::new(),
            udp: Vec::new(),
        })
        .collect();
    for (i, acceptor) in acceptors.into_iter().enumerate().take(count) {
        parts[i].acceptor = Some(acceptor);
    }
    for (i, l) in sockets.captured.into_iter().enumerate() {
        parts[i % count].captured.push(l);
    }
    for (i, l) in sockets.proxy.into_iter().enumerate() {
        parts[i % count].proxy.push(l);
    }
    for (i, socket) in sockets.datagrams.into_iter().enumerate() {
        parts[i % count].udp.push(socket);
    }
    for (give, part) in seats.waiting.into_iter().zip(parts) {
        // A worker that is gone has begun the drain.
        let _worker_gone = give.send(part);
    }
    sockets.control
}

async fn run(seat: Seat, drain: Drain) {
    if let Some(acceptor) = seat.acceptor {
        tokio::task::spawn_local(seat.inbound.run(acceptor, drain.clone()));
    }
    let listeners = Listeners {
        captured: to_tokio(seat.captured),
        proxy: to_tokio(seat.proxy),
        udp: seat.udp,
        ..Listeners::default()
    };
    outbound::Worker::run(seat.outbound, listeners, drain).await;
}

fn to_tokio(list: Vec<TcpListener>) -> Vec<tokio::net::TcpListener> {
    list.into_iter()
        .filter_map(|l| match tokio::net::TcpListener::from_std(l) {
            Ok(l) => Some(l),
            Err(error) => {
                tracing::error!(%error, "listener cannot be used");
                None
            }
        })
        .collect()
}

//! A line between a node and another: a forwarder of datagrams with a delay, which can be cut.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    sync::mpsc::{self, Sender},
    task::{JoinHandle, JoinSet},
    time::Instant,
};

/// Datagrams under way at once, each way; what is beyond is lost, as on a router.
const QUEUE: usize = 4096;

/// Cuts a line: from those who dial, and back to them.
#[derive(Clone)]
pub struct Switch(Arc<State>);

struct State {
    cut: [AtomicBool; 2],
    /// Longer datagrams are dropped without a word, in both directions.
    longest: AtomicUsize,
    /// So many more from those who dial are lost.
    losing: AtomicUsize,
}

impl Switch {
    pub fn set(&self, cut: [bool; 2]) {
        for (flag, cut) in self.0.cut.iter().zip(cut) {
            flag.store(cut, Relaxed);
        }
    }

    /// From now on only datagrams up to this length pass.
    pub fn squeeze(&self, longest: usize) {
        self.0.longest.store(longest, Relaxed);
    }

    /// The next datagrams from those who dial are lost.
    pub fn lose(&self, count: usize) {
        self.0.losing.store(count, Relaxed);
    }

    fn passes(&self, direction: usize, length: usize) -> bool {
        let less = |left: usize| left.checked_sub(1);
        let losing = &self.0.losing;
        if direction == 0 && losing.fetch_update(Relaxed, Relaxed, less).is_ok() {
            return false;
        }
        !self.0.cut[direction].load(Relaxed) && length <= self.0.longest.load(Relaxed)
    }
}

/// Forwards between those who send to [`Line::address`] and one target.
pub struct Line {
    address: SocketAddr,
    switch: Switch,
    task: JoinHandle<()>,
}

impl Line {
    pub async fn new(target: SocketAddr, one_way: Duration) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = front.local_addr().unwrap();
        let switch = Switch(Arc::new(State {
            cut: [AtomicBool::new(false), AtomicBool::new(false)],
            longest: AtomicUsize::new(usize::MAX),
            losing: AtomicUsize::new(0),
        }));
        let task = tokio::spawn(forward(front, target, one_way, switch.clone()));
        Self {
            address,
            switch,
            task,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn switch(&self) -> Switch {
        self.switch.clone()
    }

    pub fn cut(&self) {
        self.switch.set([true, true]);
    }

    pub fn mend(&self) {
        self.switch.set([false, false]);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Datagram = (Instant, Vec<u8>);

async fn forward(front: Arc<UdpSocket>, target: SocketAddr, one_way: Duration, switch: Switch) {
    let mut guests: HashMap<SocketAddr, Sender<Datagram>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((length, from)) = front.recv_from(&mut buffer).await else {
            continue;
        };
        let there = match guests.get(&from) {
            Some(there) => there,
            None => {
                let there = welcome(&mut tasks, &front, from, target, one_way, &switch).await;
                guests.entry(from).or_insert(there)
            }
        };
        if switch.passes(0, length) {
            let due = Instant::now() + one_way;
            let _ = there.try_send((due, buffer[..length].to_vec()));
        }
    }
}

/// A socket for somebody new; what is put in goes out of it.
async fn welcome(
    tasks: &mut JoinSet<()>,
    front: &Arc<UdpSocket>,
    from: SocketAddr,
    target: SocketAddr,
    one_way: Duration,
    switch: &Switch,
) -> Sender<Datagram> {
    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let (there, outgoing) = mpsc::channel(QUEUE);
    let (here, incoming) = mpsc::channel(QUEUE);
    tasks.spawn(deliver(back.clone(), target, outgoing));
    tasks.spawn(deliver(front.clone(), from, incoming));
    let switch = switch.clone();
    tasks.spawn(async move {
        let mut buffer = vec![0; 65_536];
        loop {
            let Ok(length) = back.recv(&mut buffer).await else {
                continue;
            };
            if switch.passes(1, length) {
                let due = Instant::now() + one_way;
                let _ = here.try_send((due, buffer[..length].to_vec()));
            }
        }
    });
    there
}

async fn deliver(socket: Arc<UdpSocket>, to: SocketAddr, mut datagrams: mpsc::Receiver<Datagram>) {
    while let Some((due, datagram)) = datagrams.recv().await {
        // The timer's grain is a millisecond: what is nearly due goes at once.
        if due > Instant::now() + Duration::from_micros(500) {
            tokio::time::sleep_until(due).await;
        }
        let _ = socket.send_to(&datagram, to).await;
    }
}

//! Wires between nodes that can be cut, or be narrow: each node's peer address is a proxy in front of it, which knows by
//! the process behind a connection who dials.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;

/// The proxies of a cluster. Dropped, they end.
pub(crate) struct Wires {
    wires: Vec<Wire>,
    /// The process whose wires are not as they should be.
    trouble: watch::Sender<Option<(u32, Trouble)>>,
}

#[derive(Clone, Copy)]
enum Trouble {
    /// Nothing comes to it or from it.
    Cut,
    /// So many bytes in a second leave it on each wire.
    Narrow(u64),
}

/// What becomes of the bytes of one direction of a wire.
#[derive(Clone, Copy)]
enum Fate {
    Passes,
    Stays,
    Paced(u64),
}

struct Wire {
    address: SocketAddr,
    target: Arc<Mutex<Option<SocketAddr>>>,
    task: AbortHandle,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wires {
    /// Proxies that lead nowhere yet.
    pub(crate) async fn lay(count: usize) -> Self {
        let trouble = watch::Sender::new(None);
        let mut wires = Vec::new();
        for _ in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let target = Arc::new(Mutex::new(None));
            let serve = serve(listener, Arc::clone(&target), trouble.subscribe());
            wires.push(Wire { address, target, task: tokio::spawn(serve).abort_handle() });
        }
        Self { wires, trouble }
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.wires.iter().map(|wire| wire.address).collect()
    }

    /// Connects a proxy with what is behind it.
    pub(crate) fn lead_to(&self, wire: usize, target: SocketAddr) {
        *self.wires[wire].target.lock().unwrap() = Some(target);
    }

    /// From now on nothing comes to this process or from it; nobody is told.
    pub(crate) fn cut(&self, process: u32) {
        self.trouble.send_replace(Some((process, Trouble::Cut)));
    }

    /// From now on so many bytes in a second leave this process on each wire.
    pub(crate) fn narrow(&self, process: u32, rate: u64) {
        self.trouble.send_replace(Some((process, Trouble::Narrow(rate))));
    }
}

async fn serve(
    listener: TcpListener,
    target: Arc<Mutex<Option<SocketAddr>>>,
    trouble: watch::Receiver<Option<(u32, Trouble)>>,
) {
    while let Ok((stream, dialler)) = listener.accept().await {
        let Some(target) = *target.lock().unwrap() else { continue };
        let trouble = trouble.clone();
        tokio::spawn(async move {
            let Ok(there) = TcpStream::connect(target).await else { return };
            let ((read, write), (read_there, write_there)) =
                (stream.into_split(), there.into_split());
            let fate = |from, to| {
                let trouble = trouble.clone();
                move || trouble.borrow().map(|trouble| fate(trouble, from, to))
            };
            tokio::join!(
                carry(read, write_there, fate(dialler, target)),
                carry(read_there, write, fate(target, dialler))
            );
        });
    }
}

fn fate((process, trouble): (u32, Trouble), from: SocketAddr, to: SocketAddr) -> Fate {
    match trouble {
        Trouble::Cut if owns(process, from) || owns(process, to) => Fate::Stays,
        Trouble::Narrow(rate) if owns(process, from) => Fate::Paced(rate),
        _ => Fate::Passes,
    }
}

/// Carries bytes one way. Whose sockets they are is looked at once.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, look: impl Fn() -> Option<Fate>) {
    let mut bytes = vec![0; 16 << 10];
    let mut fate = None;
    loop {
        let Ok(count) = from.read(&mut bytes).await else { return };
        fate = fate.or_else(&look);
        match fate {
            Some(Fate::Stays) => std::future::pending::<()>().await,
            Some(Fate::Paced(rate)) => {
                sleep(Duration::from_secs_f64(count as f64 / rate as f64)).await;
            }
            Some(Fate::Passes) | None => {}
        }
        if count == 0 || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

/// Whether a socket with this local address belongs to a process.
fn owns(process: u32, local: SocketAddr) -> bool {
    let port = format!("0100007F:{:04X}", local.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let mut inodes = table.lines().filter_map(|line| {
        let fields = line.split_whitespace().collect::<Vec<_>>();
        (*fields.get(1)? == port).then(|| format!("socket:[{}]", fields.get(9).unwrap_or(&"")))
    });
    inodes.any(|inode| {
        let files = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten();
        files.flatten().any(|file| {
            std::fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == inode.as_str())
        })
    })
}

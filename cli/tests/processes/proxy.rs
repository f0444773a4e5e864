//! Wires between nodes that can be cut: each node's peer address is a proxy in front of it, which knows by the process
//! behind a connection who dials.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// The proxies of a cluster. Dropped, they end.
pub(crate) struct Wires {
    wires: Vec<Wire>,
    /// The process that is cut off.
    cut: watch::Sender<Option<u32>>,
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
        let cut = watch::Sender::new(None);
        let mut wires = Vec::new();
        for _ in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let target = Arc::new(Mutex::new(None));
            let serve = serve(listener, Arc::clone(&target), cut.subscribe());
            wires.push(Wire { address, target, task: tokio::spawn(serve).abort_handle() });
        }
        Self { wires, cut }
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
        self.cut.send_replace(Some(process));
    }
}

async fn serve(
    listener: TcpListener,
    target: Arc<Mutex<Option<SocketAddr>>>,
    cut: watch::Receiver<Option<u32>>,
) {
    while let Ok((stream, dialler)) = listener.accept().await {
        let Some(target) = *target.lock().unwrap() else { continue };
        let cut = cut.clone();
        tokio::spawn(async move {
            let Ok(there) = TcpStream::connect(target).await else { return };
            let is_cut =
                move || cut.borrow().map(|process| owns(process, dialler) || owns(process, target));
            let ((read, write), (read_there, write_there)) =
                (stream.into_split(), there.into_split());
            tokio::join!(
                carry(read, write_there, is_cut.clone()),
                carry(read_there, write, is_cut)
            );
        });
    }
}

/// Carries bytes one way; those of a wire that is cut stay where they are. Whose sockets they are is looked at once.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, is_cut: impl Fn() -> Option<bool>) {
    let mut bytes = vec![0; 64 << 10];
    let mut verdict = None;
    loop {
        let Ok(count) = from.read(&mut bytes).await else { return };
        verdict = verdict.or_else(&is_cut);
        if verdict == Some(true) {
            std::future::pending::<()>().await;
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

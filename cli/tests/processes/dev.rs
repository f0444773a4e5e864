//! `trefoil dev`: three nodes that end with it, and the same ones again from the same directory.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use serde_json::Value as Json;
use tempfile::TempDir;
use trefoil_client::Client;

use crate::support::{TREFOIL, alone, clean, eventually, free_ports, is_alive, pid};

struct Dev {
    process: Child,
    told: Json,
}

impl Dev {
    /// Starts it and reads what it says when all is ready.
    fn start(data_dir: &Path, listen: &str) -> Self {
        let mut command = Command::new(TREFOIL);
        clean(&mut command)
            .args(["dev", "-o", "json", "--listen", listen, "--data-dir"])
            .arg(data_dir);
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = process.stdout.take().unwrap();
        let mut text = Vec::new();
        // One document and no end of file: read until it is whole.
        let told = loop {
            let mut byte = [0];
            assert!(
                out.read(&mut byte).unwrap() > 0,
                "it ended: {}",
                String::from_utf8_lossy(&text)
            );
            text.push(byte[0]);
            if byte[0] == b'}'
                && let Ok(told) = serde_json::from_slice(&text)
            {
                break told;
            }
        };
        Self { process, told }
    }

    fn endpoints(&self) -> Vec<String> {
        let nodes = self.told["nodes"].as_array().unwrap();
        nodes.iter().map(|node| node["endpoint"].as_str().unwrap().to_owned()).collect()
    }

    fn pids(&self) -> Vec<u32> {
        let nodes = self.told["nodes"].as_array().unwrap();
        nodes.iter().map(|node| u32::try_from(node["pid"].as_u64().unwrap()).unwrap()).collect()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[tokio::test]
async fn its_nodes_end_with_it_and_their_data_stays() {
    let _alone = alone().await;
    let dir = TempDir::new().unwrap();
    let listen = free_ports(3).iter().map(ToString::to_string).collect::<Vec<_>>().join(",");

    let mut dev = Dev::start(dir.path(), &listen);
    assert_eq!(
        dev.endpoints().join(","),
        listen.split(',').map(|address| format!("http://{address}")).collect::<Vec<_>>().join(",")
    );
    assert_eq!(dev.told["grpcurl"].as_array().map(Vec::len), Some(4));
    let client = Client::connect(dev.endpoints()).await.unwrap();
    client.cache().put("k", "v").await.unwrap();
    let pids = dev.pids();
    assert!(pids.iter().all(|pid| is_alive(*pid)));

    // kill -9: the nodes see their pipe close.
    dev.process.kill().unwrap();
    dev.process.wait().unwrap();
    eventually("all nodes have ended", async || pids.iter().all(|pid| !is_alive(*pid))).await;

    let mut dev = Dev::start(dir.path(), &listen);
    let client = Client::connect(dev.endpoints()).await.unwrap();
    let entry = client.cache().get("k").await.unwrap().expect("what was acknowledged is there");
    assert_eq!(entry.value.as_text(), Some("v"));

    // A node that dies is no reason to stop.
    let pids = dev.pids();
    kill_process(pid(pids[0]), Signal::KILL).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(dev.process.try_wait().unwrap(), None);
    client.cache().put("k", "w").await.unwrap();

    kill_process(pid(dev.process.id()), Signal::TERM).unwrap();
    assert_eq!(dev.process.wait().unwrap().code(), Some(0));
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
}

//! Sizes of a disk.

/// Sizes of a disk.
#[derive(Clone, Copy, Debug)]
pub struct DiskOptions {
    /// Bytes of a segment of the log.
    pub segment_bytes: u64,
    /// Whether state files are the real ones.
    pub real_state: bool,
    /// How long the state that is on a new disk knows an idle request client; 0 for the limit.
    pub request_client_idle_ms: u64,
}

//! The bounds of messages, in bytes.

use trefoil_core::limits::{BATCH_BYTES_MAX, FRAME_BYTES_MAX, REQUEST_BYTES_MAX, VALUE_BYTES_MAX};

/// Bytes of a message beside the values in it: names, headers, lengths.
pub(super) const OVERHEAD_BYTES: usize = 64 << 10;
pub(super) const REQUEST_MAX: usize = REQUEST_BYTES_MAX + OVERHEAD_BYTES;
/// A Dequeue asks no further shard once it has a batch; the last shard's batch comes on top, and may be one message.
pub(super) const RESPONSE_MAX: usize = 2 * BATCH_BYTES_MAX + VALUE_BYTES_MAX + OVERHEAD_BYTES;
/// A frame is closed once it has reached its size: the last reply comes on top.
pub(super) const FRAME_RESPONSE_MAX: usize = FRAME_BYTES_MAX + RESPONSE_MAX;

/// Messages that a client of Trefoil must be ready to receive, in bytes.
pub const RESPONSE_BYTES_MAX: usize = FRAME_RESPONSE_MAX;

/// Bounds what a service takes and gives.
macro_rules! bounded {
    ($service:expr) => {
        bounded!($service, REQUEST_MAX, RESPONSE_MAX)
    };
    ($service:expr, $request:expr, $response:expr) => {
        $service
            .max_decoding_message_size($request)
            .max_encoding_message_size($response)
            .accept_compressed(tonic::codec::CompressionEncoding::Gzip)
    };
}
pub(super) use bounded;

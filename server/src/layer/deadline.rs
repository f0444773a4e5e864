//! How long a caller waits, as the header `grpc-timeout` says.

use std::time::Duration;

use http::{HeaderMap, Request};
use tower::util::MapRequestLayer;

use crate::layer::CallTimeout;

/// Notes the timeout of a request for its handler.
pub(super) fn layer<B>() -> MapRequestLayer<fn(Request<B>) -> Request<B>> {
    MapRequestLayer::new(note)
}

fn note<B>(mut request: Request<B>) -> Request<B> {
    if let Some(timeout) = timeout(request.headers()) {
        request.extensions_mut().insert(CallTimeout(timeout));
    }
    request
}

/// The timeout of a request: at most 8 digits and a unit (PROTOCOL-HTTP2.md of gRPC). Anything else says nothing.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse::<u64>().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3_600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_protocol_allows_is_a_timeout() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            timeout(&headers)
        };
        assert_eq!(of("5S"), Some(Duration::from_secs(5)));
        assert_eq!(of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(of("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        for text in ["", "S", "5", "5s", "-5S", "+5S", "123456789S", "5 S"] {
            assert_eq!(of(text), None, "{text:?}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }
}

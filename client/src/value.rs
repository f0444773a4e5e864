//! Values: what a program stores and gets back.

use bytes::Bytes;
use trefoil_proto::common::v1::{Value as Wire, value::Kind};

/// Bytes, or text that other tools show as it was typed. At most 1 MiB.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// Any bytes.
    Data(Bytes),
    /// UTF-8 text.
    Text(String),
}

impl Value {
    /// The bytes, of text too.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Data(data) => data,
            Self::Text(text) => text.as_bytes(),
        }
    }

    /// The text, where it is text.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Data(_) => None,
            Self::Text(text) => Some(text),
        }
    }
}

impl Default for Value {
    fn default() -> Self {
        Self::Data(Bytes::new())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<&String> for Value {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<&[u8]> for Value {
    fn from(data: &[u8]) -> Self {
        Self::Data(Bytes::copy_from_slice(data))
    }
}

impl<const N: usize> From<&[u8; N]> for Value {
    fn from(data: &[u8; N]) -> Self {
        Self::from(&data[..])
    }
}

impl From<&Vec<u8>> for Value {
    fn from(data: &Vec<u8>) -> Self {
        Self::from(&data[..])
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Bytes> for Value {
    fn from(data: Bytes) -> Self {
        Self::Data(data)
    }
}

impl From<Vec<u8>> for Value {
    fn from(data: Vec<u8>) -> Self {
        Self::Data(data.into())
    }
}

impl From<Value> for Wire {
    fn from(value: Value) -> Self {
        let kind = match value {
            Value::Data(data) => Kind::Data(data),
            Value::Text(text) => Kind::Text(text),
        };
        Self { kind: Some(kind) }
    }
}

impl From<Option<Wire>> for Value {
    fn from(wire: Option<Wire>) -> Self {
        match wire.and_then(|wire| wire.kind) {
            Some(Kind::Data(data)) => Self::Data(data),
            Some(Kind::Text(text)) => Self::Text(text),
            None => Self::default(),
        }
    }
}

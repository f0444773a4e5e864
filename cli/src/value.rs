//! Values: as an argument gives them, and as results show them.

use std::fmt::{self, Display, Formatter};
use std::io::Read as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use trefoil_client::Value;
use trefoil_core::limits::VALUE_BYTES_MAX;

use crate::exit::CommandFailure;

/// The value of an argument, or standard input for "-".
pub(crate) fn given(value: String) -> Result<Value, CommandFailure> {
    if value == "-" { read(std::io::stdin().lock()) } else { Ok(value.into()) }
}

/// Whatever comes, it is read no further than a value may be long.
fn read(from: impl std::io::Read) -> Result<Value, CommandFailure> {
    let most = u64::try_from(VALUE_BYTES_MAX).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    let read = from.take(most + 1).read_to_end(&mut bytes);
    read.map_err(|error| CommandFailure::new(format!("cannot read standard input: {error}")))?;
    if bytes.len() > VALUE_BYTES_MAX {
        let what = format!("standard input is longer than a value may be: {VALUE_BYTES_MAX} bytes");
        return Err(CommandFailure::usage(what));
    }
    Ok(bytes.into())
}

/// A value as JSON has it in the contract: `{"text": ".."}`, or `{"data": ".."}` in base64.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ShownValue {
    Text(String),
    #[serde(serialize_with = "base64")]
    Data(Vec<u8>),
}

fn base64<S: serde::Serializer>(data: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64_STANDARD.encode(data))
}

impl From<&Value> for ShownValue {
    fn from(value: &Value) -> Self {
        match value {
            Value::Text(text) => Self::Text(text.clone()),
            Value::Data(data) => Self::Data(data.to_vec()),
        }
    }
}

/// For people: bytes as text where they are UTF-8, else as `\xff`.
impl Display for ShownValue {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        let bytes = match self {
            Self::Text(text) => return to.write_str(text),
            Self::Data(data) => data,
        };
        for chunk in bytes.utf8_chunks() {
            to.write_str(chunk.valid())?;
            chunk.invalid().iter().try_for_each(|byte| write!(to, "\\x{byte:02x}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails says where")]

    use super::*;

    #[test]
    fn bytes_are_whole_in_json_and_readable_for_people() {
        let value = ShownValue::from(&Value::from(vec![b'a', 0xff, b'b']));
        assert_eq!(serde_json::to_string(&value).unwrap(), r#"{"data":"Yf9i"}"#);
        assert_eq!(value.to_string(), r"a\xffb");
        let value = ShownValue::from(&Value::from("ä"));
        assert_eq!(serde_json::to_string(&value).unwrap(), r#"{"text":"ä"}"#);
        assert_eq!(value.to_string(), "ä");
    }

    #[test]
    fn no_more_is_read_than_a_value_may_have() {
        let most = vec![0; VALUE_BYTES_MAX];
        assert_eq!(read(&most[..]).unwrap().as_bytes(), most);
        assert!(read(std::io::repeat(0)).is_err(), "without end");
    }
}

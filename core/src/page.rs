//! Tokens of pages: the last item of a page, and of which list that page is.

use trefoil_proto::internal::v1::Refusal;
use xxhash_rust::xxh3::xxh3_64;

use trefoil_proto::reason::invalid;

use crate::limits::NAME_BYTES_MAX;

/// Hexadecimal digits before the last item.
const DIGITS: usize = 16;

/// A list whose pages are read one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListId(u64);

impl ListId {
    /// The list of the records whose keys begin like this: the key names what is listed, namespace and prefix.
    pub(crate) fn of(prefix: &[u8]) -> Self {
        Self(xxh3_64(prefix))
    }

    /// Where the page after this item begins.
    pub(crate) fn token(self, last: &str) -> String {
        format!("{:016x}{last}", self.0)
    }

    /// The item after which a page begins; none for the first page.
    pub(crate) fn after(self, token: &str) -> Result<Option<&str>, Refusal> {
        if token.is_empty() {
            return Ok(None);
        }
        let last = token.strip_prefix(&self.token(""));
        last.map(Some).ok_or_else(|| invalid("page_token", "that of a page of this list"))
    }
}

/// Whether a text could be a token at all.
pub(crate) fn check(token: &str) -> Result<(), Refusal> {
    let list = token.get(..DIGITS).filter(|_| token.len() <= DIGITS + NAME_BYTES_MAX);
    let is_token = list.is_some_and(|list| list.bytes().all(|digit| digit.is_ascii_hexdigit()));
    if token.is_empty() || is_token {
        Ok(())
    } else {
        Err(invalid("page_token", "the next_page_token of a page"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_list_alone() {
        let (one, other) = (ListId::of(b"locks of a"), ListId::of(b"locks of b"));
        for last in ["", "x", "ä", "0123456789abcdef"] {
            let token = one.token(last);
            assert_eq!(check(&token), Ok(()));
            assert_eq!(one.after(&token), Ok(Some(last)));
            assert!(other.after(&token).is_err());
        }
        assert_eq!(one.after(""), Ok(None));
        for text in ["x", "0123456789abcde", "0123456789abcdeäx", "0123456789abcdeg"] {
            assert!(check(text).is_err() && one.after(text).is_err(), "{text}");
        }
        assert!(check(&one.token(&"x".repeat(256))).is_err());
    }
}

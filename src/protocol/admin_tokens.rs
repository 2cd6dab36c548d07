//! Operators' tokens (`ADMIN_TOKEN`, PROTOCOL 5). Owns their form and their comparison; which requests need one is left
//! to `operations::admin`.

use openssl::memcmp;
use openssl::sha::sha256;

use crate::limits::{ADMIN_TOKEN_BYTES_MIN, ADMIN_TOKEN_NAME_BYTES_MAX, ADMIN_TOKENS_MAX};

/// The name of a token that is given without one.
const DEFAULT_NAME: &str = "admin";

/// The tokens that operators may use, by the names that the log gives their owners. They are kept as digests.
#[derive(Clone)]
pub struct AdminTokens(Box<[NamedDigest]>);

#[derive(Clone)]
struct NamedDigest {
    name: Box<str>,
    digest: [u8; 32],
}

/// Only the names print.
impl std::fmt::Debug for AdminTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|token| &token.name)).finish()
    }
}

impl AdminTokens {
    /// Parses `name:token` entries with commas between; an entry without a colon is a token named `admin`. `None` if an
    /// entry has another form, a name occurs twice, or there are too many.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut tokens: Vec<NamedDigest> = Vec::new();
        for entry in text.split(',').map(str::trim) {
            let (name, token) = entry.split_once(':').unwrap_or((DEFAULT_NAME, entry));
            let is_new = tokens.iter().all(|other| *other.name != *name);
            if !is_name(name) || !is_token(token) || !is_new || tokens.len() == ADMIN_TOKENS_MAX {
                return None;
            }
            tokens.push(NamedDigest { name: name.into(), digest: sha256(token.as_bytes()) });
        }
        Some(Self(tokens.into()))
    }

    /// The name of a token; `None` if it is none of these. How long the answer takes tells nothing about the tokens:
    /// all digests are compared, each in constant time.
    #[must_use]
    pub fn name_of(&self, token: &[u8]) -> Option<&str> {
        let digest = sha256(token);
        let mut found = None;
        for known in &self.0 {
            if memcmp::eq(&known.digest, &digest) {
                found = Some(&*known.name);
            }
        }
        found
    }
}

fn is_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    (1..=ADMIN_TOKEN_NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_plain)
}

fn is_token(text: &str) -> bool {
    text.len() >= ADMIN_TOKEN_BYTES_MIN && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_has_its_name_and_one_without_is_admin() {
        let tokens = AdminTokens::parse("ada:0123456789abcdef, bot.1:abc:defgh:ijklmnop,fedcba9876543210").unwrap();
        assert_eq!(tokens.name_of(b"0123456789abcdef"), Some("ada"));
        assert_eq!(tokens.name_of(b"abc:defgh:ijklmnop"), Some("bot.1"), "the first colon ends the name");
        assert_eq!(tokens.name_of(b"fedcba9876543210"), Some("admin"));
        for wrong in ["", "ada", "0123456789abcde", "0123456789abcdef ", "0123456789abcdeF"] {
            assert_eq!(tokens.name_of(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(format!("{tokens:?}"), r#"["ada", "bot.1", "admin"]"#);
    }

    #[test]
    fn a_list_with_a_fault_is_no_list() {
        let many = (0..=ADMIN_TOKENS_MAX).map(|number| format!("n{number}:0123456789abcdef")).collect::<Vec<_>>();
        for wrong in [
            "",
            "short",
            "ada:0123456789abcde",
            ":0123456789abcdef",
            "a b:0123456789abcdef",
            "ada:0123456789abcdef,",
            "ada:0123456789abcdef,ada:fedcba9876543210",
            "ada:0123456789 bcdef",
            "ada:0123456789abcdé",
            &many.join(","),
        ] {
            assert!(AdminTokens::parse(wrong).is_none(), "{wrong}");
        }
        assert!(AdminTokens::parse(&many[1..].join(",")).is_some());
    }
}

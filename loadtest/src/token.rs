//! Valid and invalid tokens, made by RFC 7515 and RFC 7519 without the gateway's library.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

/// The secret of every pod, unless its test sets another.
pub const SECRET: &str = "a secret for the tests, and long enough for HS256";

/// The user of [`good`] tokens.
pub const USER: &str = "user-1";

/// A token for [`USER`] that allows all assessments and does not expire.
#[must_use]
pub fn good() -> String {
    signed(&json!({ "userId": USER }))
}

/// A token with these claims, signed with [`SECRET`].
#[must_use]
pub fn signed(claims: &Value) -> String {
    signed_with(SECRET.as_bytes(), &json!({ "alg": "HS256", "typ": "JWT" }), claims)
}

/// A token with this header, these claims and an HMAC-SHA256 signature, whatever the header says.
///
/// # Panics
/// Never: HMAC accepts keys of any length.
#[must_use]
pub fn signed_with(secret: &[u8], header: &Value, claims: &Value) -> String {
    let signed = format!("{}.{}", part(header), part(claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length");
    mac.update(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

/// A token without a signature (`alg: none`).
#[must_use]
pub fn unsigned(claims: &Value) -> String {
    format!("{}.{}.", part(&json!({ "alg": "none" })), part(claims))
}

/// Seconds since the Unix epoch plus `seconds`, for `exp` and `nbf`.
///
/// # Panics
/// If the clock is before 1970.
#[must_use]
pub fn in_seconds(seconds: f64) -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64() + seconds
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_rfc_7515_appendix_a_1() {
        let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
        let signed = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
                      eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        let mut mac = Hmac::<Sha256>::new_from_slice(&URL_SAFE_NO_PAD.decode(key).unwrap()).unwrap();
        mac.update(signed.as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
        assert_eq!(signature, "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
    }
}

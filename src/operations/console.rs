//! The console page at `/`: one file without outside resources, and the policy under which a browser runs it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openssl::sha::sha256;

/// The page.
pub(crate) const PAGE: &str = include_str!("console.html");

/// The page's `Content-Security-Policy`: its own inline script and style by their hashes, WebSocket connections (to the
/// pods that it is redirected to), and nothing else.
#[must_use]
pub(crate) fn policy() -> String {
    policy_for(PAGE)
}

fn policy_for(page: &str) -> String {
    let scripts = sources(page, "script");
    let styles = sources(page, "style");
    format!(
        "default-src 'none'; script-src {scripts}; style-src {styles}; img-src data:; connect-src 'self' ws: wss:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// The hashes of a page's inline elements of one kind, as a policy's sources.
fn sources(page: &str, element: &str) -> String {
    let (open, close) = (format!("<{element}"), format!("</{element}>"));
    let mut hashes = Vec::new();
    let mut rest = page;
    while let Some((_, after)) = rest.split_once(&open) {
        let Some((_, body)) = after.split_once('>') else { break };
        let Some((inline, after)) = body.split_once(&close) else { break };
        hashes.push(format!("'sha256-{}'", STANDARD.encode(sha256(inline.as_bytes()))));
        rest = after;
    }
    if hashes.is_empty() { "'none'".to_owned() } else { hashes.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_may_run_its_own_script_and_style_and_no_other() {
        let page = "<style>p{}</style><script type=\"module\">alert('Hello, world.');</script>";
        let policy = policy_for(page);
        // The example of Content Security Policy Level 3, section 8.3 has this hash for this script.
        assert!(policy.contains("script-src 'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng=';"), "{policy}");
        assert!(policy.contains("style-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert!(policy_for("<p>").contains("script-src 'none'; style-src 'none';"));
    }

    #[test]
    fn the_page_needs_nothing_that_its_policy_forbids() {
        for forbidden in [" src=", " style=", " onclick=", " onload=", "javascript:"] {
            assert!(!PAGE.contains(forbidden), "the console page has {forbidden:?}");
        }
    }
}

//! The key sets of all identity providers, each replaced as a whole while tokens are checked, and the check of one
//! token by them. A check goes by one set as it was at one moment.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::algorithm::PublicKeyAlgorithm;
use super::key_set::{KeySet, KeySetFault, Unconfirmed};
use super::{ClaimRules, Grant, Parts, Unauthorized, claims};
use crate::clock::UnixMs;

/// The key sets of identity providers. Threads read them while another one replaces one.
#[derive(Debug, Default)]
pub struct KeySets(Box<[IssuerKeys]>);

/// The key set of one issuer, or of all.
#[derive(Debug)]
struct IssuerKeys {
    /// Whose tokens it confirms; `None`: anyone's.
    issuer: Option<Box<str>>,
    /// `None` until it was read for the first time.
    newest: ArcSwapOption<Edition>,
}

/// A set as it was read at some time.
#[derive(Debug)]
struct Edition {
    number: u64,
    keys: KeySet,
}

impl KeySets {
    /// Places for one set each, of these issuers.
    #[must_use]
    pub(crate) fn of(issuers: impl IntoIterator<Item = Option<Box<str>>>) -> Self {
        Self(issuers.into_iter().map(|issuer| IssuerKeys { issuer, newest: ArcSwapOption::empty() }).collect())
    }

    /// One set, for anyone's tokens, from its JSON.
    ///
    /// # Errors
    /// If it is none.
    pub fn of_json(json: &[u8]) -> Result<Self, KeySetFault> {
        let (sets, (keys, _)) = (Self::of([None]), KeySet::parse(json)?);
        sets.replace(0, keys);
        Ok(sets)
    }

    /// Replaces a set, by its index. One thread replaces sets.
    pub(crate) fn replace(&self, index: usize, keys: KeySet) {
        let number = self.edition(index) + 1;
        self.0[index].newest.store(Some(Arc::new(Edition { number, keys })));
    }

    /// How often a set was replaced.
    pub(crate) fn edition(&self, index: usize) -> u64 {
        self.0[index].newest.load().as_ref().map_or(0, |edition| edition.number)
    }

    /// Whether no set is there, or none was read so far.
    pub(crate) fn lacks_all(&self) -> bool {
        self.0.iter().all(|of_issuer| of_issuer.newest.load().is_none())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The check of a token whose signature is by a public key. It takes 20 to 600 us, and can be made on any thread.
pub struct PublicKeyCheck {
    pub(super) algorithm: PublicKeyAlgorithm,
    pub(super) kid: Option<Box<str>>,
    pub(super) token: Box<str>,
    pub(super) keys: Arc<KeySets>,
    pub(super) claims: Arc<ClaimRules>,
}

/// The token never prints.
impl fmt::Debug for PublicKeyCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicKeyCheck").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// Why a check confirms no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckFault {
    /// It is rejected.
    Rejected(Unauthorized),
    /// The issuer's set has no key that fits. A newer edition may have one.
    UnknownKey {
        /// The set's index.
        set: usize,
        /// The edition that was asked.
        edition: u64,
    },
}

impl From<Unauthorized> for CheckFault {
    fn from(why: Unauthorized) -> Self {
        Self::Rejected(why)
    }
}

impl PublicKeyCheck {
    /// Returns what the token grants at `now`.
    ///
    /// # Errors
    /// Why it grants nothing.
    pub fn run(&self, now: UnixMs) -> Result<Grant, CheckFault> {
        let parts = Parts::of(&self.token)?;
        // It picks the set before anything confirms it; who is not its issuer has no key of that set.
        let issuer = claims::issuer(&parts.claims)?;
        let is_of_issuer = |of: &IssuerKeys| of.issuer.is_none() || of.issuer == issuer;
        let set = self.keys.0.iter().position(is_of_issuer).ok_or(Unauthorized::Issuer)?;
        let newest = self.keys.0[set].newest.load_full();
        let Some(Edition { number, keys }) = newest.as_deref() else {
            return Err(CheckFault::UnknownKey { set, edition: 0 });
        };
        match keys.verify(self.algorithm, self.kid.as_deref(), parts.signed.as_bytes(), &parts.signature) {
            Ok(()) => Ok(self.claims.grant(&parts.claims, now)?),
            Err(Unconfirmed::Signature) => Err(Unauthorized::Signature.into()),
            Err(Unconfirmed::NoKey) => Err(CheckFault::UnknownKey { set, edition: *number }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::TestKey;
    use super::super::{AuthConfig, Verdict, Verifier};
    use super::*;
    use crate::protocol::head::BearerToken;

    const NOW: UnixMs = UnixMs(1_790_000_000_000);

    fn check(keys: &Arc<KeySets>, token: String) -> PublicKeyCheck {
        let verifier = Verifier::new(&AuthConfig::default(), Arc::clone(keys));
        match verifier.verify(Some(&BearerToken(token.into())), NOW) {
            Ok(Verdict::PublicKey(check)) => check,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_issuers_tokens_are_checked_by_its_own_set() {
        let [a, b] = ["a", "b"].map(TestKey::new);
        let keys = Arc::new(KeySets::of(["https://a", "https://b"].map(|issuer| Some(issuer.into()))));
        keys.replace(0, a.set());
        keys.replace(1, b.set());
        let ask = |key: &TestKey, claims: &str| check(&keys, key.sign(claims)).run(NOW).map(|grant| grant.user);
        assert_eq!(ask(&a, r#"{"iss":"https://a","sub":"u"}"#), Ok("u".into()));
        assert_eq!(ask(&b, r#"{"iss":"https://b","sub":"u"}"#), Ok("u".into()));
        // `kid` is known to another set alone.
        let unknown = |set| Err(CheckFault::UnknownKey { set, edition: 1 });
        assert_eq!(ask(&a, r#"{"iss":"https://b","sub":"u"}"#), unknown(1));
        assert_eq!(ask(&b, r#"{"iss":"https://a","sub":"u"}"#), unknown(0));
        let issuer = Err(CheckFault::Rejected(Unauthorized::Issuer));
        for claims in [r#"{"sub":"u"}"#, r#"{"iss":"https://c","sub":"u"}"#, r#"{"iss":["https://a"],"sub":"u"}"#] {
            assert_eq!(ask(&a, claims), issuer, "{claims}");
        }
        // Without a `kid` each key of the set is tried.
        assert_eq!(
            check(&keys, b.sign_with(r#"{"alg":"ES256"}"#, r#"{"iss":"https://a","sub":"u"}"#)).run(NOW),
            Err(CheckFault::Rejected(Unauthorized::Signature))
        );
    }

    #[test]
    fn a_check_says_which_edition_lacks_the_key_so_that_a_newer_one_is_asked() {
        let [old, new] = ["old", "new"].map(TestKey::new);
        let keys = Arc::new(KeySets::of([None]));
        assert!(keys.lacks_all());
        let check = check(&keys, new.sign(r#"{"sub":"u"}"#));
        let unknown = |edition| Err(CheckFault::UnknownKey { set: 0, edition });
        assert_eq!(check.run(NOW), unknown(0));
        keys.replace(0, old.set());
        assert_eq!((check.run(NOW), keys.edition(0), keys.lacks_all()), (unknown(1), 1, false));
        keys.replace(0, new.set());
        assert_eq!(check.run(NOW).map(|grant| grant.user), Ok("u".into()));
        keys.replace(0, KeySet::default());
        assert_eq!((check.run(NOW), keys.edition(0)), (unknown(3), 3), "a key that was withdrawn confirms nothing");
    }
}

//! Who a connection's client is, from where, and by which token: in one allocation, as there is one for each connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::clock::UnixMs;
use crate::limits::TOKEN_LEEWAY;
use crate::protocol::auth::Grant;

/// A client, packed: a byte of flags, then what they say is there, then the user.
///
/// ```text
/// flags | number: 5 | address: 4 or 16 | issued: 6? | expires: 6? | token id: 8? | user
/// ```
///
/// Five bytes hold the number of a shard's connections for seven years at 5,000 a second, six a time up to the year 10889;
/// a later one counts as that. With a user of up to eight bytes, an IPv4 address and an expiry, it fits into the
/// allocator's smallest block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClientIdentity(Box<[u8]>);

const IS_V6: u8 = 1;
const HAS_ISSUED: u8 = 2;
const HAS_EXPIRES: u8 = 4;
const HAS_TOKEN_ID: u8 = 8;

const NUMBER_BYTES: usize = 5;

/// Where the address begins.
const ADDRESS_AT: usize = 1 + NUMBER_BYTES;

const TIME_BYTES: usize = 6;
const TIME_MAX: u64 = (1 << 48) - 1;

impl ClientIdentity {
    /// The client of the shard's n-th connection.
    pub(super) fn new(number: u64, grant: &Grant, address: IpAddr) -> Self {
        let mut flags = if address.is_ipv6() { IS_V6 } else { 0 };
        let mut packed = vec![0];
        packed.extend(&number.to_le_bytes()[..NUMBER_BYTES]);
        match address {
            IpAddr::V4(address) => packed.extend(address.octets()),
            IpAddr::V6(address) => packed.extend(address.octets()),
        }
        for (flag, time) in [(HAS_ISSUED, grant.issued), (HAS_EXPIRES, grant.expires)] {
            if let Some(UnixMs(ms)) = time {
                flags |= flag;
                packed.extend(&ms.min(TIME_MAX).to_le_bytes()[..TIME_BYTES]);
            }
        }
        if let Some(id) = grant.token_id {
            flags |= HAS_TOKEN_ID;
            packed.extend(id.to_le_bytes());
        }
        packed[0] = flags;
        packed.extend(grant.user.as_bytes());
        Self(packed.into())
    }

    /// A client of this user.
    #[cfg(test)]
    pub(super) fn of_user(user: &str, expires: Option<UnixMs>) -> Self {
        Self::numbered(1, user, expires)
    }

    /// The client of the shard's n-th connection, of this user.
    #[cfg(test)]
    pub(super) fn numbered(number: u64, user: &str, expires: Option<UnixMs>) -> Self {
        let allowed = crate::protocol::auth::Allowed::Any;
        let grant = Grant { user: user.into(), expires, allowed, issued: None, token_id: None };
        Self::new(number, &grant, Ipv4Addr::LOCALHOST.into())
    }

    /// The connection's number on its shard: no other has it.
    pub(super) fn number(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes[..NUMBER_BYTES].copy_from_slice(&self.0[1..ADDRESS_AT]);
        u64::from_le_bytes(bytes)
    }

    /// The user, of its token.
    pub(super) fn user(&self) -> &str {
        std::str::from_utf8(&self.0[self.offset_of(u8::MAX)..]).expect("packed from a str")
    }

    /// The address that it came from, behind trusted proxies.
    pub(super) fn address(&self) -> IpAddr {
        match self.0[ADDRESS_AT..].first_chunk::<16>().filter(|_| self.has(IS_V6)) {
            Some(octets) => Ipv6Addr::from(*octets).into(),
            None => Ipv4Addr::from(*self.0[ADDRESS_AT..].first_chunk().expect("each has an address")).into(),
        }
    }

    /// When its token was issued, if that says so.
    pub(super) fn issued(&self) -> Option<UnixMs> {
        self.time(HAS_ISSUED)
    }

    /// When its token expires, with the leeway.
    pub(super) fn expires(&self) -> Option<UnixMs> {
        self.time(HAS_EXPIRES)
    }

    /// When its token expires, as the token says.
    pub(super) fn token_expires(&self) -> Option<UnixMs> {
        self.expires().map(|expires| expires.minus(TOKEN_LEEWAY))
    }

    /// A hash of its token's id, if that has one.
    pub(super) fn token_id(&self) -> Option<u64> {
        let bytes = self.has(HAS_TOKEN_ID).then(|| self.0[self.offset_of(HAS_TOKEN_ID)..].first_chunk().copied())?;
        bytes.map(u64::from_le_bytes)
    }

    fn has(&self, flag: u8) -> bool {
        self.0[0] & flag != 0
    }

    fn time(&self, flag: u8) -> Option<UnixMs> {
        let at = self.offset_of(flag);
        let mut bytes = [0; 8];
        bytes[..TIME_BYTES].copy_from_slice(self.has(flag).then(|| &self.0[at..at + TIME_BYTES])?);
        Some(UnixMs(u64::from_le_bytes(bytes)))
    }

    /// Where a part begins; with the highest value of a byte, the user.
    fn offset_of(&self, flag: u8) -> usize {
        let lens = [(HAS_ISSUED, TIME_BYTES), (HAS_EXPIRES, TIME_BYTES), (HAS_TOKEN_ID, 8)];
        let before = lens.into_iter().filter(|(other, _)| *other < flag && self.has(*other));
        ADDRESS_AT + if self.has(IS_V6) { 16 } else { 4 } + before.map(|(_, len)| len).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::auth::Allowed;

    #[test]
    fn all_that_is_packed_can_be_read() {
        let numbers = [None, Some(0), Some(TIME_MAX)];
        let all = (0..27).map(|number| [number % 3, number / 3 % 3, number / 9].map(|index: usize| numbers[index]));
        for address in ["10.1.2.3", "::1", "2001:db8::7"] {
            for [issued, expires, token_id] in all.clone() {
                for user in ["u", "ü-1", "a user of a length that no field has"] {
                    let address = address.parse().unwrap();
                    let (issued, expires) = (issued.map(UnixMs), expires.map(UnixMs));
                    let grant = Grant { user: user.into(), expires, allowed: Allowed::Any, issued, token_id };
                    let client = ClientIdentity::new(77, &grant, address);
                    assert_eq!((client.number(), client.user(), client.address()), (77, user, address));
                    assert_eq!((client.issued(), client.expires(), client.token_id()), (issued, expires, token_id));
                }
            }
        }
    }
}

//! Resolves the topics that a cursor lists. Tags are short and may be shared; the sum over the topics' fingerprints
//! tells which are meant. Takes a bounded number of steps for any input.

use crate::ids::TopicIndex;
use crate::protocol::messages::ResetReason;
use crate::routing::table::Fingerprint;
use crate::stream::cursor::{CursorContents, Tag, TopicSum};

/// The number of ways to read the tags that are tried: enough for eight pairs of topics that share a tag, with one of
/// each listed.
const TRIES_MAX: u32 = 256;

/// A topic that may be meant.
pub(super) type Candidate = (TopicIndex, Fingerprint);

/// Topics of a cursor, as they are known here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// For each of the listed ones; `None` where it is not known here.
    pub(super) topics: Vec<Option<TopicIndex>>,
    /// The sum over those that are not.
    pub(super) unknown: TopicSum,
}

/// Topics that share a tag, of which not all are listed.
struct Ambiguous<'a> {
    /// Which of the listed topics have the tag.
    entries: Vec<usize>,
    candidates: Vec<&'a Candidate>,
}

/// Finds the topics of a cursor. `known` has those whose tag has this name, in the order of the topics' names, which is
/// also the order in which a cursor lists topics that share a tag.
///
/// # Errors
/// Why the client can't go on from the cursor.
pub(super) fn name<'a>(listing: &CursorContents, known: impl Fn(u16) -> &'a [Candidate]) -> Result<Named, ResetReason> {
    let mut topics = vec![None; listing.topics.len()];
    let (mut ambiguous, mut left, mut has_unknown) = (Vec::new(), listing.sum, false);
    let mut seen: Vec<Tag> = Vec::new();
    for topic in &listing.topics {
        let tag = topic.tag;
        if seen.contains(&tag) {
            continue;
        }
        seen.push(tag);
        let named = known(tag.name);
        let entries: Vec<usize> =
            listing.topics.iter().enumerate().filter(|(_, other)| other.tag == tag).map(|(at, _)| at).collect();
        if named.is_empty() && tag.mark.is_some() {
            has_unknown = true;
            continue;
        }
        let candidates: Vec<&Candidate> = named.iter().filter(|(_, topic)| tag.fits(*topic)).collect();
        match entries.len().cmp(&candidates.len()) {
            // A recreated topic, or one whose name has the tag of another one.
            std::cmp::Ordering::Greater => return Err(ResetReason::Invalid),
            std::cmp::Ordering::Less => ambiguous.push(Ambiguous { entries, candidates }),
            std::cmp::Ordering::Equal => {
                for (&at, &&(index, fingerprint)) in entries.iter().zip(&candidates) {
                    topics[at] = Some(index);
                    left = left.minus(TopicSum::of(fingerprint));
                }
            }
        }
    }
    if has_unknown {
        // Nothing tells these apart before the unknown ones are known.
        return if ambiguous.is_empty() { Ok(Named { topics, unknown: left }) } else { Err(ResetReason::Expired) };
    }
    let mut search = NameSearch { ambiguous: &ambiguous, topics, found: None, is_doubtful: false, tries: 0 };
    search.choose(0, 0, 0, left);
    match search.found {
        Some(_) if search.is_doubtful => Err(ResetReason::Expired),
        Some(topics) => Ok(Named { topics, unknown: TopicSum::default() }),
        None => Err(ResetReason::Invalid),
    }
}

struct NameSearch<'a> {
    ambiguous: &'a [Ambiguous<'a>],
    topics: Vec<Option<TopicIndex>>,
    found: Option<Vec<Option<TopicIndex>>>,
    /// There is more than one way to read it, or there are too many to be tried.
    is_doubtful: bool,
    tries: u32,
}

impl NameSearch<'_> {
    /// Tries all that an entry of a group may stand for, from a candidate on, where the rest must come to `left`.
    fn choose(&mut self, group: usize, entry: usize, from: usize, left: TopicSum) {
        let Some(Ambiguous { entries, candidates }) = self.ambiguous.get(group) else {
            self.tries += 1;
            self.is_doubtful |= self.tries > TRIES_MAX;
            if left == TopicSum::default() {
                self.is_doubtful |= self.found.replace(self.topics.clone()).is_some();
            }
            return;
        };
        let Some(&at) = entries.get(entry) else { return self.choose(group + 1, 0, 0, left) };
        // Those behind it in the group have others left.
        let last = candidates.len() - (entries.len() - entry);
        for (candidate, &&(index, fingerprint)) in candidates.iter().enumerate().take(last + 1).skip(from) {
            if self.is_doubtful {
                return;
            }
            self.topics[at] = Some(index);
            self.choose(group, entry + 1, candidate + 1, left.minus(TopicSum::of(fingerprint)));
        }
    }
}

//! How the code speaks: one word for one concept. `src/GLOSSARY.md` has the words.

use crate::fault;
use crate::source::Source;

/// Names that were given up for those of the glossary. `Chain` is `AssessmentLog` now, `Standing` is `PodState`.
const RETIRED: &[&str] = &[
    "Ages",
    "Alarm",
    "Apart",
    "Arrival",
    "Begun",
    "Bell",
    "Breath",
    "Chain",
    "ChainKey",
    "Chronicle",
    "Complaints",
    "Cover",
    "Covered",
    "Deed",
    "Desk",
    "DoorConfig",
    "Doubts",
    "Entrance",
    "Evidence",
    "Extent",
    "Farewell",
    "Freshness",
    "HttpDoor",
    "LogCut",
    "LookWish",
    "Manners",
    "Mistake",
    "Newcomer",
    "Nudger",
    "OnTheWay",
    "Owed",
    "Pace",
    "PlaceId",
    "Placed",
    "PublishedStanding",
    "Pulse",
    "Renewal",
    "RungQueue",
    "SentAway",
    "ShardDoor",
    "Sight",
    "Sights",
    "Spot",
    "Stand",
    "Standing",
    "Stretch",
    "Tail",
    "UrlTwin",
    "Walk",
    "Witness",
    "give_way",
    "has_news",
    "is_sure",
    "let_all_run",
    "let_others_run",
    "list_anew",
    "mark_draining",
    "meet_unknown",
    "next_fresh",
    "part_with_clients",
    "sure_standing",
    "tell_ends",
    "tell_unread",
    "turn_away",
    "unwatch",
    "want_ends",
    "wants_ends",
];

/// Words that a reader stops at, in comments and texts, with what is written instead.
const STRANGE: &[(&str, &str)] = &[
    ("nobody", "no client, no pod, no caller"),
    ("somebody", "a client, a pod, a caller"),
    ("whoever", "the client that, the pod that"),
    ("anew", "again, recreated, replaced"),
    ("told of", "receives, is notified of"),
    ("to be had", "available"),
    ("sign of life", "activity"),
    ("heeds", "follows, uses"),
];

/// Names that were given up.
pub(crate) fn retired(source: &Source) -> Vec<String> {
    let tokens = source.all.iter().filter(|token| RETIRED.contains(&token.text.as_str()));
    tokens.map(|token| fault(source, token.line, &format!("`{}` is a name of the past", token.text))).collect()
}

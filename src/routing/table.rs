//! The routes as data (PROTOCOL 3): which topics are read, what their records become, and for whom. `routes_file` reads
//! them; [`super::mapping`] applies a route to a record.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

pub(crate) use super::partitioner::Partitioner;
pub use super::pattern::{Piece, TopicPattern};
pub use super::record_values::{PayloadForm, PayloadPath, RecordValue, When};
use crate::ids::TopicIndex;

/// The routes, in the order of their file. The first that matches a topic has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteTable {
    /// In file order.
    pub routes: Vec<Arc<Route>>,
    /// The first 16 digits of the SHA-256 of the file.
    pub(crate) digest: Box<str>,
}

/// What becomes of the records of the topics that match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What a topic's name must look like.
    pub topic: TopicPattern,
    /// Who gets the messages.
    pub scope: Scope,
    /// The message's `type`.
    pub message_type: Box<str>,
    /// What the message carries.
    pub fields: MessageFields,
    /// The form of the payloads.
    pub payload: PayloadForm,
    /// Which records are taken; `None`: all.
    pub when: Option<When>,
    /// What a record carries for its fields beside its payload.
    pub carried: Vec<RecordValue>,
}

/// Who gets a route's messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everyone, the latest value for each market; the market is the topic pattern's part of this name.
    Market {
        /// The pattern's part that names the market.
        part: Box<str>,
    },
    /// Those who watch the record's assessment, as a log.
    Assessment {
        /// Where the assessment's id is.
        from: AssessmentFrom,
        /// How the topic's producers place an assessment on a partition.
        partitioner: Partitioner,
    },
}

/// Where a record says which assessment it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AssessmentFrom {
    /// The payload's field `assessmentId`.
    Payload,
    /// The payload's value at this place.
    Path(PayloadPath),
    /// The record's key.
    Key,
    /// The record's header of this name.
    Header(Box<str>),
}

/// What a message carries after its `type`, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessageFields {
    /// `"*"`: the payload whole, as `data`.
    Whole,
    /// These fields, in order.
    Listed(Vec<Field>),
}

/// One field of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name in the message.
    pub name: Box<str>,
    /// Where its value comes from.
    pub source: FieldSource,
}

/// Where a field's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldSource {
    /// The payload's field of this name; left out where the payload has none.
    Payload(Box<str>),
    /// This JSON, always.
    Const(Box<str>),
    /// The topic's part of this name.
    Topic(Box<str>),
    /// The record's own value: that with this index among the route's [`Route::carried`]. Left out where it has none.
    Record(usize),
}

/// A topic of the cluster together with the route that it matched: what ingest tells the shards about it, once, before
/// the topic's first record.
#[derive(Debug, Clone)]
pub struct Topic {
    /// How records refer to it.
    pub index: TopicIndex,
    /// Its name in Kafka.
    pub name: Box<str>,
    /// Which topic of all that ever had this name.
    pub fingerprint: Fingerprint,
    /// What it matched.
    pub route: Arc<Route>,
    /// For each of the pattern's parts, its name and what it stands for here.
    pub parts: Vec<(Box<str>, Box<str>)>,
}

/// Tells a topic from others, and from one that was recreated under its name or is in another cluster. Hashes: for
/// telling apart what is there, not for security.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Fingerprint {
    /// Of the name.
    pub(crate) name: u32,
    /// Of the topic's id, which Kafka gives anew to each topic that is made (KIP-516), and of the cluster's id.
    pub(crate) incarnation: u32,
}

impl Fingerprint {
    /// The fingerprint of a topic by its name, the cluster's id, and the topic's id, as Kafka writes them; empty where
    /// the broker has none.
    #[must_use]
    pub(crate) fn new(name: &str, cluster_id: &str, topic_id: &str) -> Self {
        let hash = |text: &str| (xxh3_64(text.as_bytes()) >> 32) as u32;
        Self { name: hash(name), incarnation: hash(&format!("{cluster_id}/{topic_id}")) }
    }
}

impl Fingerprint {
    /// The fingerprint of the topic as a route reads it. A cursor says which records its client has by whose they were
    /// taken to be and where they were looked for: under a route that says otherwise, on this pod or another one, it
    /// means nothing.
    #[must_use]
    pub(crate) fn read_by(self, route: &Route) -> Self {
        let Scope::Assessment { from, partitioner } = &route.scope else { return self };
        let takes_all = route.when.is_none() && route.payload == PayloadForm::Json;
        let from = match from {
            AssessmentFrom::Payload => "payload".to_owned(),
            AssessmentFrom::Path(path) => path.to_string(),
            AssessmentFrom::Key => "key".to_owned(),
            AssessmentFrom::Header(name) => format!("header:{name}"),
        };
        let partitioner = match partitioner {
            // As the built-in routes have it: the topic's own.
            Partitioner::Murmur2 if from == "payload" && takes_all => return self,
            Partitioner::Murmur2 => "murmur2",
            Partitioner::Crc32 => "crc32",
            Partitioner::None => "none",
        };
        let when = route.when.as_ref().map(|when| format!("{}={}", when.path, when.equals)).unwrap_or_default();
        let taken = match route.payload {
            _ if takes_all => String::new(),
            PayloadForm::Json => format!("/json/{when}"),
            PayloadForm::JsonSchema => format!("/json-schema/{when}"),
        };
        let reading = format!("{:08x}/{from}/{partitioner}{taken}", self.incarnation);
        Self { incarnation: (xxh3_64(reading.as_bytes()) >> 32) as u32, ..self }
    }
}

impl Topic {
    /// Whether a route that reads this topic reads the same records as the same assessments' as this one does, so that
    /// its messages alone may differ. A board is made of messages, and is filled anew with others.
    #[must_use]
    pub(crate) fn is_read_alike(&self, other: &Self) -> bool {
        match (&self.route.scope, &other.route.scope) {
            (Scope::Market { .. }, Scope::Market { .. }) => self.is_mapped_alike(other),
            (one, two) => {
                let (route, other) = (&self.route, &other.route);
                one == two
                    && (route.payload, &route.when) == (other.payload, &other.when)
                    && route.carried == other.carried
            }
        }
    }

    /// Whether their records become the same messages, for the same clients.
    #[must_use]
    pub(crate) fn is_mapped_alike(&self, other: &Self) -> bool {
        self.route == other.route && self.parts == other.parts
    }

    /// What the pattern's part of this name stands for in this topic's name.
    #[must_use]
    pub(crate) fn part(&self, name: &str) -> Option<&str> {
        self.parts.iter().find(|(part, _)| **part == *name).map(|(_, value)| &**value)
    }

    /// The market whose ticks it carries, if it is a market's topic.
    #[must_use]
    pub fn market(&self) -> Option<&str> {
        match &self.route.scope {
            Scope::Market { part } => self.part(part),
            Scope::Assessment { .. } => None,
        }
    }
}

/// A routes file that cannot be used: each fault with its line and what would be right.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct InvalidRoutes(pub Vec<String>);

impl RouteTable {
    /// The route of a topic and what its pattern's parts stand for, or `None` for a topic that is not read. Who knows
    /// the topic's id sets a better fingerprint.
    #[must_use]
    pub fn resolve(&self, index: TopicIndex, name: &str) -> Option<Topic> {
        self.routes.iter().find_map(|route| {
            let values = route.topic.captures(name)?;
            let parts = route.topic.parts().zip(values).map(|(part, value)| (part.into(), value.into())).collect();
            let fingerprint = Fingerprint::new(name, "", "");
            Some(Topic { index, name: name.into(), fingerprint, route: Arc::clone(route), parts })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::contract;

    fn resolve(name: &str) -> Option<Topic> {
        RouteTable::built_in().resolve(TopicIndex(7), name)
    }

    #[test]
    fn the_built_in_routes_are_those_of_the_contract() {
        let first_word = |text: &str| text.split([' ', '`']).next().unwrap_or_default().to_owned();
        let rows = contract::rows(3).into_iter().filter(|row| row.len() == 3);
        let told: Vec<_> = rows
            .map(|row| {
                let fields: Vec<String> = row[2].split(", ").map(first_word).collect();
                (row[0].replace('<', "{").replace('>', "}"), first_word(&row[1]), fields)
            })
            .collect();
        let table = RouteTable::built_in();
        let built_in = table.routes.iter().map(|route| {
            let MessageFields::Listed(fields) = &route.fields else { panic!("{} lists its fields", route.topic) };
            let fields: Vec<String> = fields.iter().map(|field| field.name.to_string()).collect();
            (route.topic.to_string(), route.message_type.to_string(), fields)
        });
        assert_eq!(told, built_in.collect::<Vec<_>>(), "left: PROTOCOL.md, right: the code");
    }

    #[test]
    fn the_built_in_routes_read_the_contracts_topics_and_no_other() {
        let types = [
            ("market-data.BTC-USD-ticks", "market_price"),
            ("trading.order-filled", "pnl_update"),
            ("trading.position-opened", "position_update"),
            ("trading.position-closed", "position_update"),
            ("assessment.balance-updated", "pnl_update"),
            ("assessment.pnl-updated", "pnl_update"),
            ("assessment.created", "assessment_update"),
            ("assessment.started", "assessment_update"),
            ("assessment.completed", "assessment_update"),
            ("rules.violation-detected", "violation"),
            ("rules.drawdown-checked", "rule_status"),
        ];
        for (topic, message_type) in types {
            let found = resolve(topic).unwrap_or_else(|| panic!("{topic} is read"));
            assert_eq!((&*found.name, &*found.route.message_type, found.index), (topic, message_type, TopicIndex(7)));
        }
        assert_eq!(RouteTable::built_in().routes.len(), types.len());
        for other in ["market-data.-ticks", "trading.order-filled.dlq", "assessment", "__consumer_offsets", ""] {
            assert!(resolve(other).is_none(), "{other} is not read");
        }
    }

    #[test]
    fn a_markets_topic_tells_its_market_and_an_assessments_tells_none() {
        assert_eq!(resolve("market-data.BTC-USD-ticks").unwrap().market(), Some("BTC-USD"));
        assert_eq!(resolve("trading.order-filled").unwrap().market(), None);
    }

    #[test]
    fn the_first_route_that_matches_has_the_topic() {
        let route = |topic: &str, kind: &str| {
            format!("[[route]]\ntopic = {topic:?}\nscope = \"assessment\"\ntype = {kind:?}\nfields = \"*\"\n")
        };
        let table = RouteTable::parse(&(route("a.special", "special") + &route("a.{x}", "any"))).unwrap();
        let kind = |name: &str| table.resolve(TopicIndex(0), name).map(|topic| topic.route.message_type.to_string());
        assert_eq!(kind("a.special").as_deref(), Some("special"));
        assert_eq!(kind("a.other").as_deref(), Some("any"));
        assert_eq!(kind("b.other"), None);
    }
}

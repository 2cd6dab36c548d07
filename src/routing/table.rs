//! The routes as data (PROTOCOL 3): which topics are read, what their records become, and for whom. It owns the format
//! and its faults; [`super::mapping`] applies a route to a record.

use std::sync::Arc;

/// The routes, in the order of their file. The first that matches a topic has it.
#[derive(Debug, Clone)]
pub struct Table {
    /// In file order.
    pub routes: Vec<Arc<Route>>,
}

/// What becomes of the records of the topics that match.
#[derive(Debug, Clone)]
pub struct Route {
    /// What a topic's name must look like.
    pub topic: TopicPattern,
    /// Who gets the messages.
    pub scope: Scope,
    /// The message's `type`.
    pub message_type: Box<str>,
    /// What the message carries.
    pub fields: Fields,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AssessmentFrom {
    /// The payload's field `assessmentId`.
    Payload,
    /// The record's key.
    Key,
}

/// How a topic's producers place an assessment on a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partitioner {
    /// As Java's and kafkajs' producers do, key = assessment id.
    Murmur2,
    /// librdkafka's default, `consistent_random`, key = assessment id.
    Crc32,
    /// Any partition.
    None,
}

/// A topic's name, or the form of many: literal text and named parts, each of one or more characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPattern {
    /// In order; two parts are never next to each other.
    pub pieces: Vec<Piece>,
}

/// A piece of a [`TopicPattern`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Stands for itself.
    Literal(Box<str>),
    /// `{name}`: stands for one or more characters.
    Part(Box<str>),
}

/// What a message carries after its `type`, in order.
#[derive(Debug, Clone)]
pub enum Fields {
    /// `"*"`: the payload whole, as `data`.
    Whole,
    /// These.
    Listed(Vec<Field>),
}

/// One field of a message.
#[derive(Debug, Clone)]
pub struct Field {
    /// Its name in the message.
    pub name: Box<str>,
    /// Where its value comes from.
    pub source: Source,
}

/// Where a field's value comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// The payload's field of this name; left out where the payload has none.
    Payload(Box<str>),
    /// This JSON, always.
    Const(Box<str>),
    /// The topic's part of this name.
    Topic(Box<str>),
}

/// A topic of the cluster together with the route that it matched: what ingest tells the shards about it, once, before
/// the topic's first record.
#[derive(Debug, Clone)]
pub struct Topic {
    /// How records refer to it.
    pub index: crate::ids::TopicIndex,
    /// Its name in Kafka.
    pub name: Box<str>,
    /// What it matched.
    pub route: Arc<Route>,
    /// For each of the pattern's parts, its name and what it stands for here.
    pub parts: Vec<(Box<str>, Box<str>)>,
}

impl Topic {
    /// What the pattern's part of this name stands for in this topic's name.
    #[must_use]
    pub fn part(&self, name: &str) -> Option<&str> {
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

impl Table {
    /// The built-in routes' file, as `shardgate routes` prints it.
    pub const BUILT_IN: &str = include_str!("routes.toml");

    /// Reads a routes file.
    ///
    /// # Errors
    /// Every fault at once, each with its line and what would be right.
    pub fn parse(_toml: &str) -> Result<Self, InvalidRoutes> {
        unimplemented!()
    }

    /// The route of a topic and what its pattern's parts stand for, or `None` for a topic that is not read.
    #[must_use]
    pub fn resolve(&self, _index: crate::ids::TopicIndex, _name: &str) -> Option<Topic> {
        unimplemented!()
    }
}

//! What a topic's name must look like: literal text and named parts. It owns the pattern's text form, its faults and
//! the matching; [`super::table`] says what becomes of the topics that match.

use std::fmt;

/// The longest name of a topic, in characters (Kafka's `Topic.MAX_NAME_LENGTH`).
const TOPIC_NAME_CHARS_MAX: usize = 249;

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

/// Why a text is no [`TopicPattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidPattern {
    /// No text at all.
    #[error("it is empty; it takes a topic's name, in which {{name}} stands for one or more characters")]
    Empty,
    /// A `{` without its `}`.
    #[error("the part {{{0} is not closed; a part is written {{name}}")]
    Unclosed(String),
    /// A part without a name, or with other characters than those of a name.
    #[error("{{{0}}} is no part's name; it takes letters, digits, _ and -")]
    PartName(String),
    /// Two parts of the same name.
    #[error("the part {{{0}}} is there twice; each part takes a name of its own")]
    PartTwice(String),
    /// Two parts with nothing in between: where the one ends could not be told.
    #[error("the parts {{{0}}} and {{{1}}} touch; it takes some text between them")]
    Adjacent(String, String),
    /// A character that no topic's name has.
    #[error("no topic has {0:?} in its name; it takes letters, digits, '.', '_' and '-', and parts as {{name}}")]
    Character(char),
    /// No topic has so long a name.
    #[error("it takes more than the {TOPIC_NAME_CHARS_MAX} characters that a topic's name may have")]
    TooLong,
    /// `.` and `..`.
    #[error("Kafka allows no topic of this name")]
    Reserved,
}

impl TopicPattern {
    /// Reads a pattern's text.
    ///
    /// # Errors
    /// The first fault, and what would be right.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (piece, after) = match rest.strip_prefix('{') {
                Some(inner) => parse_part(inner)?,
                None => parse_literal(rest)?,
            };
            check_beside(&pieces, &piece)?;
            pieces.push(piece);
            rest = after;
        }
        let pattern = Self { pieces };
        if pattern.pieces.is_empty() {
            return Err(InvalidPattern::Empty);
        }
        if pattern.chars_min() > TOPIC_NAME_CHARS_MAX {
            return Err(InvalidPattern::TooLong);
        }
        if matches!(text, "." | "..") {
            return Err(InvalidPattern::Reserved);
        }
        Ok(pattern)
    }

    /// The names of its parts, in order.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Part(name) => Some(&**name),
            Piece::Literal(_) => None,
        })
    }

    /// What each part stands for in a topic's name, in the pattern's order, or `None` where the name doesn't match.
    ///
    /// Where several answers are possible, each part from the left takes as little as it can: `{a}.{b}` takes `x.y.z`
    /// as `x` and `y.z`. That answer is found without ever going back: if any text from here on matches, then the
    /// first place of the next literal does.
    #[must_use]
    pub(crate) fn captures<'n>(&self, name: &'n str) -> Option<Vec<&'n str>> {
        let mut values = Vec::new();
        let mut rest = name;
        for (i, piece) in self.pieces.iter().enumerate() {
            match piece {
                Piece::Literal(text) if i == 0 => rest = rest.strip_prefix(&**text)?,
                // It was taken together with the part before it.
                Piece::Literal(_) => {}
                Piece::Part(_) => {
                    let (value, after) = split_part(rest, &self.pieces[i + 1..])?;
                    values.push(value);
                    rest = after;
                }
            }
        }
        rest.is_empty().then_some(values)
    }

    /// Whether every topic that `other` matches is matched by this pattern, too.
    #[must_use]
    pub(crate) fn covers(&self, other: &Self) -> bool {
        // A character that no topic has stands for what a part of `other` may be: only a part of ours can take it.
        let any: String = other
            .pieces
            .iter()
            .map(|piece| match piece {
                Piece::Literal(text) => text,
                Piece::Part(_) => "*",
            })
            .collect();
        self.captures(&any).is_some()
    }

    fn chars_min(&self) -> usize {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Literal(text) => text.len(),
                Piece::Part(_) => 1,
            })
            .sum()
    }
}

/// The pattern's text, as [`TopicPattern::parse`] takes it.
impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pieces.iter().try_for_each(|piece| match piece {
            Piece::Literal(text) => f.write_str(text),
            Piece::Part(name) => write!(f, "{{{name}}}"),
        })
    }
}

/// What a part stands for at the start of `rest`, and what comes behind it and the literal that follows it.
fn split_part<'n>(rest: &'n str, following: &[Piece]) -> Option<(&'n str, &'n str)> {
    let (value, after) = match following {
        [Piece::Literal(text)] => (rest.strip_suffix(&**text)?, ""),
        [Piece::Literal(text), ..] => {
            let first = rest.chars().next()?.len_utf8();
            let end = first + rest[first..].find(&**text)?;
            (&rest[..end], &rest[end + text.len()..])
        }
        _ => (rest, ""),
    };
    (!value.is_empty()).then_some((value, after))
}

fn parse_part(inner: &str) -> Result<(Piece, &str), InvalidPattern> {
    let (name, after) = inner.split_once('}').ok_or_else(|| InvalidPattern::Unclosed(inner.into()))?;
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')) {
        return Err(InvalidPattern::PartName(name.into()));
    }
    Ok((Piece::Part(name.into()), after))
}

fn parse_literal(rest: &str) -> Result<(Piece, &str), InvalidPattern> {
    let (text, after) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-')) {
        Some(other) => Err(InvalidPattern::Character(other)),
        None => Ok((Piece::Literal(text.into()), after)),
    }
}

fn check_beside(before: &[Piece], piece: &Piece) -> Result<(), InvalidPattern> {
    let Piece::Part(name) = piece else { return Ok(()) };
    if before.contains(piece) {
        return Err(InvalidPattern::PartTwice(name.to_string()));
    }
    match before.last() {
        Some(Piece::Part(last)) => Err(InvalidPattern::Adjacent(last.to_string(), name.to_string())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn captures<'n>(pattern: &str, name: &'n str) -> Option<Vec<&'n str>> {
        TopicPattern::parse(pattern).unwrap().captures(name)
    }

    #[test]
    fn a_name_matches_whole_and_each_part_stands_for_at_least_one_character() {
        assert_eq!(captures("trading.order-filled", "trading.order-filled"), Some(vec![]));
        assert_eq!(captures("trading.order-filled", "trading.order-filled2"), None);
        assert_eq!(captures("market-data.{m}-ticks", "market-data.BTC-USD-ticks"), Some(vec!["BTC-USD"]));
        assert_eq!(captures("market-data.{m}-ticks", "market-data.-ticks"), None);
        assert_eq!(captures("market-data.{m}-ticks", "market-data.-ticks-ticks"), Some(vec!["-ticks"]));
        assert_eq!(captures("{all}", "x"), Some(vec!["x"]));
        assert_eq!(captures("{all}", ""), None);
        assert_eq!(captures("aa{p}aa", "aaa"), None, "the literals may not share a character");
    }

    #[test]
    fn of_several_answers_each_part_from_the_left_takes_as_little_as_it_can() {
        assert_eq!(captures("{a}.{b}", "x.y.z"), Some(vec!["x", "y.z"]));
        assert_eq!(captures("{a}.{b}", "..z"), Some(vec![".", "z"]));
        assert_eq!(captures("{a}-{b}.t", "x-y-z.t.t"), Some(vec!["x", "y-z.t"]));
        assert_eq!(captures("{a}.{b}", "x."), None);
    }

    #[test]
    fn a_hostile_name_takes_no_longer_than_a_good_one() {
        let pattern = (0..60).map(|i| format!("{{p{i}}}a")).collect::<String>();
        assert_eq!(captures(&pattern, &format!("{}b", "a".repeat(248))), None);
    }

    #[test]
    fn each_fault_of_a_pattern_has_its_name() {
        let fault = |text: &str| TopicPattern::parse(text).unwrap_err();
        assert_eq!(fault(""), InvalidPattern::Empty);
        assert_eq!(fault("a{b"), InvalidPattern::Unclosed("b".into()));
        assert_eq!(fault("a{}"), InvalidPattern::PartName(String::new()));
        assert_eq!(fault("a{b c}"), InvalidPattern::PartName("b c".into()));
        assert_eq!(fault("{a}.{a}"), InvalidPattern::PartTwice("a".into()));
        assert_eq!(fault("{a}{b}"), InvalidPattern::Adjacent("a".into(), "b".into()));
        assert_eq!(fault("a b"), InvalidPattern::Character(' '));
        assert_eq!(fault("a}"), InvalidPattern::Character('}'));
        assert_eq!(fault(&"a".repeat(250)), InvalidPattern::TooLong);
        assert_eq!(fault(".."), InvalidPattern::Reserved);
        assert_eq!(
            fault("market-data.{market-ticks").to_string(),
            "the part {market-ticks is not closed; a part is written {name}"
        );
    }

    #[test]
    fn a_pattern_covers_another_where_each_topic_of_that_one_is_its_own_too() {
        let covers = |a: &str, b: &str| TopicPattern::parse(a).unwrap().covers(&TopicPattern::parse(b).unwrap());
        assert!(covers("a.{x}", "a.{y}"));
        assert!(covers("{x}", "a.{y}-b"));
        assert!(covers("a.{x}", "a.b"));
        assert!(!covers("a.b", "a.{x}"));
        assert!(!covers("a.{x}-b", "a.{y}"));
    }

    proptest! {
        /// Any text between the literals, written into the pattern, is found to match it; and what the parts are said
        /// to stand for gives the name again.
        #[test]
        fn what_the_parts_stand_for_gives_the_name_again(
            values in prop::collection::vec("[ab.]{1,4}", 1..4),
            literals in prop::collection::vec("[ab.]{1,2}", 4),
        ) {
            let weave = |values: &[&str]| {
                let pairs = literals.iter().zip(values);
                pairs.map(|(literal, value)| format!("{literal}{value}")).collect::<String>() + &literals[3]
            };
            let parts: Vec<String> = (0..values.len()).map(|i| format!("{{p{i}}}")).collect();
            let pattern = weave(&parts.iter().map(String::as_str).collect::<Vec<_>>());
            let name = weave(&values.iter().map(String::as_str).collect::<Vec<_>>());
            let found = captures(&pattern, &name).expect("the name was made by the pattern");
            prop_assert!(found.iter().all(|value| !value.is_empty()));
            prop_assert_eq!(weave(&found), name);
        }
    }
}

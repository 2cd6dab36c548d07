//! Routes files, and the topic names that they match.

use shardgate::ids::TopicIndex;
use shardgate::routing::mapping::map_open;
use shardgate::routing::table::{Piece, RouteTable, Scope};

use super::json::fields;

/// Lines with topic names, then a NUL, then a routes file.
pub fn routes(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (names, file) = text.split_once('\0').unwrap_or(("", text));
    let table = match RouteTable::parse(file) {
        Ok(table) => table,
        Err(faults) => return assert!(!faults.0.is_empty() && faults.0.iter().all(|fault| !fault.is_empty())),
    };
    assert!(!table.routes.is_empty(), "there is at least one route");
    let own = table.routes.iter().map(|route| {
        let pieces = route.topic.pieces.iter();
        pieces.map(|piece| if let Piece::Literal(literal) = piece { literal } else { "x" }).collect::<String>()
    });
    for name in names.lines().map(str::to_owned).chain(own) {
        let Some(topic) = table.resolve(TopicIndex(7), &name) else { continue };
        assert_eq!((&*topic.name, topic.index), (&*name, TopicIndex(7)));
        check_parts(&name, &topic.route.topic.pieces, &topic.parts);
        assert_eq!(topic.market().is_some(), matches!(topic.route.scope, Scope::Market { .. }));
        let mut message = Vec::new();
        map_open(&topic, br#"{"type":1,"cursor":2,"a":3,"price":4}"#, &mut message).expect("an object");
        message.push(b'}');
        let message = String::from_utf8(message).expect("a message is UTF-8");
        let got = fields(&message).unwrap_or_else(|| panic!("{message} is not a JSON object"));
        assert_eq!(got.iter().filter(|(name, _)| name == "type").count(), 1, "{message}");
        assert!(got.iter().all(|(name, _)| name != "cursor"), "{message}");
        let mut names: Vec<_> = got.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a repeated name: {message}");
    }
}

/// A name consists of its pattern's literals and the parts between them, none of which is empty.
fn check_parts(name: &str, pieces: &[Piece], parts: &[(Box<str>, Box<str>)]) {
    assert!(parts.iter().all(|(_, value)| !value.is_empty()));
    let mut values = parts.iter();
    let piece = |piece: &Piece| match piece {
        Piece::Literal(literal) => literal.to_string(),
        Piece::Part(part) => {
            let (named, value) = values.next().expect("a value for each part");
            assert_eq!(named, part);
            value.to_string()
        }
    };
    assert_eq!(pieces.iter().map(piece).collect::<String>(), name);
}

//! How the code speaks: one word for one concept, and docs that say something. `src/GLOSSARY.md` has the words.

use syn::visit::Visit;

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
    "Stray",
    "Strays",
    "Stretch",
    "Tail",
    "UrlTwin",
    "Walk",
    "Witness",
    "give_way",
    "has_news",
    "is_owed",
    "is_stray",
    "is_sure",
    "let_all_run",
    "let_others_run",
    "list_anew",
    "low_watermark",
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
    "whole_from",
];

/// Words that a reader stops at, in comments and texts, with what is written instead.
const STRANGE: &[(&str, &str)] = &[
    ("nobody", "no client, no pod, no caller"),
    ("somebody", "a client, a pod, a caller"),
    ("whoever", "the client that, the pod that"),
    ("made anew", "recreated, replaced"),
    ("told of", "receives, is notified of"),
    ("to be had", "available"),
    ("heeds", "follows, uses"),
    ("so many", "this many"),
    ("bell", "eventfd, wake-up"),
];

/// Names that were given up.
pub(crate) fn retired(source: &Source) -> Vec<String> {
    let tokens = source.all.iter().filter(|token| RETIRED.contains(&token.text.as_str()));
    tokens.map(|token| fault(source, token.line, &format!("`{}` is a name of the past", token.text))).collect()
}

/// Whether people read a file: code, scripts and documents, but for the table above and what programs made.
pub(crate) fn is_read(path: &str) -> bool {
    let is_text = [".rs", ".md", ".lua", ".yaml", ".toml"].iter().any(|end| path.ends_with(end));
    is_text && !path.starts_with("loadtest/tests/house/") && !path.starts_with("loadtest/fuzz/corpus/")
}

/// Words that a reader stops at.
pub(crate) fn strange(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let lower = line.to_lowercase();
        let found = STRANGE.iter().filter(|(word, _)| has_word(&lower, word));
        faults.extend(found.map(|(word, instead)| format!("{path}:{}: \"{word}\": write {instead}", at + 1)));
    }
    faults
}

/// Whether a text has a word, or words, as a whole.
fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        !text[..at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part)
    })
}

/// Docs of one word, of what others than its own module see.
pub(crate) fn short_docs(source: &Source) -> Vec<String> {
    let file = syn::parse_file(&source.text).expect("a source is parsed before");
    let mut found = ShortDocs(Vec::new());
    found.visit_file(&file);
    found.0.iter().map(|(line, doc)| fault(source, *line, &format!("the doc \"{doc}\" says nothing"))).collect()
}

struct ShortDocs(Vec<(usize, String)>);

impl ShortDocs {
    fn judge(&mut self, attributes: &[syn::Attribute]) {
        let docs = attributes.iter().filter_map(|attribute| match &attribute.meta {
            syn::Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
                syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value()),
                _ => None,
            },
            _ => None,
        });
        let doc = docs.collect::<Vec<_>>().join(" ");
        // `HOST`, 1002, SIGTERM and such say something by themselves.
        let is_word = doc.trim().chars().all(|c| c.is_alphabetic() || matches!(c, '.' | '\'' | '’'))
            && doc.contains(char::is_lowercase);
        if doc.split_whitespace().count() == 1 && is_word {
            let line = attributes.first().map_or(0, |first| first.pound_token.span.start().line);
            self.0.push((line, doc.trim().to_owned()));
        }
    }
}

impl<'ast> Visit<'ast> for ShortDocs {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Const(item) => &item.attrs,
            syn::Item::Enum(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Static(item) => &item.attrs,
            syn::Item::Struct(item) => &item.attrs,
            syn::Item::Trait(item) => &item.attrs,
            syn::Item::Type(item) => &item.attrs,
            _ => return syn::visit::visit_item(self, item),
        };
        self.judge(attributes);
        syn::visit::visit_item(self, item);
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        self.judge(&field.attrs);
        syn::visit::visit_field(self, field);
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        self.judge(&variant.attrs);
        syn::visit::visit_variant(self, variant);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.judge(&function.attrs);
        syn::visit::visit_impl_item_fn(self, function);
    }
}

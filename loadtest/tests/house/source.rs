//! A Rust file as the house rules look at it: its lines, its functions, and its tokens, flat. Tokens and not text, so
//! that comments and strings may say what code may not.

use std::str::FromStr as _;

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use syn::visit::Visit;

/// A file of the repository, parsed.
pub(crate) struct Source {
    /// From the repository's top, with `/`.
    pub(crate) path: String,
    /// Its text.
    pub(crate) text: String,
    /// Its tokens, without those of tests.
    pub(crate) code: Vec<Token>,
    /// Its tokens.
    pub(crate) all: Vec<Token>,
    /// Its functions, those of tests too.
    pub(crate) functions: Vec<Function>,
}

/// An identifier, a punctuation mark (`::` is one), or an opening or closing delimiter. A literal is a `"`.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) line: usize,
}

/// A function or method with a body.
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) line: usize,
    /// From `fn` to the closing brace.
    pub(crate) lines: usize,
}

/// A path somewhere in the code, `use` trees taken apart: `use a::{b, c::d}` is `a::b` and `a::c::d`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) segments: Vec<String>,
    pub(crate) line: usize,
}

impl Source {
    /// Parses a file.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let file = syn::parse_file(text).unwrap_or_else(|fault| panic!("{path} is no Rust: {fault}"));
        let mut functions = Functions(Vec::new());
        functions.visit_file(&file);
        // A file that begins with `#!` would be no token stream; none here does.
        let stream = TokenStream::from_str(text).unwrap_or_else(|fault| panic!("{path} is no Rust: {fault}"));
        let mut all = Vec::new();
        flatten(stream, &mut all);
        let code = if is_test_file(path) { Vec::new() } else { without_tests(&all) };
        Self { path: path.to_owned(), text: text.to_owned(), code, all, functions: functions.0 }
    }

    /// The crate's module that the file is: `src/shard/accept.rs` is `shard::accept`, `src/shard/mod.rs` is `shard`.
    pub(crate) fn module(&self) -> Vec<String> {
        let path = self.path.trim_start_matches("loadtest/").trim_start_matches("src/").trim_end_matches(".rs");
        path.split('/').filter(|part| !matches!(*part, "mod" | "lib")).map(str::to_owned).collect()
    }

    /// Every path that the code takes, tests left out. Those within the crate come out as from its root, with `crate`
    /// in front.
    pub(crate) fn paths(&self) -> Vec<Path> {
        let mut paths = Vec::new();
        let mut modules = Modules::new(self.module(), &self.code);
        for (at, token) in self.code.iter().enumerate() {
            modules.step(&self.code, at);
            let begins = is_word(&token.text)
                && self.code.get(at + 1).is_some_and(|next| next.text == "::")
                && !(at > 0 && matches!(self.code[at - 1].text.as_str(), "::" | "."))
                // `impl Trait + use<'a>` imports nothing.
                || at > 0 && self.code[at - 1].text == "use" && token.text != "<";
            if begins {
                let mut found = Vec::new();
                read_tree(&self.code, at, &[], &mut found);
                paths.extend(
                    found.into_iter().map(|segments| Path { segments: modules.absolute(segments), line: token.line }),
                );
            }
        }
        paths
    }
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.ends_with("_tests.rs") || path.contains("/tests/")
}

fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

struct Functions(Vec<Function>);

impl Functions {
    fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let line = signature.fn_token.span.start().line;
        let end = block.brace_token.span.close().end().line;
        self.0.push(Function { name: signature.ident.to_string(), line, lines: end - line + 1 });
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.add(&function.sig, &function.block);
        syn::visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.add(&function.sig, &function.block);
        syn::visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.add(&function.sig, block);
        }
        syn::visit::visit_trait_item_fn(self, function);
    }
}

fn flatten(stream: TokenStream, tokens: &mut Vec<Token>) {
    let mut trees = stream.into_iter().peekable();
    while let Some(tree) = trees.next() {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                tokens.push(Token { text: open.to_owned(), line });
                flatten(group.stream(), tokens);
                tokens.push(Token { text: close.to_owned(), line: group.span_close().start().line });
            }
            TokenTree::Ident(word) => tokens.push(Token { text: word.to_string(), line }),
            TokenTree::Literal(_) => tokens.push(Token { text: "\"".to_owned(), line }),
            TokenTree::Punct(mark) if mark.as_char() == ':' && mark.spacing() == Spacing::Joint => {
                trees.next();
                tokens.push(Token { text: "::".to_owned(), line });
            }
            TokenTree::Punct(mark) => tokens.push(Token { text: mark.as_char().to_string(), line }),
        }
    }
}

/// Drops each item under `#[cfg(test)]` or `#[test]`: up to its closing brace, or the semicolon of one that has none.
fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let mut kept = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        if !is_test_attribute(&tokens[at..]) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        while at < tokens.len() && tokens[at].text != ";" {
            let (brace, group) = (tokens[at].text == "{", matches!(tokens[at].text.as_str(), "{" | "(" | "["));
            at = if group { closing(tokens, at) } else { at } + 1;
            if brace {
                break;
            }
        }
    }
    kept
}

fn is_test_attribute(tokens: &[Token]) -> bool {
    let texts: Vec<&str> = tokens.iter().take(5).map(|token| token.text.as_str()).collect();
    matches!(texts[..], ["#", "[", "test", "]", ..] | ["#", "[", "cfg", "(", "test"])
}

/// Where the delimiter that opens at `open` closes.
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    tokens.len() - 1
}

/// Reads the path, or the tree of a `use`, that begins at `at`. Returns where it ends.
fn read_tree(tokens: &[Token], mut at: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    while let Some(token) = tokens.get(at) {
        match token.text.as_str() {
            "{" => {
                let end = closing(tokens, at);
                at += 1;
                while at < end {
                    at = read_tree(tokens, at, &path, found);
                    // Past `as name`, up to what the next comma leads to.
                    while at < end && tokens[at].text != "," {
                        at += 1;
                    }
                    at += 1;
                }
                return end + 1;
            }
            "::" => at += 1,
            text if is_word(text) || text == "*" => {
                path.push(text.to_owned());
                at += 1;
                if tokens.get(at).is_none_or(|next| next.text != "::") {
                    break;
                }
            }
            // `Vec::<u8>::new`: what comes behind is no module's.
            _ => break,
        }
    }
    found.push(path);
    at
}

/// Which module a token is in, inline modules counted.
struct Modules {
    file: Vec<String>,
    /// The modules below the file's, by which its paths may begin.
    children: Vec<String>,
    /// Name, and the token at which it closes.
    inline: Vec<(String, usize)>,
}

impl Modules {
    fn new(file: Vec<String>, tokens: &[Token]) -> Self {
        let children = tokens.windows(3).filter(|texts| texts[0].text == "mod" && texts[2].text == ";");
        let children = children.map(|texts| texts[1].text.clone()).collect();
        Self { file, children, inline: Vec::new() }
    }

    fn step(&mut self, tokens: &[Token], at: usize) {
        self.inline.retain(|(_, end)| at < *end);
        if tokens[at].text == "mod" && tokens.get(at + 2).is_some_and(|token| token.text == "{") {
            self.inline.push((tokens[at + 1].text.clone(), closing(tokens, at + 2)));
        }
    }

    fn absolute(&self, segments: Vec<String>) -> Vec<String> {
        let mut module: Vec<String> = match segments[0].as_str() {
            "crate" => Vec::new(),
            first if self.inline.is_empty() && self.children.iter().any(|child| child == first) => self.file.clone(),
            "self" | "super" => self.file.iter().chain(self.inline.iter().map(|(name, _)| name)).cloned().collect(),
            _ => return segments,
        };
        let mut rest = segments.into_iter().peekable();
        while let Some(first) = rest.next_if(|first| matches!(first.as_str(), "crate" | "self" | "super")) {
            if first == "super" {
                module.pop();
            }
        }
        std::iter::once("crate".to_owned()).chain(module).chain(rest).collect()
    }
}

//! YAML as compose reads it, with positions.
//!
//! Compose uses go-yaml, a port of libyaml, which accepts what YAML 1.2 forbids: brackets that close
//! at the column of their key, tabs between brackets. So the parser here is a port of libyaml, too.

use std::collections::{HashMap, HashSet};

use libyaml_safer::{Event, EventData, Mark, Parser, ScalarStyle};
use serde_json::Value;

/// The documents of a file.
#[derive(Debug, Default)]
pub(crate) struct Yaml {
    nodes: Vec<Stored>,
    roots: Vec<usize>,
}

#[derive(Debug)]
struct Stored {
    start: Mark,
    end: Mark,
    tag: Option<String>,
    data: Data,
}

#[derive(Debug)]
enum Data {
    Scalar { value: String, style: ScalarStyle },
    Sequence(Vec<usize>),
    Mapping(Vec<(usize, usize)>),
    Alias(usize),
}

/// A node of one of the documents.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node<'a> {
    yaml: &'a Yaml,
    id: usize,
}

/// A mapping or sequence whose end has not been read.
struct Open {
    id: usize,
    anchor: Option<String>,
    children: Vec<usize>,
}

impl Yaml {
    /// Reads all documents, or says why that is impossible. Aliases are not expanded: a few lines of
    /// them could fill the memory.
    pub(crate) fn read(text: &[u8]) -> Result<Yaml, String> {
        let mut parser = Parser::new();
        let text = worked_around(text);
        let mut text = text.as_slice();
        parser.set_input_string(&mut text);
        let mut yaml = Yaml::default();
        let (mut open, mut anchors) = (Vec::<Open>::new(), HashMap::new());
        loop {
            let Event { data, start_mark: start, end_mark: end, .. } =
                parser.parse().map_err(|error| error.to_string())?;
            let (anchor, tag, data) = match data {
                EventData::StreamEnd => return Ok(yaml),
                EventData::DocumentStart { .. } => {
                    anchors.clear();
                    continue;
                }
                EventData::SequenceStart { anchor, tag, .. } => {
                    let id = yaml.store(start, end, tag, Data::Sequence(Vec::new()));
                    open.push(Open { id, anchor, children: Vec::new() });
                    continue;
                }
                EventData::MappingStart { anchor, tag, .. } => {
                    let id = yaml.store(start, end, tag, Data::Mapping(Vec::new()));
                    open.push(Open { id, anchor, children: Vec::new() });
                    continue;
                }
                EventData::SequenceEnd | EventData::MappingEnd => {
                    let Some(Open { id, anchor, children }) = open.pop() else { continue };
                    let node = &mut yaml.nodes[id];
                    node.end = end;
                    match &mut node.data {
                        Data::Mapping(pairs) => {
                            pairs.extend(children.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                        }
                        _ => node.data = Data::Sequence(children),
                    }
                    yaml.place(id, anchor, &mut open, &mut anchors);
                    continue;
                }
                EventData::Scalar { anchor, tag, value, style, .. } => {
                    (anchor, tag, Data::Scalar { value, style })
                }
                EventData::Alias { anchor } => {
                    let of = anchors.get(&anchor).copied();
                    (None, None, Data::Alias(of.ok_or(format!("unknown anchor '{anchor}'"))?))
                }
                _ => continue,
            };
            let id = yaml.store(start, end, tag, data);
            yaml.place(id, anchor, &mut open, &mut anchors);
        }
    }

    fn store(&mut self, start: Mark, end: Mark, tag: Option<String>, data: Data) -> usize {
        self.nodes.push(Stored { start, end, tag, data });
        self.nodes.len() - 1
    }

    /// Adds a complete node to its parent. Aliases can refer to it only from now on, so that no node
    /// contains itself.
    fn place(
        &mut self,
        id: usize,
        anchor: Option<String>,
        open: &mut [Open],
        anchors: &mut HashMap<String, usize>,
    ) {
        anchors.extend(anchor.map(|anchor| (anchor, id)));
        match open.last_mut() {
            Some(parent) => parent.children.push(id),
            None => self.roots.push(id),
        }
    }

    /// Returns the root of each document.
    pub(crate) fn documents(&self) -> impl Iterator<Item = Node<'_>> {
        self.roots.iter().map(|id| Node { yaml: self, id: *id })
    }
}

impl<'a> Node<'a> {
    fn stored(self) -> &'a Stored {
        &self.yaml.nodes[self.id]
    }

    fn with(self, id: usize) -> Node<'a> {
        Node { yaml: self.yaml, id }
    }

    /// Returns the node that an alias refers to, or this one.
    fn resolved(self) -> &'a Stored {
        match self.stored().data {
            Data::Alias(id) => &self.yaml.nodes[id],
            _ => self.stored(),
        }
    }

    /// Returns the line and column, from 1.
    pub(crate) fn position(self) -> (usize, usize) {
        let start = self.stored().start;
        (start.line as usize + 1, start.column as usize + 1)
    }

    /// Returns whether the other node's text is within this one's.
    pub(crate) fn contains(self, other: Node<'_>) -> bool {
        let (outer, inner) = (self.stored(), other.stored().start.index);
        outer.start.index <= inner && inner < outer.end.index
    }

    /// Returns the text of a scalar that is not null.
    pub(crate) fn text(self) -> Option<&'a str> {
        match &self.resolved().data {
            Data::Scalar { value, .. } if !self.is_null() => Some(value),
            _ => None,
        }
    }

    /// Returns whether it is a scalar whose lines are those of the file (`|`).
    pub(crate) fn is_literal(self) -> bool {
        matches!(self.stored().data, Data::Scalar { style: ScalarStyle::Literal, .. })
    }

    /// Returns whether it is null, or removed by compose's `!reset`.
    pub(crate) fn is_null(self) -> bool {
        let resolved = self.resolved();
        let is_reset =
            [self.stored(), resolved].iter().any(|it| it.tag.as_deref() == Some("!reset"));
        is_reset
            || matches!(&resolved.data, Data::Scalar { value, style: ScalarStyle::Plain }
                if ["", "~", "null", "Null", "NULL"].contains(&value.as_str()))
    }

    /// Returns the items of a sequence.
    pub(crate) fn items(self) -> Vec<Node<'a>> {
        match &self.resolved().data {
            Data::Sequence(ids) => ids.iter().map(|id| self.with(*id)).collect(),
            _ => Vec::new(),
        }
    }

    /// Returns the keys and values of a mapping. Those that it merges in come after its own
    /// (<https://yaml.org/type/merge.html>).
    pub(crate) fn pairs(self) -> Vec<(Node<'a>, Node<'a>)> {
        let (mut pairs, mut seen) = (Vec::new(), HashSet::new());
        self.add_pairs(&mut pairs, &mut seen);
        pairs
    }

    /// Adds each mapping once. Without `seen`, merges of merges would take exponential time.
    fn add_pairs(self, pairs: &mut Vec<(Node<'a>, Node<'a>)>, seen: &mut HashSet<*const Stored>) {
        let mut rest = vec![self];
        while let Some(node) = rest.pop() {
            let Data::Mapping(own) = &node.resolved().data else { continue };
            if !seen.insert(std::ptr::from_ref(node.resolved())) {
                continue;
            }
            let own = || own.iter().map(|(key, value)| (node.with(*key), node.with(*value)));
            pairs.extend(own().filter(|(key, _)| key.text() != Some("<<")));
            let merged = own().filter(|(key, _)| key.text() == Some("<<"));
            let merged: Vec<_> = merged
                .flat_map(|(_, value)| match value.items() {
                    items if items.is_empty() => vec![value],
                    items => items,
                })
                .collect();
            rest.extend(merged.into_iter().rev());
        }
    }

    /// Returns the node as JSON, for comparisons: its scalars are texts. A node that would become
    /// too large, as a few lines of aliases can make it, is null.
    pub(crate) fn to_json(self) -> Value {
        /// More than the build of any service, in nodes.
        const MOST: usize = 10_000;
        self.to_json_within(&mut { MOST }).unwrap_or_default()
    }

    fn to_json_within(self, left: &mut usize) -> Option<Value> {
        *left = left.checked_sub(1)?;
        let pairs = self.pairs();
        if !pairs.is_empty() {
            let pair = |(key, value): (Node<'_>, Node<'_>)| {
                Some((key.text().unwrap_or_default().to_owned(), value.to_json_within(left)?))
            };
            return Some(Value::Object(pairs.into_iter().map(pair).collect::<Option<_>>()?));
        }
        let items = self.items();
        Some(match self.text() {
            Some(text) => text.into(),
            None if items.is_empty() => Value::Null,
            None => {
                let items = items.into_iter().map(|item| item.to_json_within(left));
                Value::Array(items.collect::<Option<_>>()?)
            }
        })
    }

    /// Returns what a mapping has under a key, its own or merged in.
    pub(crate) fn get(self, key: &str) -> Option<Node<'a>> {
        self.pairs().into_iter().find(|(name, _)| name.text() == Some(key)).map(|(_, value)| value)
    }
}

/// Works around texts that libyaml accepts, but that make libyaml-safer 0.3.0 panic: a backslash at
/// the very end, and a comma right after a tag. It adds a line end, and a blank before the comma.
fn worked_around(text: &[u8]) -> Vec<u8> {
    let mut copy = Vec::with_capacity(text.len() + 1);
    // In a text that only looks like a tag, the blank does no harm.
    let mut in_tag = false;
    for &byte in text {
        if in_tag && byte == b',' {
            copy.push(b' ');
        }
        in_tag = byte == b'!' || in_tag && !byte.is_ascii_whitespace() && byte != b',';
        copy.push(byte);
    }
    copy.push(b'\n');
    copy
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn get<'a>(yaml: &'a Yaml, path: &[&str]) -> Option<Node<'a>> {
        let root = yaml.documents().next()?;
        path.iter().try_fold(root, |node, key| node.get(key))
    }

    #[test]
    fn merge_keys_are_followed_and_own_keys_win() {
        let text = "a: &a {x: 1, y: 1}\nb: &b\n  <<: *a\n  y: 2\nc:\n  <<: [{z: 3}, *b]\n";
        let yaml = Yaml::read(text.as_bytes()).unwrap();
        let text = |path: &[&str]| get(&yaml, path).and_then(Node::text);
        assert_eq!(text(&["b", "y"]), Some("2"));
        assert_eq!(text(&["b", "x"]), Some("1"));
        assert_eq!(text(&["c", "z"]), Some("3"));
        assert_eq!(text(&["c", "y"]), Some("2"));
        assert_eq!(get(&yaml, &["b", "y"]).unwrap().position(), (4, 6));
    }

    #[test]
    fn merges_of_merges_are_read_in_linear_time() {
        let mut text = "a0: &a0 {x: 1}\n".to_owned();
        for n in 1..200 {
            text += &format!("a{n}: &a{n}\n  <<: [*a{0}, *a{0}]\n", n - 1);
        }
        let yaml = Yaml::read(text.as_bytes()).unwrap();
        assert_eq!(get(&yaml, &["a199", "x"]).and_then(Node::text), Some("1"));
        assert!(get(&yaml, &["a199", "y"]).is_none());
    }

    #[test]
    fn node_that_contains_itself_is_an_error_and_not_a_loop() {
        assert!(Yaml::read(b"a: &a\n  <<: *a\n").unwrap_err().contains("unknown anchor"));
    }

    #[test]
    fn texts_that_make_the_parser_panic_are_read() {
        assert!(Yaml::read(b"a: \"\\").is_err());
        assert!(Yaml::read(b"a: [!,").is_err());
        assert!(Yaml::read(b"a: [!b, c]").is_ok());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in r#"([\x00-\x7f]|[ \t\n:\[\]{}&*!|>'"\\%<>#,?ax01u-]|é|\PC){0,60}"#) {
            if let Ok(yaml) = Yaml::read(text.as_bytes()) {
                for node in yaml.documents() {
                    _ = (node.pairs(), node.items(), node.is_null(), node.text());
                }
            }
        }
    }
}

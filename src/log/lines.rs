//! How an event becomes a line on stderr: text for people, JSON for machines.

use std::fmt::Write as _;
use std::time::SystemTime;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::reference::Tag;
use crate::terminal::{self, one_line};

/// Fields that hold lists, which tracing does not have. They are recorded as JSON text, which the
/// JSON writer unpacks.
const LISTS: &[&str] = &["tags"];

pub(super) fn list(tags: &[Tag]) -> String {
    Value::from_iter(tags.iter().map(Tag::as_str)).to_string()
}

pub(super) enum Style {
    Text,
    ColouredText,
    Json,
}

/// Writes events as lines to stderr. The program has no spans, so there is no registry for them: it
/// would cost more than the rest of logging when there is nothing to say.
pub(super) struct Stderr {
    pub(super) style: Style,
    pub(super) filter: Targets,
}

impl Subscriber for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.would_enable(metadata.target(), metadata.level())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let levels = self.filter.iter().map(|(_, level)| level);
        levels.chain(self.filter.default_level()).max()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = event.metadata().level();
        let line = match self.style {
            Style::Json => fields.into_json(event),
            Style::Text => text(level, &fields.message, ["", "", "", ""]),
            Style::ColouredText => {
                text(level, &fields.message, ["\x1b[1m", "\x1b[33m", "\x1b[31m", "\x1b[0m"])
            }
        };
        terminal::write(line.as_bytes());
    }
}

fn text(level: &Level, message: &str, [bold, yellow, red, plain]: [&str; 4]) -> String {
    let kind = match *level {
        Level::ERROR => format!("{red}error:{plain} "),
        Level::WARN => format!("{yellow}warning:{plain} "),
        _ => String::new(),
    };
    let mut line = format!("{bold}buildlock:{plain} {kind}");
    line.push_str(&one_line(message));
    line.push('\n');
    line
}

#[derive(Default)]
struct Fields {
    message: String,
    values: Map<String, Value>,
}

impl Fields {
    fn into_json(mut self, event: &Event<'_>) -> String {
        let metadata = event.metadata();
        let level = metadata.level().as_str();
        let mut line = Map::new();
        line.insert(
            "timestamp".into(),
            humantime::format_rfc3339_millis(SystemTime::now()).to_string().into(),
        );
        line.insert("level".into(), level.into());
        let event =
            self.values.remove("event").unwrap_or_else(|| level.to_ascii_lowercase().into());
        line.insert("event".into(), event);
        // A field that was declared and not recorded is unknown: null. Dotted names are members of
        // objects, and an object whose members are all unknown is null itself.
        for name in metadata.fields().iter().map(|field| field.name()) {
            if matches!(name, "event" | "message") {
                continue;
            }
            let value = self.values.remove(name).unwrap_or(Value::Null);
            match name.split_once('.') {
                None => _ = line.insert(name.into(), value),
                Some((object, member)) => {
                    let members = line.entry(object).or_insert_with(|| Map::new().into());
                    if let Value::Object(members) = members {
                        members.insert(member.into(), value);
                    }
                }
            }
        }
        for value in line.values_mut() {
            if value.as_object().is_some_and(|members| members.values().all(Value::is_null)) {
                *value = Value::Null;
            }
        }
        line.insert("message".into(), self.message.into());
        let mut text = String::new();
        let _ = writeln!(text, "{}", Value::Object(line));
        text
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // Nobody reads finer than milliseconds.
        self.values.insert(field.name().into(), ((value * 1000.0).round() / 1000.0).into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.values.insert(field.name().into(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.values.insert(field.name().into(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.values.insert(field.name().into(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let unpacked =
            LISTS.contains(&field.name()).then(|| serde_json::from_str(value).ok()).flatten();
        self.values.insert(field.name().into(), unpacked.unwrap_or_else(|| value.into()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let value = format!("{value:?}");
        match field.name() {
            "message" => self.message = value,
            _ => _ = self.values.insert(field.name().into(), value.into()),
        }
    }
}

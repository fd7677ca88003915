//! JSON by the rules of Go's `encoding/json`, with which docker and buildx read their own files.
//!
//! A reader with other rules could find another context, builder or credential in the same file.
//! These are the rules (<https://pkg.go.dev/encoding/json#Unmarshal>):
//!
//! - The name of a struct's field matches in any case. Only a map's keys are exact.
//! - If a field has several values, the last one counts. It is read into the value that is already
//!   there: an object adds to an earlier object, and a map's new entry replaces the old one.
//! - `null` empties a map, a list or a pointer, and changes nothing else.
//! - A member that matches no field is skipped. A value of the wrong type is skipped and reported.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
};

/// A Go value that JSON can be read into. The default methods take no value at all.
pub trait Target {
    /// Takes a string. Returns false if this value is not a string.
    fn set_string(&mut self, _value: &str) -> bool {
        false
    }

    /// Takes a boolean. Returns false if this value is not a boolean.
    fn set_bool(&mut self, _value: bool) -> bool {
        false
    }

    /// Takes `null`.
    fn set_null(&mut self) {}

    /// Begins an object. Returns false if this value is neither a struct nor a map.
    fn begin_object(&mut self) -> bool {
        false
    }

    /// Returns the value that the object's member of this name is read into, if there is one.
    fn member(&mut self, _name: &str) -> Option<&mut dyn Target> {
        None
    }

    /// Begins an array. Returns false if this value is not a list.
    fn begin_array(&mut self) -> bool {
        false
    }

    /// Returns the value that the array's element at this place is read into, if there is one.
    fn element(&mut self, _at: usize) -> Option<&mut dyn Target> {
        None
    }

    /// Ends an array of this many elements.
    fn end_array(&mut self, _length: usize) {}
}

/// Makes a struct a [`Target`] with the given fields, as in
/// `fields!(Config { "currentContext" => context })`.
macro_rules! fields {
    ($name:ident { $($json:literal => $field:ident),* $(,)? }) => {
        impl $crate::go_json::Target for $name {
            fn begin_object(&mut self) -> bool {
                true
            }

            fn member(&mut self, _name: &str) -> Option<&mut dyn $crate::go_json::Target> {
                $(
                    if $crate::go_json::is_field(_name, $json) {
                        return Some(&mut self.$field);
                    }
                )*
                None
            }
        }
    };
}
pub(crate) use fields;

/// Returns whether `name` in a text means the struct's field `field`, which is ASCII.
pub(crate) fn is_field(name: &str, field: &str) -> bool {
    // Go folds the case of every letter. Of those outside ASCII, only these two fold into ASCII.
    let fold = |c: char| match c {
        'ſ' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    name == field || name.chars().map(fold).eq(field.chars().map(fold))
}

/// Reads the only value in `text`, as `json.Unmarshal` does.
///
/// # Errors
/// The text is not JSON, or a value has the wrong type.
pub fn read<T: Target + Default>(text: &[u8]) -> serde_json::Result<T> {
    let mut value = T::default();
    let mut source = serde_json::Deserializer::from_slice(text);
    Place { target: &mut value, is_strict: true }.deserialize(&mut source)?;
    source.end()?;
    Ok(value)
}

/// Reads the first value in `text`, as docker's client reads `config.json`.
///
/// The client warns of a value of the wrong type and goes on without it. A text without any value
/// reads as an empty configuration.
///
/// # Errors
/// The text is not JSON.
pub fn read_config<T: Target + Default>(text: &[u8]) -> serde_json::Result<T> {
    let mut value = T::default();
    if !text.trim_ascii().is_empty() {
        let mut source = serde_json::Deserializer::from_slice(text);
        Place { target: &mut value, is_strict: false }.deserialize(&mut source)?;
    }
    Ok(value)
}

/// A value of a known type that JSON is read into.
struct Place<'t> {
    target: &'t mut dyn Target,
    /// Whether a value of the wrong type is an error.
    is_strict: bool,
}

impl Place<'_> {
    /// Rejects a value of the wrong type, or skips it if the reading is lenient.
    fn refuse<E: Error>(&self, value: Unexpected<'_>) -> Result<(), E> {
        if self.is_strict { Err(E::invalid_type(value, self)) } else { Ok(()) }
    }
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<(), D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of another type")
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        if self.target.set_string(value) { Ok(()) } else { self.refuse(Unexpected::Str(value)) }
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        if self.target.set_bool(value) { Ok(()) } else { self.refuse(Unexpected::Bool(value)) }
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.target.set_null();
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.refuse(Unexpected::Signed(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.refuse(Unexpected::Unsigned(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.refuse(Unexpected::Float(value))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        if !self.target.begin_object() {
            self.refuse(Unexpected::Map)?;
        }
        while let Some(name) = members.next_key::<String>()? {
            match self.target.member(&name) {
                Some(target) => {
                    members.next_value_seed(Place { target, is_strict: self.is_strict })?;
                }
                None => _ = members.next_value::<IgnoredAny>()?,
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        if !self.target.begin_array() {
            self.refuse(Unexpected::Seq)?;
        }
        for at in 0.. {
            let more = match self.target.element(at) {
                Some(target) => {
                    elements.next_element_seed(Place { target, is_strict: self.is_strict })?
                }
                None => elements.next_element::<IgnoredAny>()?.map(drop),
            };
            if more.is_none() {
                self.target.end_array(at);
                break;
            }
        }
        Ok(())
    }
}

impl Target for String {
    fn set_string(&mut self, value: &str) -> bool {
        value.clone_into(self);
        true
    }
}

impl Target for bool {
    fn set_bool(&mut self, value: bool) -> bool {
        *self = value;
        true
    }
}

/// Reads into a map, whose keys are exact.
impl<T: Target + Default> Target for BTreeMap<String, T> {
    fn set_null(&mut self) {
        self.clear();
    }

    fn begin_object(&mut self) -> bool {
        true
    }

    fn member(&mut self, name: &str) -> Option<&mut dyn Target> {
        let value = self.entry(name.to_owned()).or_default();
        *value = T::default();
        Some(value)
    }
}

/// Reads into a list. A second array for the same field is read into the elements of the first.
impl<T: Target + Default> Target for Vec<T> {
    fn set_null(&mut self) {
        self.clear();
    }

    fn begin_array(&mut self) -> bool {
        true
    }

    fn element(&mut self, at: usize) -> Option<&mut dyn Target> {
        if at == self.len() {
            self.push(T::default());
        }
        Some(&mut self[at])
    }

    fn end_array(&mut self, length: usize) {
        self.truncate(length);
    }
}

/// Reads into what Go has as a pointer.
impl<T: Target + Default> Target for Option<T> {
    fn set_null(&mut self) {
        *self = None;
    }

    fn set_string(&mut self, value: &str) -> bool {
        self.get_or_insert_default().set_string(value)
    }

    fn set_bool(&mut self, value: bool) -> bool {
        self.get_or_insert_default().set_bool(value)
    }

    fn begin_object(&mut self) -> bool {
        self.get_or_insert_default().begin_object()
    }

    fn member(&mut self, name: &str) -> Option<&mut dyn Target> {
        self.as_mut()?.member(name)
    }

    fn begin_array(&mut self) -> bool {
        self.get_or_insert_default().begin_array()
    }

    fn element(&mut self, at: usize) -> Option<&mut dyn Target> {
        self.as_mut()?.element(at)
    }

    fn end_array(&mut self, length: usize) {
        if let Some(list) = self {
            list.end_array(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Default, PartialEq)]
    struct Outer {
        text: String,
        flag: bool,
        inner: Inner,
        map: BTreeMap<String, Inner>,
        list: Vec<Inner>,
        pointer: Option<Inner>,
    }
    fields!(Outer {
        "skText" => text,
        "flag" => flag,
        "inner" => inner,
        "map" => map,
        "list" => list,
        "pointer" => pointer,
    });

    #[derive(Debug, Default, PartialEq)]
    struct Inner {
        a: String,
        b: String,
    }
    fields!(Inner { "a" => a, "b" => b });

    fn inner(a: &str, b: &str) -> Inner {
        Inner { a: a.into(), b: b.into() }
    }

    fn lenient(text: &str) -> Outer {
        read_config(text.as_bytes()).unwrap()
    }

    // The expected results follow Go's decode.go. Docker's client, 20.10 and 28, confirms those that
    // show in its own two files.

    #[test]
    fn fields_match_in_any_case_and_the_last_value_counts() {
        for name in ["skText", "SKTEXT", "sktext", "\\u017fkText", "S\\u212atext", "ſKTeXt"] {
            assert_eq!(lenient(&format!("{{\"{name}\":\"x\"}}")).text, "x", "{name}");
            let both = format!("{{\"skText\":\"first\",\"{name}\":\"last\"}}");
            assert_eq!(lenient(&both).text, "last", "{name}");
            let both = format!("{{\"{name}\":\"first\",\"skText\":\"last\"}}");
            assert_eq!(lenient(&both).text, "last", "{name}");
        }
        for name in ["sk-text", "skTexts", "kText", "skTexţ", " skText", ""] {
            assert_eq!(lenient(&format!("{{\"{name}\":\"x\"}}")), Outer::default(), "{name}");
        }
    }

    #[test]
    fn later_objects_add_to_a_struct_and_replace_an_entry_of_a_map() {
        let read = lenient(
            r#"{"inner":{"a":"1","b":"2"},"INNER":{"A":"3"},
            "map":{"x":{"a":"1","b":"2"},"y":{"a":"4"}},"Map":{"x":{"a":"3"},"X":{}},
            "list":[{"a":"1","b":"2"},{"a":"4"}],"List":[{"a":"3"}],
            "pointer":{"a":"1","b":"2"},"Pointer":{"a":"3"}}"#,
        );
        assert_eq!(read.inner, inner("3", "2"));
        let map = [("X", inner("", "")), ("x", inner("3", "")), ("y", inner("4", ""))];
        assert_eq!(read.map, map.map(|(key, value)| (key.to_owned(), value)).into());
        assert_eq!(read.list, [inner("3", "2")]);
        assert_eq!(read.pointer, Some(inner("3", "2")));
    }

    #[test]
    fn null_empties_what_can_be_empty_and_leaves_the_rest() {
        let full = r#""skText":"x","flag":true,"inner":{"a":"1"},"map":{"x":{}},"list":[{}],
            "pointer":{}"#;
        let nulls = r#""sktext":null,"FLAG":null,"Inner":null,"Map":null,"List":null,
            "Pointer":null"#;
        let expected =
            Outer { text: "x".into(), flag: true, inner: inner("1", ""), ..Outer::default() };
        assert_eq!(lenient(&format!("{{{full},{nulls}}}")), expected);
        assert_eq!(lenient(r#"{"map":{"x":null}}"#).map, [("x".into(), inner("", ""))].into());
        assert_eq!(lenient("null"), Outer::default());
    }

    #[test]
    fn a_value_of_the_wrong_type_is_skipped_or_an_error() {
        for wrong in [
            r#"{"skText":7}"#,
            r#"{"skText":{}}"#,
            r#"{"skText":["x"]}"#,
            r#"{"skText":-1.5}"#,
            r#"{"flag":"true"}"#,
            r#"{"inner":"x"}"#,
            r#"{"inner":[{"a":"x"}]}"#,
            r#"{"inner":{"a":true}}"#,
            r#"{"map":[]}"#,
            r#"{"list":{}}"#,
            "[]",
            "7",
        ] {
            assert_eq!(lenient(wrong), Outer::default(), "{wrong}");
            assert!(read::<Outer>(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert_eq!(lenient(r#"{"skText":"x","sktext":7,"flag":true}"#).text, "x");
        assert_eq!(lenient(r#"{"map":{"x":7}}"#).map, [("x".into(), inner("", ""))].into());
    }

    #[test]
    fn only_a_configuration_may_be_empty_or_have_more_behind_it() {
        for text in ["", " \n", r#"{"skText":"x"} {"skText":"y"}"#, r#"{"skText":"x"}nonsense"#] {
            let expected = if text.contains('x') { "x" } else { "" };
            assert_eq!(lenient(text).text, expected, "{text}");
            assert!(read::<Outer>(text.as_bytes()).is_err(), "{text}");
        }
        for text in ["nonsense", "{", r#"{"skText":"x",}"#, r#"{"other":"x"#] {
            assert!(read_config::<Outer>(text.as_bytes()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            text in "[\\[\\]{}:,\"alist0 ]{0,60}",
        ) {
            let _ = read_config::<Outer>(&bytes);
            let _ = read::<Outer>(text.as_bytes());
            let _ = read_config::<Outer>(text.as_bytes());
        }
    }
}

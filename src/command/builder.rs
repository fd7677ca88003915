//! What a build command says about its builder and the builder's caches.

use super::options::Opt;

/// Which builder a command names, and whether it uses the builder's caches.
///
/// This is read from every command that may build, also from bake, compose and scripts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BuilderUse {
    /// The value of `--builder`.
    pub name: Option<String>,
    /// Whether the command calls buildx by name. buildx chooses its builder by rules of its own.
    pub is_buildx: bool,
    /// Whether the command has `--no-cache`, or `--no-cache-filter` for some stages.
    pub without_cache: bool,
}

impl BuilderUse {
    /// Reads words whose options are not known.
    pub(super) fn among(words: &[&str]) -> Self {
        let mut builder = BuilderUse::default();
        let options = words.iter().enumerate().filter_map(|(at, word)| {
            let long = word.strip_prefix("--")?;
            Some(match long.split_once('=') {
                Some((name, value)) => Opt { name, value: Some(value) },
                None if long == "builder" => Opt { name: long, value: words.get(at + 1).copied() },
                None => Opt { name: long, value: None },
            })
        });
        options.for_each(|opt| builder.note(opt));
        builder
    }

    /// Adds what such words say to what is known already.
    pub(super) fn with_words(self, words: &[&str]) -> Self {
        let BuilderUse { name, without_cache, .. } = Self::among(words);
        BuilderUse { name: name.or(self.name), without_cache, ..self }
    }

    /// Notes an option if it is about the builder.
    pub(super) fn note(&mut self, opt: Opt<'_>) {
        match opt.name {
            "no-cache" => self.without_cache = opt.is_on(),
            "no-cache-filter" => self.without_cache = true,
            "builder" => self.name = opt.value.map(str::to_owned),
            _ => {}
        }
    }
}

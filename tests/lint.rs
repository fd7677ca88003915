//! `buildlock lint`. The corpus of Dockerfiles is in `tests/lint/`, each with its findings beside it;
//! `tests/lint/forms/` has short real-world forms with their verdicts.

mod support;

#[path = "lint/bake.rs"]
mod bake;
#[path = "lint/compose.rs"]
mod compose;
#[path = "lint/corpus.rs"]
mod corpus;
#[path = "lint/files.rs"]
mod files;
#[path = "lint/fix.rs"]
mod fix;
#[path = "lint/output.rs"]
mod output;
#[path = "lint/scale.rs"]
mod scale;
#[path = "lint/verdicts.rs"]
mod verdicts;
#[path = "lint/walk.rs"]
mod walk;

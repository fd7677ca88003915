//! Build caches that several builds write (`--cache`): by one build at a time, or by one alone until
//! it has been warmed for these very files, and then by all at once.
//!
//! That a cache is warm is a note beside its lock and never evidence: builders lose caches. So the
//! engine is asked where it can tell, and a build that fails beside others runs once more, alone,
//! before its failure counts.

mod memory;
mod session;
mod spec;
mod warmth;

pub use self::memory::{forget, list};
pub(crate) use self::session::{Asked, Caches, Want, take_all_alone};
pub use self::spec::Use;
pub(crate) use self::warmth::Account;

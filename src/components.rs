//! The components of a path, for code that follows symbolic links itself.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path};

use rustix::io::Errno;

/// The components that are left of a path. The target of a link takes the place of the link.
#[derive(Debug, Default)]
pub(crate) struct Components {
    left: VecDeque<OsString>,
    /// How many links have been followed.
    links: usize,
}

impl Components {
    pub(crate) fn of(path: &Path) -> Self {
        let mut components = Self::default();
        components.prepend(path);
        components
    }

    /// Takes the next component: a name, or `..`.
    pub(crate) fn next(&mut self) -> Option<OsString> {
        self.left.pop_front()
    }

    /// Returns whether the component that was taken last was the end of the path.
    pub(crate) fn are_at_the_end(&self) -> bool {
        self.left.is_empty()
    }

    /// Puts the target of the link that was taken last in its place.
    ///
    /// # Errors
    /// ELOOP after as many links as the kernel follows (path_resolution(7)).
    pub(crate) fn follow(&mut self, target: &Path) -> Result<(), Errno> {
        const LINKS_MAX: usize = 40;
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(Errno::LOOP);
        }
        self.prepend(target);
        Ok(())
    }

    fn prepend(&mut self, path: &Path) {
        for component in path.components().rev() {
            if matches!(component, Component::Normal(_) | Component::ParentDir) {
                self.left.push_front(component.as_os_str().to_owned());
            }
        }
    }
}

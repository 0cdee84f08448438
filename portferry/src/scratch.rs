//! Where tests write, and what they write goes with them.

use std::path::PathBuf;

/// A directory of one test; it and what is in it goes at the end, also when the test fails.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    /// An empty one. `name` is the test's alone.
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("portferry-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

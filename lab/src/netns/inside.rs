//! Sockets of a test's own in a member's namespace: a thread goes there, and what it opens stays there.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::panic;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Host, Network};

impl Network {
    /// Runs `what` on a thread in a member's namespace. Sockets that it gives back are of that namespace still, and so are threads that
    /// it begins.
    ///
    /// # Panics
    ///
    /// As `what` does.
    pub fn inside<T: Send>(&self, host: Host, what: impl FnOnce() -> T + Send) -> T {
        let namespace = self.file(host);
        let done = thread::scope(|scope| {
            let there = scope.spawn(|| {
                enter(&namespace);
                what()
            });
            there.join()
        });
        done.unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    }

    /// Begins `what` on a thread in a member's namespace.
    pub fn begin<T: Send + 'static>(
        &self,
        host: Host,
        what: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = self.file(host);
        thread::spawn(move || {
            enter(&namespace);
            what()
        })
    }

    fn file(&self, host: Host) -> PathBuf {
        Path::new("/run/netns").join(self.namespace(host))
    }
}

fn enter(namespace: &Path) {
    let file = File::open(namespace).unwrap_or_else(|error| panic!("{}: {error}", namespace.display()));
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("the lab has root");
}

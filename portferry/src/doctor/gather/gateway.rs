//! What the running gateway says of itself at its control socket.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::control::{MappingReport, Question, StatusReport, query};
use crate::doctor::facts::Gateway;

/// Its status and its mappings.
pub(super) fn ask(socket: &Path) -> Gateway {
    match UnixStream::connect(socket) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Gateway::NotAllowed,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            return Gateway::NotRunning;
        }
        Err(error) => return Gateway::Unanswering(error.to_string()),
    }
    let both = status(socket).and_then(|status| {
        let text = query(socket, Question::Mappings).map_err(|failure| failure.to_string())?;
        let mappings: Vec<MappingReport> = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        Ok((status, mappings))
    });
    match both {
        Ok((status, mappings)) => Gateway::Running { status: Box::new(status), mappings, own_searches: None },
        Err(why) => Gateway::Unanswering(why),
    }
}

/// Whether it has heard the search that was sent meanwhile.
pub(super) fn ask_again(gateway: &mut Gateway, socket: &Path) {
    if let Gateway::Running { status: before, own_searches, .. } = gateway
        && let Ok(now) = status(socket)
    {
        *own_searches = Some((before.own_searches, now.own_searches));
    }
}

fn status(socket: &Path) -> Result<StatusReport, String> {
    let text = query(socket, Question::Status).map_err(|failure| failure.to_string())?;
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

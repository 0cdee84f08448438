//! The socket pair between the two processes: messages keep their bounds, and one may carry a descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, send, sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// One end.
pub(super) struct Channel {
    /// What tokio waits with; that it is of a type which knows its end makes no difference to that.
    socket: UnixDatagram,
}

/// A message with what came along.
#[derive(Debug)]
pub(super) struct Message {
    /// Octets of the buffer that are its.
    pub(super) len: usize,
    pub(super) fd: Option<OwnedFd>,
}

/// Both ends. Neither is inherited by a program that is run, unless it is given to it.
///
/// # Errors
/// What the system says.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

impl Channel {
    /// Within a runtime.
    ///
    /// # Errors
    /// It is no descriptor that can be waited for.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        // The end that comes by standard input may have lost it.
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { socket: UnixDatagram::from_std(fd.into())? })
    }

    /// Sends one message. Without a descriptor by no call but `send`: the network process has no other.
    ///
    /// # Errors
    /// The other side is gone, or it is too long.
    pub(super) async fn send(&self, octets: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.socket
            .async_io(Interest::WRITABLE, || {
                let Some(fd) = fd else {
                    send(self.socket.as_fd(), octets, SendFlags::NOSIGNAL)?;
                    return Ok(());
                };
                let fds = [fd];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                sendmsg(self.socket.as_fd(), &[IoSlice::new(octets)], &mut control, SendFlags::NOSIGNAL)?;
                Ok(())
            })
            .await
    }

    /// The next message; `None` when the other side is gone.
    ///
    /// # Errors
    /// It is longer than `buffer`, and lost.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Message>> {
        let received = self.socket.async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(buffer)];
            let received = recvmsg(self.socket.as_fd(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            let mut fds = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            });
            let fd = fds.next().and_then(|mut fds| fds.next());
            Ok((received.bytes, received.flags.contains(ReturnFlags::TRUNC), fd))
        });
        match received.await? {
            (_, true, _) => Err(io::ErrorKind::InvalidData.into()),
            (0, ..) => Ok(None),
            (len, _, fd) => Ok(Some(Message { len, fd })),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    #[tokio::test]
    async fn messages_keep_their_bounds_and_bring_a_descriptor() {
        let (one, other) = pair().unwrap();
        let (one, other) = (Channel::new(one).unwrap(), Channel::new(other).unwrap());
        let mut file = tempfile();
        file.write_all(b"inside").unwrap();
        one.send(b"first", None).await.unwrap();
        one.send(b"second", Some(file.as_fd())).await.unwrap();
        one.send(&[7; 100], None).await.unwrap();
        let mut buffer = [0; 64];
        let first = other.receive(&mut buffer).await.unwrap().unwrap();
        assert_eq!((&buffer[..first.len], first.fd.is_some()), (&b"first"[..], false));
        let second = other.receive(&mut buffer).await.unwrap().unwrap();
        assert_eq!(&buffer[..second.len], b"second");
        let mut again = std::fs::File::from(second.fd.unwrap());
        let mut text = String::new();
        again.rewind().unwrap();
        again.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        assert_eq!(other.receive(&mut buffer).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(one);
        assert!(other.receive(&mut buffer).await.unwrap().is_none());
        assert!(other.send(b"nobody", None).await.is_err());
    }

    fn tempfile() -> std::fs::File {
        let path = std::env::temp_dir().join(format!("portferry-channel-{}", std::process::id()));
        let options = std::fs::File::options().read(true).write(true).create(true).truncate(true).clone();
        let file = options.open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }
}

//! Delivers events to subscribers (UDA §4.3): one connection for each, bounded in time and size, no redirect followed.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use engine::gena::{Delivery, Notification};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wire::description::Uuid;
use wire::gena::CallbackUrl;

use crate::privileged::Sockets;
use crate::sockets::{Spec, connected};

/// For one callback, from the connection to the answer.
const TIME: Duration = Duration::from_secs(2);
/// Of the answer only the status line counts.
const MAX_ANSWER: usize = 4096;

/// Tries the callbacks in their order until one takes the event. `interface` is the name of that which the subscriber is on.
pub(crate) async fn deliver(event: &Notification, interface: &str, sockets: &Sockets) -> Delivery {
    for callback in &event.callbacks {
        let request = wire::gena::notify(callback, event.sid, event.seq, &event.body);
        let to = address(callback, event.interface);
        let spec = Spec::Callback { interface: interface.to_owned(), to };
        match tokio::time::timeout(TIME, exchange(sockets, spec, &request)).await {
            Ok(Ok(200..=299)) => return Delivery::Done,
            Ok(Ok(412)) => return Delivery::Unknown,
            Ok(Ok(status)) => debug(event.sid, callback, &format!("status {status}")),
            Ok(Err(error)) => debug(event.sid, callback, &error.to_string()),
            Err(_) => debug(event.sid, callback, "no answer in time"),
        }
    }
    Delivery::Failed
}

fn debug(sid: Uuid, callback: &CallbackUrl, what: &str) {
    tracing::debug!("event for subscription {sid} to {callback}: {what}");
}

/// Where a callback is: a link-local address is one on the subscriber's own link.
fn address(callback: &CallbackUrl, interface: u32) -> SocketAddr {
    match callback.host {
        IpAddr::V6(host) if host.is_unicast_link_local() => {
            SocketAddrV6::new(host, callback.port, 0, interface).into()
        }
        host => SocketAddr::new(host, callback.port),
    }
}

/// Sends `request` and gives the answer's status.
async fn exchange(sockets: &Sockets, spec: Spec, request: &str) -> io::Result<u16> {
    let mut stream = connected(sockets.open(spec, 0).await?).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut part = [0; 256];
    while !answer.contains(&b'\n') && answer.len() < MAX_ANSWER {
        match stream.read(&mut part).await? {
            0 => break,
            len => answer.extend_from_slice(&part[..len]),
        }
    }
    status(&answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The code of a status line.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|&byte| byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next().filter(|code| code.len() == 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn status_lines() {
        for (answer, code) in [
            (&b"HTTP/1.1 200 OK\r\n"[..], Some(200)),
            (b"HTTP/1.0 412", Some(412)),
            (b"HTTP/1.1 20 OK\r\n", None),
            (b"ICY 200 OK\r\n", None),
            (b"\xff\n", None),
            (b"", None),
        ] {
            assert_eq!(status(answer), code, "{answer:?}");
        }
    }

    /// K-10: callbacks over IPv6, on the subscriber's link where the address is only of that.
    #[test]
    fn where_a_callback_is() {
        for (url, to) in [
            ("http://192.168.1.10:5000/e", "192.168.1.10:5000"),
            ("http://[2001:db8::10]:5000/e", "[2001:db8::10]:5000"),
            ("http://[fe80::10]/e", "[fe80::10%3]:80"),
            ("http://[fe80::10%eth0]:5000/e", "[fe80::10%3]:5000"),
        ] {
            assert_eq!(address(&CallbackUrl::parse(url).unwrap(), 3), to.parse().unwrap(), "{url}");
        }
    }

    /// E-6: in the order given until one works; what answers is believed by its status.
    #[tokio::test]
    async fn the_next_callback_is_tried() {
        for (answer, wanted) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Delivery::Done),
            ("HTTP/1.1 412 Precondition Failed\r\n\r\n", Delivery::Unknown),
            ("HTTP/1.1 500 Oops\r\n\r\n", Delivery::Failed),
            ("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n", Delivery::Failed),
            ("", Delivery::Failed),
        ] {
            let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let open = listener.local_addr().unwrap();
            let callbacks =
                [closed, open].map(|addr| CallbackUrl::parse(&format!("http://{addr}/e")).unwrap());
            let event = Notification {
                sid: Uuid([7; 16]),
                callbacks: callbacks.to_vec(),
                interface: 1,
                seq: 3,
                body: "<x/>".to_owned(),
            };
            let subscriber = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 1024];
                let len = stream.read(&mut request).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
                String::from_utf8(request[..len].to_vec()).unwrap()
            };
            let (delivery, request) = tokio::join!(deliver(&event, "lo", &Sockets::Here(0)), subscriber);
            assert_eq!(delivery, wanted, "{answer:?}");
            assert!(request.starts_with("NOTIFY /e HTTP/1.1\r\n"), "{request}");
            assert!(request.contains("\r\nSEQ: 3\r\n"), "{request}");
        }
    }
}

//! Exchanges of HTTP with the provider's router: one connection for each over the WAN interface, bounded in time and size, no
//! redirect followed.

use std::io;

use engine::uplink::{HttpOutcome, HttpRequest, MAX_HTTP_BODY};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;

use crate::privileged::Sockets;
use crate::sockets::{Spec, connected};

/// The head of an answer, in octets.
const MAX_HEAD: usize = 16 * 1024;

/// Carries out one exchange.
pub(crate) async fn exchange(interface: &str, request: &HttpRequest, sockets: &Sockets) -> HttpOutcome {
    let what = request.action.as_deref().unwrap_or("its description");
    match tokio::time::timeout(request.within, attempt(interface, request, sockets)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => {
            tracing::debug!("{what} at http://{}{}: {error}", request.to, request.path);
            HttpOutcome::Failed
        }
        Err(_) => {
            tracing::debug!("{what} at http://{}{}: no answer in time", request.to, request.path);
            HttpOutcome::Failed
        }
    }
}

async fn attempt(interface: &str, request: &HttpRequest, sockets: &Sockets) -> io::Result<HttpOutcome> {
    let spec = Spec::Router { interface: interface.to_owned(), to: request.to };
    let stream = connected(sockets.open(spec, 0).await?).await?;
    let mut builder = http1::Builder::new();
    // As lenient as real routers need it.
    builder
        .title_case_headers(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .ignore_invalid_headers_in_responses(true)
        .max_buf_size(MAX_HEAD);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let exchange = async {
        let answer = sender.send_request(message(request)?).await.map_err(io::Error::other)?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), MAX_HTTP_BODY).collect().await;
        let body = body.map_err(io::Error::other)?.to_bytes().to_vec();
        Ok(HttpOutcome::Answer { status, body })
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        outcome = &mut exchange => outcome,
        // It has ended: what came before that is there.
        _ = &mut connection => exchange.await,
    }
}

fn message(request: &HttpRequest) -> io::Result<Request<Full<Bytes>>> {
    let method = if request.action.is_some() { Method::POST } else { Method::GET };
    let mut message = Request::builder()
        .method(method)
        .uri(&request.path)
        .header("Host", request.to.to_string())
        .header("User-Agent", concat!("Linux UPnP/1.1 portferry/", env!("CARGO_PKG_VERSION")))
        .header("Connection", "close");
    if let Some(action) = &request.action {
        message = message
            .header("SOAPAction", format!("\"{action}\""))
            .header("Content-Type", "text/xml; charset=\"utf-8\"");
    }
    message.body(Full::new(Bytes::from(request.body.clone()))).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, SocketAddrV4};
    use std::time::Duration;

    use engine::uplink::HttpId;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// What becomes of a request whose answer is `says`, again and again if `endless`; and the request as it was sent.
    async fn answered(says: &[u8], endless: bool, action: Option<&str>) -> (HttpOutcome, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(to) = listener.local_addr().unwrap() else { panic!("IPv4") };
        let request = asks(to, action);
        let router = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            let mut part = [0; 1024];
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                let len = stream.read(&mut part).await.unwrap();
                head.extend_from_slice(&part[..len]);
            }
            // The other side may have had enough.
            while stream.write_all(says).await.is_ok() && endless {}
            String::from_utf8(head).unwrap()
        };
        tokio::join!(exchange("lo", &request, &Sockets::Here(0)), router)
    }

    fn asks(to: SocketAddrV4, action: Option<&str>) -> HttpRequest {
        HttpRequest {
            id: HttpId(1),
            to,
            path: "/a?b".to_owned(),
            action: action.map(str::to_owned),
            body: if action.is_some() { "<x/>".to_owned() } else { String::new() },
            within: Duration::from_secs(20),
        }
    }

    #[tokio::test]
    async fn requests_as_routers_read_them() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let fine = HttpOutcome::Answer { status: 200, body: b"ok".to_vec() };
        let (outcome, head) = answered(answer, false, None).await;
        assert_eq!(outcome, fine);
        assert!(head.starts_with("GET /a?b HTTP/1.1\r\nHost: 127.0.0.1:"), "{head}");
        let (outcome, head) = answered(answer, false, Some("urn:x#Do")).await;
        assert_eq!(outcome, fine);
        assert!(head.starts_with("POST /a?b HTTP/1.1\r\n"), "{head}");
        for line in ["Soapaction: \"urn:x#Do\"\r\n", "Content-Length: 4\r\n", "Connection: close\r\n"] {
            assert!(head.contains(line), "{head}");
        }
    }

    #[tokio::test]
    async fn whatever_is_answered() {
        let answer = |status, body: &[u8]| HttpOutcome::Answer { status, body: body.to_vec() };
        for (says, expected) in [
            // No redirect is followed.
            (
                &b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"[..],
                answer(302, b""),
            ),
            (b"HTTP/1.1 500 Oops\r\nContent-Length: 1\r\n\r\nx", answer(500, b"x")),
            (b"HTTP/1.0 200 OK\r\nServer : old\r\nEXT:\r\n\r\nto the end", answer(200, b"to the end")),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
                answer(200, b"ab"),
            ),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", HttpOutcome::Failed),
            (b"ICY 200 OK\r\n\r\n", HttpOutcome::Failed),
            (b"\x16\x03\x01", HttpOutcome::Failed),
            (b"", HttpOutcome::Failed),
        ] {
            let (outcome, _) = answered(says, false, None).await;
            assert_eq!(outcome, expected, "{:?}", String::from_utf8_lossy(says));
        }
    }

    /// Neither a body nor a head without end is read for long.
    #[tokio::test]
    async fn answers_without_end() {
        let body = [b"HTTP/1.1 200 OK\r\n\r\n".as_slice(), &[b'<'; 8192]].concat();
        let head = [b"X: ".as_slice(), &[b'x'; 8192], b"\r\n"].concat();
        for says in [body, [b"HTTP/1.1 200 OK\r\n".as_slice(), &head].concat()] {
            let (outcome, _) = answered(&says, true, None).await;
            assert_eq!(outcome, HttpOutcome::Failed);
        }
    }

    #[tokio::test]
    async fn no_answer_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(to) = listener.local_addr().unwrap() else { panic!("IPv4") };
        let within = Duration::from_millis(50);
        assert_eq!(
            exchange("lo", &HttpRequest { within, ..asks(to, None) }, &Sockets::Here(0)).await,
            HttpOutcome::Failed
        );
        drop(listener);
        assert_eq!(
            exchange("lo", &asks(to, None), &Sockets::Here(0)).await,
            HttpOutcome::Failed,
            "nobody there"
        );
    }
}

//! A control point's HTTP, octet by octet: connections that are kept or not, and answers that are read to their end.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// How long whatever is asked may take. A gateway answers within some seconds, whatever its provider does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }
}

/// Asks one gateway, on a connection that it keeps while both like.
pub(crate) struct Client {
    gateway: SocketAddr,
    /// The address of ours that it speaks from; `None`: the kernel's choice.
    local: Option<IpAddr>,
    kept: Option<BufReader<TcpStream>>,
    /// How often a kept connection turned out to have been closed meanwhile.
    pub(crate) reopened: u64,
}

impl Client {
    pub(crate) fn new(gateway: SocketAddr) -> Self {
        Self { gateway, local: None, kept: None, reopened: 0 }
    }

    /// One that speaks from this address of its host.
    pub(crate) fn from(gateway: SocketAddr, local: IpAddr) -> Self {
        Self { local: Some(local), ..Self::new(gateway) }
    }

    /// One request, its head as [`head`] makes it: what comes before the fields Host and Content-Length, which are added, and the body.
    ///
    /// # Errors
    /// No connection, or no whole answer within [`PATIENCE`].
    pub(crate) fn ask(&mut self, head: &str, body: &str, keep: bool) -> io::Result<Answer> {
        let (gateway, length) = (self.gateway, body.len());
        let connection = if keep { "" } else { "Connection: close\r\n" };
        let request = format!("{head}Host: {gateway}\r\n{connection}Content-Length: {length}\r\n\r\n{body}");
        if let Some(mut stream) = self.kept.take() {
            // A server may close what is idle at any moment, so that a request on it is tried once more (RFC 9112 §9.3.1).
            match exchange(&mut stream, request.as_bytes()) {
                Ok(answer) => {
                    self.keep(stream, &answer, keep);
                    return Ok(answer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(_) => self.reopened += 1,
            }
        }
        let stream = self.connect()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut stream = BufReader::new(stream);
        let answer = exchange(&mut stream, request.as_bytes())?;
        self.keep(stream, &answer, keep);
        Ok(answer)
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let Some(local) = self.local else { return TcpStream::connect_timeout(&self.gateway, PATIENCE) };
        let socket = Socket::new(Domain::for_address(self.gateway), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(local, 0).into())?;
        socket.connect_timeout(&self.gateway.into(), PATIENCE)?;
        Ok(socket.into())
    }

    fn keep(&mut self, stream: BufReader<TcpStream>, answer: &Answer, keep: bool) {
        let closes = answer.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        self.kept = (keep && !closes).then_some(stream);
    }
}

fn exchange(stream: &mut BufReader<TcpStream>, request: &[u8]) -> io::Result<Answer> {
    stream.get_mut().write_all(request)?;
    read(stream)
}

/// Reads one answer; it has to say how long it is.
///
/// # Errors
/// It ends early, or is none.
pub(crate) fn read(stream: &mut impl io::BufRead) -> io::Result<Answer> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.by_ref().take(16_384).read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let status = lines.first().and_then(|line| line.split(' ').nth(1)?.parse().ok()).ok_or_else(invalid)?;
    let fields: Vec<_> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut answer = Answer { status, fields, body: Vec::new() };
    let length: u64 =
        answer.field("content-length").and_then(|text| text.parse().ok()).ok_or_else(invalid)?;
    stream.by_ref().take(length).read_to_end(&mut answer.body)?;
    if u64::try_from(answer.body.len()) == Ok(length) {
        Ok(answer)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// What goes before the fields that [`Client::ask`] adds.
pub(crate) fn head(method: &str, path: &str, fields: &[(&str, &str)]) -> String {
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\n{fields}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_to_its_end_and_no_further() {
        let mut octets = &b"HTTP/1.1 500 x\r\nEXT: \r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200"[..];
        let answer = read(&mut octets).unwrap();
        assert_eq!((answer.status, &answer.body[..], answer.field("ext")), (500, &b"ok"[..], Some("")));
        assert_eq!(octets, b"HTTP/1.1 200");
        for cut in [&b""[..], b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", b"HTTP/1.1 200 OK\r\n\r\n"] {
            assert!(read(&mut &cut[..]).is_err(), "{}", String::from_utf8_lossy(cut));
        }
    }
}

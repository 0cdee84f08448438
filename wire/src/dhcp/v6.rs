//! DHCPv6's Information-request and its Reply (RFC 8415 §18.2.6, §18.2.10.4), as far as option 86 goes.

use std::net::Ipv6Addr;

use crate::codec::{Malformed, Reader};

/// UDP port of clients (RFC 8415 §7.2).
pub const CLIENT_PORT: u16 = 546;
/// UDP port of servers and relay agents (RFC 8415 §7.2).
pub const SERVER_PORT: u16 = 547;
/// All_DHCP_Relay_Agents_and_Servers, of the link's scope (RFC 8415 §7.1).
pub const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// Message types (RFC 8415 §7.3).
const REPLY: u8 = 7;
const INFORMATION_REQUEST: u8 = 11;

/// Options (RFC 8415 §21, RFC 7291 §3.1).
const CLIENT_IDENTIFIER: u16 = 1;
const SERVER_IDENTIFIER: u16 = 2;
const OPTION_REQUEST: u16 = 6;
const ELAPSED_TIME: u16 = 8;
const STATUS_CODE: u16 = 13;
const INFORMATION_REFRESH_TIME: u16 = 32;
const INF_MAX_RT: u16 = 83;
const PCP_SERVER: u16 = 86;

/// What is asked for; the first two have to be (RFC 8415 §18.2.6).
const REQUESTED: [u16; 3] = [INF_MAX_RT, INFORMATION_REFRESH_TIME, PCP_SERVER];

/// A client that needs no address asks for parameters: the PCP servers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InformationRequest {
    /// Random; the answer has the same (RFC 8415 §16.1).
    pub transaction: [u8; 3],
    /// The client's DUID, 3 to 130 octets (RFC 8415 §11.1).
    pub client: Vec<u8>,
    /// Hundredths of a second since the first message of this exchange; 0xffff for more (RFC 8415 §21.9).
    pub elapsed_time: u16,
}

impl InformationRequest {
    /// The datagram.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut w = vec![INFORMATION_REQUEST];
        w.extend(self.transaction);
        put(&mut w, CLIENT_IDENTIFIER, &self.client);
        put(&mut w, OPTION_REQUEST, &REQUESTED.map(u16::to_be_bytes).concat());
        put(&mut w, ELAPSED_TIME, &self.elapsed_time.to_be_bytes());
        w
    }

    /// Reads one as a server does, as far as it is made above.
    ///
    /// # Errors
    /// It is another message, is cut, lacks one of the three options, or asks for other things alone.
    pub fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        let (transaction, options) = options(datagram, INFORMATION_REQUEST)?;
        let option = |code| options.iter().find(|(found, _)| *found == code).map(|(_, value)| *value);
        let requested = option(OPTION_REQUEST).ok_or(Malformed)?;
        if !requested.chunks(2).any(|code| code == PCP_SERVER.to_be_bytes()) {
            return Err(Malformed);
        }
        let elapsed_time = option(ELAPSED_TIME).and_then(|value| value.try_into().ok()).ok_or(Malformed)?;
        Ok(Self {
            transaction,
            client: option(CLIENT_IDENTIFIER).ok_or(Malformed)?.to_vec(),
            elapsed_time: u16::from_be_bytes(elapsed_time),
        })
    }
}

/// A server's answer to [`InformationRequest`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Reply {
    /// That of the question.
    pub transaction: [u8; 3],
    /// The client's DUID, if the server repeats it.
    pub client: Option<Vec<u8>>,
    /// The server's DUID.
    pub server: Vec<u8>,
    /// The status code: 0 or absent is success (RFC 8415 §21.13).
    pub status: Option<u16>,
    /// When to ask again, in seconds; 0xffff_ffff is never (RFC 8415 §21.23, §7.7).
    pub refresh: Option<u32>,
    /// The longest time between two questions without an answer, in seconds (RFC 8415 §21.25).
    pub max_timeout: Option<u32>,
    /// The values of options 86, one for each PCP server; for [`super::decode_option_86`].
    pub pcp_servers: Vec<Vec<u8>>,
}

impl Reply {
    /// Reads one as a client does. An option whose length is wrong counts as absent.
    ///
    /// # Errors
    /// It is no Reply, has no server identifier (RFC 8415 §16.10), or an option that is cut.
    pub fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        let (transaction, options) = options(datagram, REPLY)?;
        let option = |code| options.iter().find(|(found, _)| *found == code).map(|(_, value)| *value);
        let seconds = |code| option(code).and_then(|value| value.try_into().ok()).map(u32::from_be_bytes);
        let server = option(SERVER_IDENTIFIER).filter(|duid| !duid.is_empty()).ok_or(Malformed)?;
        let servers = options.iter().filter(|(code, _)| *code == PCP_SERVER);
        Ok(Self {
            transaction,
            client: option(CLIENT_IDENTIFIER).map(<[u8]>::to_vec),
            server: server.to_vec(),
            status: option(STATUS_CODE)
                .and_then(|value| value.first_chunk())
                .copied()
                .map(u16::from_be_bytes),
            refresh: seconds(INFORMATION_REFRESH_TIME),
            max_timeout: seconds(INF_MAX_RT),
            pcp_servers: servers.map(|(_, value)| value.to_vec()).collect(),
        })
    }

    /// The datagram as a server sends it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut w = vec![REPLY];
        w.extend(self.transaction);
        if let Some(client) = &self.client {
            put(&mut w, CLIENT_IDENTIFIER, client);
        }
        put(&mut w, SERVER_IDENTIFIER, &self.server);
        if let Some(status) = self.status {
            put(&mut w, STATUS_CODE, &status.to_be_bytes());
        }
        if let Some(refresh) = self.refresh {
            put(&mut w, INFORMATION_REFRESH_TIME, &refresh.to_be_bytes());
        }
        if let Some(limit) = self.max_timeout {
            put(&mut w, INF_MAX_RT, &limit.to_be_bytes());
        }
        for server in &self.pcp_servers {
            put(&mut w, PCP_SERVER, server);
        }
        w
    }
}

/// One option: code, length, value (RFC 8415 §21.1). What is longer than its length can say does not go out.
fn put(w: &mut Vec<u8>, code: u16, value: &[u8]) {
    let Ok(len) = u16::try_from(value.len()) else { return };
    w.extend(code.to_be_bytes());
    w.extend(len.to_be_bytes());
    w.extend(value);
}

/// Code and value, in the order in which they came.
type Options<'a> = Vec<(u16, &'a [u8])>;

/// The transaction and the options of a message of this type (RFC 8415 §8).
fn options(datagram: &[u8], message_type: u8) -> Result<([u8; 3], Options<'_>), Malformed> {
    let mut r = Reader::new(datagram);
    if r.u8()? != message_type {
        return Err(Malformed);
    }
    let transaction = r.array()?;
    let mut options = Vec::new();
    while !r.is_empty() {
        let (code, len) = (r.u16()?, r.u16()?);
        options.push((code, r.take(usize::from(len))?));
    }
    Ok((transaction, options))
}

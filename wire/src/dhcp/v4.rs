//! DHCPINFORM and its DHCPACK (RFC 2131 §3.4, §4.4.3), as far as option 158 goes.

use std::net::Ipv4Addr;

use crate::codec::{Malformed, Reader};

/// UDP port of clients.
pub const CLIENT_PORT: u16 = 68;
/// UDP port of servers and relay agents.
pub const SERVER_PORT: u16 = 67;

/// No BOOTP message is shorter (RFC 951 §3), and relay agents may drop what is (RFC 1542 §2.1).
const MIN_LEN: usize = 300;
/// The longest message that is welcome, headers of IP and UDP included, as they fit into an Ethernet frame (RFC 2132 §9.10).
const MAX_MESSAGE: u16 = 1500;

/// The first octets of the options (RFC 2131 §3).
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const BOOTREQUEST: u8 = 1;
const BOOTREPLY: u8 = 2;
/// Hardware type of Ethernet.
const ETHERNET: u8 = 1;

const CHADDR_LEN: usize = 16;
const SNAME_LEN: usize = 64;
const FILE_LEN: usize = 128;

// Options (RFC 2132, RFC 7291).
const PAD: u8 = 0;
const OVERLOAD: u8 = 52;
const MESSAGE_TYPE: u8 = 53;
const SERVER_IDENTIFIER: u8 = 54;
const PARAMETER_REQUEST_LIST: u8 = 55;
const MAXIMUM_MESSAGE_SIZE: u8 = 57;
const PCP_SERVER: u8 = 158;
const END: u8 = 255;

const DHCPACK: u8 = 5;
const DHCPINFORM: u8 = 8;

/// A client that has its address asks for parameters (RFC 2131 §4.4.3): the PCP servers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Inform {
    /// Random; the answer has the same.
    pub xid: u32,
    /// Seconds since the client began to ask.
    pub secs: u16,
    /// The client's address.
    pub client: Ipv4Addr,
    /// Its Ethernet address, where the interface has one.
    pub hardware: Option<[u8; 6]>,
}

impl Inform {
    /// The datagram; 300 octets.
    pub fn to_bytes(&self) -> Vec<u8> {
        let len = self.hardware.map_or(0, |_| 6);
        let mut w = vec![BOOTREQUEST, ETHERNET, len, 0];
        head(&mut w, self.xid, self.secs, self.client, self.hardware);
        w.extend([0; SNAME_LEN + FILE_LEN]);
        w.extend(COOKIE);
        w.extend([MESSAGE_TYPE, 1, DHCPINFORM]);
        w.extend([PARAMETER_REQUEST_LIST, 1, PCP_SERVER]);
        w.extend([MAXIMUM_MESSAGE_SIZE, 2]);
        w.extend(MAX_MESSAGE.to_be_bytes());
        w.push(END);
        w.resize(MIN_LEN.max(w.len()), PAD);
        w
    }

    /// Reads one as a server does, as far as it is made above.
    ///
    /// # Errors
    /// It is no DHCPINFORM, asks for other things alone, or is cut.
    pub fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        let message = Message::parse(datagram, BOOTREQUEST)?;
        let requested = message.option(PARAMETER_REQUEST_LIST).unwrap_or_default();
        if message.option(MESSAGE_TYPE).as_deref() != Some(&[DHCPINFORM]) || !requested.contains(&PCP_SERVER)
        {
            return Err(Malformed);
        }
        let Message { xid, secs, client, hardware, .. } = message;
        Ok(Self { xid, secs, client, hardware })
    }
}

/// A server's answer to [`Inform`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ack {
    /// That of the question.
    pub xid: u32,
    /// The client's address.
    pub client: Ipv4Addr,
    /// The server identifier.
    pub server: Ipv4Addr,
    /// The value of option 158, its parts joined (RFC 3396 §7); for [`super::decode_option_158`].
    pub pcp_servers: Option<Vec<u8>>,
}

impl Ack {
    /// Reads one as a client does. Options in the fields `file` and `sname` count where the server says so (RFC 2131 §4.1).
    ///
    /// # Errors
    /// It is no DHCPACK, has no server identifier (RFC 2131 table 3), has an option that is cut, or no end option.
    pub fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        let message = Message::parse(datagram, BOOTREPLY)?;
        if message.option(MESSAGE_TYPE).as_deref() != Some(&[DHCPACK]) {
            return Err(Malformed);
        }
        let server = message.option(SERVER_IDENTIFIER).ok_or(Malformed)?;
        let server = <[u8; 4]>::try_from(server).map_err(|_| Malformed)?.into();
        let pcp_servers = message.option(PCP_SERVER);
        Ok(Self { xid: message.xid, client: message.client, server, pcp_servers })
    }

    /// The datagram as a server sends it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut w = vec![BOOTREPLY, ETHERNET, 0, 0];
        head(&mut w, self.xid, 0, self.client, None);
        w.extend([0; SNAME_LEN + FILE_LEN]);
        w.extend(COOKIE);
        w.extend([MESSAGE_TYPE, 1, DHCPACK]);
        w.extend([SERVER_IDENTIFIER, 4]);
        w.extend(self.server.octets());
        // A long one goes in parts (RFC 3396 §6), an empty one as itself.
        let value = self.pcp_servers.as_deref();
        let empty = value.filter(|value| value.is_empty()).map(|value| [value]);
        let parts = value.unwrap_or_default().chunks(255);
        for part in parts.chain(empty.into_iter().flatten()) {
            w.extend([PCP_SERVER, u8::try_from(part.len()).expect("255 at most")]);
            w.extend(part);
        }
        w.push(END);
        w
    }
}

/// From the transaction identifier to the hardware address: 40 octets.
fn head(w: &mut Vec<u8>, xid: u32, secs: u16, client: Ipv4Addr, hardware: Option<[u8; 6]>) {
    w.extend(xid.to_be_bytes());
    w.extend(secs.to_be_bytes());
    w.extend([0; 2]); // flags: whoever has an address is answered there
    w.extend(client.octets());
    w.extend([0; 12]); // yiaddr, siaddr, giaddr
    let mut address = [0; CHADDR_LEN];
    address[..6].copy_from_slice(&hardware.unwrap_or_default());
    w.extend(address);
}

/// Any DHCPv4 message, its options as they came.
struct Message<'a> {
    xid: u32,
    secs: u16,
    client: Ipv4Addr,
    hardware: Option<[u8; 6]>,
    /// In the order of the aggregate option buffer (RFC 3396 §5): options, `file`, `sname`.
    options: Vec<(u8, &'a [u8])>,
}

impl<'a> Message<'a> {
    fn parse(datagram: &'a [u8], op: u8) -> Result<Self, Malformed> {
        let mut r = Reader::new(datagram);
        let [found, _htype, hlen, _hops] = r.array()?;
        if found != op {
            return Err(Malformed);
        }
        let (xid, secs, _flags) = (r.u32()?, r.u16()?, r.u16()?);
        let client = r.array::<4>()?.into();
        let _others = r.take(12)?;
        let chaddr = r.array::<CHADDR_LEN>()?;
        let hardware = chaddr.first_chunk().copied().filter(|_| hlen == 6);
        let (sname, file) = (r.take(SNAME_LEN)?, r.take(FILE_LEN)?);
        if r.array()? != COOKIE {
            return Err(Malformed);
        }
        let mut options = Vec::new();
        read_options(r.rest(), &mut options)?;
        let overload = options.iter().find(|(code, _)| *code == OVERLOAD).map(|(_, value)| *value);
        let fields: &[&[u8]] = match overload {
            None => &[],
            Some([1]) => &[file],
            Some([2]) => &[sname],
            Some([3]) => &[file, sname],
            Some(_) => return Err(Malformed),
        };
        for field in fields {
            read_options(field, &mut options)?;
        }
        Ok(Self { xid, secs, client, hardware, options })
    }

    /// The value of an option, its parts joined in their order (RFC 3396 §7).
    fn option(&self, code: u8) -> Option<Vec<u8>> {
        let parts: Vec<&[u8]> =
            self.options.iter().filter(|(found, _)| *found == code).map(|(_, value)| *value).collect();
        (!parts.is_empty()).then(|| parts.concat())
    }
}

/// The options of one field, up to its end option (RFC 2131 §4.1, RFC 2132 §3).
fn read_options<'a>(field: &'a [u8], options: &mut Vec<(u8, &'a [u8])>) -> Result<(), Malformed> {
    let mut r = Reader::new(field);
    loop {
        match r.u8()? {
            PAD => {}
            END => return Ok(()),
            code => {
                let len = r.u8()?;
                options.push((code, r.take(usize::from(len))?));
            }
        }
    }
}

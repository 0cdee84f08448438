//! What the person who watches should know beside the messages themselves.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use wire::pcp::OptionCode;

use super::outcome::Refusal;
use crate::table::duration;

/// One such thing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Note {
    FellBack,
    GivingBack,
    StillGivingBack,
    NotGivenBack(String),
    NotProcessed(Vec<OptionCode>),
    OnePort,
    Held { renewed: bool, lifetime: u32, next: Duration, deletable: bool },
    Moved { external: Option<SocketAddr>, port: u16 },
    RenewalRefused { refusal: Refusal, left: u32 },
    Expired,
    StateLost,
    PeerStays { seconds: u32 },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::FellBack => f.write_str("the server speaks version 0: asking by NAT-PMP"),
            Note::GivingBack => f.write_str("giving the mapping back"),
            Note::StillGivingBack => {
                f.write_str("the mapping is still being given back; Ctrl-C again does not wait for that")
            }
            Note::NotGivenBack(why) => {
                write!(f, "the mapping could not be given back ({why}); it ends by itself")
            }
            Note::NotProcessed(codes) => {
                let names: Vec<_> = codes.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "the answer lacks what was asked for, so the server ignored it: {}",
                    names.join(", ")
                )
            }
            Note::OnePort => f.write_str("one port was granted, not a set of them"),
            Note::Held { renewed, lifetime, next, deletable } => write!(
                f,
                "{} for {}; next renewal in {}{}",
                if *renewed { "renewed" } else { "held" },
                duration((*lifetime).into()),
                duration(next.as_secs()),
                if *deletable { ", Ctrl-C deletes it" } else { "" }
            ),
            Note::Moved { external: Some(external), .. } => {
                write!(f, "the server has moved the mapping to {external}")
            }
            Note::Moved { external: None, port } => {
                write!(f, "the server has moved the mapping to port {port}")
            }
            Note::RenewalRefused { refusal, left } => {
                write!(
                    f,
                    "the renewal is refused: {}; the mapping ends in {}",
                    refusal.code,
                    duration((*left).into())
                )
            }
            Note::Expired => f.write_str("the mapping has ended: no renewal was granted"),
            Note::StateLost => {
                f.write_str("the server has lost its state: its epoch is not where its clock should be")
            }
            Note::PeerStays { seconds } => {
                write!(f, "a PEER mapping cannot be deleted; it ends in {}", duration((*seconds).into()))
            }
        }
    }
}

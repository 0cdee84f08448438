//! What the gateway says of itself: the two root devices (decision 10) and their documents and announcements, made once.

use wire::description::{Identity, Udns, Uuid, root_description, scpd};
use wire::services::{Face, Resource, Service};
use wire::ssdp::{Target, advertisements};

/// Which of the two root devices are shown (decision 10).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum IgdVersion {
    /// Both: IGD:2 to who searches for it, IGD:1 to everybody else.
    #[default]
    Auto,
    /// IGD:1 only.
    V1,
    /// IGD:2 only.
    V2,
}

impl IgdVersion {
    /// Whether `face` is shown at all.
    pub fn shows(self, face: Face) -> bool {
        match self {
            Self::Auto => true,
            Self::V1 => face == Face::V1,
            Self::V2 => face == Face::V2,
        }
    }

    /// The face that is announced, and shown to who does not ask for IGD:2.
    pub fn usual(self) -> Face {
        if self == Self::V2 { Face::V2 } else { Face::V1 }
    }
}

/// An installation's names and numbers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceConfig {
    /// Random once, then kept: device names come from it, so it is no secret.
    pub seed: [u8; 16],
    /// Random once, then kept: the part of the control URLs that a web page cannot know.
    pub token: [u8; 16],
    /// Greater at each start (UDA 1.1, BOOTID.UPNP.ORG).
    pub boot_id: u32,
    /// What people see in their file manager.
    pub friendly_name: String,
    /// The port that the HTTP server listens on.
    pub http_port: u16,
    /// Which root devices are shown.
    pub igd_version: IgdVersion,
    /// The SERVER header: `OS/version UPnP/1.1 product/version`.
    pub server: String,
    /// portferry's version.
    pub version: String,
}

/// The root devices and their documents.
#[derive(Debug)]
pub struct Devices {
    identity: Identity,
    igd_version: IgdVersion,
    documents: Vec<(Resource, String)>,
    advertised: Vec<(Face, Vec<(Target, String)>)>,
}

impl Devices {
    /// Renders everything.
    pub fn new(config: &DeviceConfig) -> Self {
        let mut identity = Identity {
            friendly_name: config.friendly_name.clone(),
            manufacturer: "portferry".into(),
            model_description: "Internet gateway that gets its ports from the provider's NAT".into(),
            model_name: "portferry".into(),
            model_number: config.version.clone(),
            serial: Uuid::derive(config.seed, "serial").to_string()[..8].to_owned(),
            v1: Udns::derive(config.seed, Face::V1),
            v2: Udns::derive(config.seed, Face::V2),
            presentation_url: None,
            url_token: Uuid(config.token).to_string().replace('-', ""),
            eventing: true,
            config_id: 0,
        };
        identity.config_id = identity.derive_config_id();
        let mut documents = Vec::new();
        let mut advertised = Vec::new();
        for face in Face::ALL.into_iter().filter(|&face| config.igd_version.shows(face)) {
            advertised.push((face, advertisements(face, &identity)));
            documents.push((Resource::Description(face), root_description(face, &identity)));
            for service in Service::of(face) {
                documents.push((Resource::Scpd(service, face), scpd(service, face)));
            }
        }
        Self { identity, igd_version: config.igd_version, documents, advertised }
    }

    /// Names, numbers and paths.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What a face announces, as (NT, USN), the root device first; nothing when it is not shown.
    pub fn advertised(&self, face: Face) -> &[(Target, String)] {
        self.advertised.iter().find(|(of, _)| *of == face).map_or(&[], |(_, set)| set)
    }

    /// What a request's path names, if anything that is shown.
    pub fn resource(&self, path: &str) -> Option<Resource> {
        let resource = Resource::at(path, &self.identity.url_token)?;
        let face = match resource {
            Resource::Description(face)
            | Resource::Scpd(_, face)
            | Resource::Control(_, face)
            | Resource::Event(_, face) => face,
        };
        self.igd_version.shows(face).then_some(resource)
    }

    /// The document of a description's path.
    pub fn document(&self, resource: Resource) -> Option<&str> {
        self.documents.iter().find(|(other, _)| *other == resource).map(|(_, text)| text.as_str())
    }
}

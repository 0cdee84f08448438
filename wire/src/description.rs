//! Device and service descriptions: what a control point reads before it controls (UDA §2).
//!
//! They are generated from the table in `services`, never written by hand.

use std::fmt::{self, Write};
use std::str::FromStr;

use crate::codec::Malformed;
use crate::services::{Allowed, Device, Face, Service};
use crate::xml::{Document, Element, element_into};

/// How many elements a foreign description may have.
const MAX_ELEMENTS: usize = 4096;
/// CONFIGID values that a device may choose for itself are below this.
const CONFIG_IDS: u32 = 1 << 24;

/// A UUID; in text 8-4-4-4-12 hexadecimal digits, written in lower case and read in either.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// The UUID of a role, such as `wan`, for an installation's seed: the same for ever, another one for any
    /// other role or seed. Version 8, variant 10 (RFC 9562 §5.8).
    ///
    /// **Not cryptographic**: whoever knows one of these and its role may work out others. Nothing may rest on
    /// them being secret.
    #[must_use]
    pub fn derive(seed: [u8; 16], role: &str) -> Self {
        let number = u128::from_be_bytes(seed);
        #[allow(clippy::cast_possible_truncation, reason = "the two halves of 128 bits")]
        let (mut high, mut low) = ((number >> 64) as u64, number as u64);
        // The length first, so that no role continues another one.
        for word in std::iter::once(role.len() as u64).chain(role.bytes().map(u64::from)) {
            high = stir(high ^ word);
            low = stir(low.wrapping_add(high).rotate_left(29) ^ word);
        }
        high = stir(high ^ low);
        let mut bytes = ((u128::from(high) << 64) | u128::from(low)).to_be_bytes();
        bytes[6] = (bytes[6] & 0x0f) | 0x80;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }
}

/// A bijection of 64 bits in which every input bit reaches every output bit. The constants are the first
/// digits of e and of the square roots of 2 and 3.
fn stir(word: u64) -> u64 {
    let word = word.wrapping_add(0xb7e1_5162_8aed_2a6b);
    let word = (word ^ (word >> 32)).wrapping_mul(0x6a09_e667_f3bc_c909);
    let word = (word ^ (word >> 29)).wrapping_mul(0xbb67_ae85_84ca_a73b);
    word ^ (word >> 32)
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_char('-')?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Uuid {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.len() != 36 {
            return Err(Malformed);
        }
        let mut bytes = [0; 16];
        let mut digits = 0;
        for (index, character) in text.chars().enumerate() {
            if matches!(index, 8 | 13 | 18 | 23) {
                if character != '-' {
                    return Err(Malformed);
                }
                continue;
            }
            let digit = character.to_digit(16).and_then(|digit| u8::try_from(digit).ok()).ok_or(Malformed)?;
            let byte: &mut u8 = bytes.get_mut(digits / 2).ok_or(Malformed)?;
            *byte = *byte << 4 | digit;
            digits += 1;
        }
        Ok(Self(bytes))
    }
}

/// The unique device names of one face.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Udns {
    /// Of `InternetGatewayDevice`.
    pub root: Uuid,
    /// Of `WANDevice`.
    pub wan: Uuid,
    /// Of `WANConnectionDevice`.
    pub connection: Uuid,
}

impl Udns {
    /// Those of a face, from an installation's random seed.
    #[must_use]
    pub fn derive(seed: [u8; 16], face: Face) -> Self {
        let of = |role: &str| Uuid::derive(seed, &format!("igd{}/{role}", face.version()));
        Self { root: of("root"), wan: of("wan"), connection: of("connection") }
    }

    /// That of a device.
    #[must_use]
    pub fn of(&self, device: Device) -> Uuid {
        match device {
            Device::InternetGateway => self.root,
            Device::Wan => self.wan,
            Device::WanConnection => self.connection,
        }
    }
}

/// What the descriptions say about this installation; the same for both faces but for the UDNs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// Shown to users. This and the following texts are cut to the lengths of UDA §2.3.
    pub friendly_name: String,
    /// Who made it.
    pub manufacturer: String,
    /// A sentence about it.
    pub model_description: String,
    /// What it is.
    pub model_name: String,
    /// Which release.
    pub model_number: String,
    /// Which one.
    pub serial: String,
    /// The UDNs of the IGD:1 tree.
    pub v1: Udns,
    /// The UDNs of the IGD:2 tree.
    pub v2: Udns,
    /// Windows shows an icon for the gateway only if this is there.
    pub presentation_url: Option<String>,
    /// The random part of control and event paths; letters and digits.
    pub url_token: String,
    /// Whether there is eventing; without it the event URLs are empty.
    pub eventing: bool,
    /// CONFIGID.UPNP.ORG: changes with the documents and only with them. See [`Identity::derive_config_id`].
    pub config_id: u32,
}

impl Identity {
    /// The UDNs of a face.
    #[must_use]
    pub fn udns(&self, face: Face) -> &Udns {
        match face {
            Face::V1 => &self.v1,
            Face::V2 => &self.v2,
        }
    }

    /// The UDN of a device, as descriptions and SSDP have it: `uuid:…`.
    #[must_use]
    pub fn udn(&self, face: Face, device: Device) -> String {
        format!("uuid:{}", self.udns(face).of(device))
    }

    /// A number below 2^24 worked out of all documents of both faces, whatever `config_id` is now.
    #[must_use]
    pub fn derive_config_id(&self) -> u32 {
        let identity = Self { config_id: 0, ..self.clone() };
        let mut sum: u64 = 0;
        for face in Face::ALL {
            let services = Service::of(face).map(|service| scpd(service, face));
            for document in std::iter::once(root_description(face, &identity)).chain(services) {
                for byte in document.bytes() {
                    sum = stir(sum ^ u64::from(byte));
                }
            }
        }
        u32::try_from(sum % u64::from(CONFIG_IDS)).unwrap_or_default()
    }

    /// The value of `DefaultConnectionService` (igd.md 7).
    #[must_use]
    pub fn default_connection_service(&self, face: Face) -> String {
        let (device, service) = (Device::WanConnection, Service::WanIpConnection);
        let (type_name, version) = (device.type_name(), face.version());
        format!("{}:{type_name}:{version},{}", self.udn(face, device), service.service_id())
    }
}

/// The description of a root device, with all that stands in it.
#[must_use]
pub fn root_description(face: Face, identity: &Identity) -> String {
    let mut out = format!(
        "<?xml version=\"1.0\"?>\n<root xmlns=\"urn:schemas-upnp-org:device-1-0\" configId=\"{}\">",
        identity.config_id
    );
    spec_version(&mut out, face);
    for device in Device::ALL {
        if device != Device::InternetGateway {
            out.push_str("<deviceList>");
        }
        out.push_str("<device>");
        element_into(&mut out, "deviceType", &device.device_type(face.version()));
        element_into(&mut out, "friendlyName", bounded(&identity.friendly_name, 63));
        element_into(&mut out, "manufacturer", &identity.manufacturer);
        element_into(&mut out, "modelDescription", bounded(&identity.model_description, 127));
        element_into(&mut out, "modelName", bounded(&identity.model_name, 31));
        element_into(&mut out, "modelNumber", bounded(&identity.model_number, 31));
        element_into(&mut out, "serialNumber", bounded(&identity.serial, 63));
        element_into(&mut out, "UDN", &identity.udn(face, device));
        out.push_str("<serviceList>");
        for service in device.services(face) {
            out.push_str("<service>");
            element_into(&mut out, "serviceType", &service.service_type(service.version(face)));
            element_into(&mut out, "serviceId", &service.service_id());
            element_into(&mut out, "SCPDURL", &service.scpd_path(face));
            element_into(&mut out, "controlURL", &service.control_path(face, &identity.url_token));
            let event = service.event_path(face, &identity.url_token);
            element_into(&mut out, "eventSubURL", if identity.eventing { &event } else { "" });
            out.push_str("</service>");
        }
        out.push_str("</serviceList>");
    }
    for device in Device::ALL.into_iter().rev() {
        if device == Device::InternetGateway {
            if let Some(url) = &identity.presentation_url {
                element_into(&mut out, "presentationURL", url);
            }
            out.push_str("</device>");
        } else {
            out.push_str("</device></deviceList>");
        }
    }
    out.push_str("</root>\n");
    out
}

/// The description of a service as a face has it: the actions and variables of that version only.
#[must_use]
pub fn scpd(service: Service, face: Face) -> String {
    let version = service.version(face);
    let mut out = String::from("<?xml version=\"1.0\"?>\n<scpd xmlns=\"urn:schemas-upnp-org:service-1-0\">");
    spec_version(&mut out, face);
    out.push_str("<actionList>");
    for action in service.actions().iter().filter(|action| action.since <= version) {
        out.push_str("<action>");
        element_into(&mut out, "name", action.name);
        if !(action.inputs.is_empty() && action.outputs.is_empty()) {
            out.push_str("<argumentList>");
            let inputs = action.inputs.iter().map(|input| (input, "in"));
            for (argument, direction) in inputs.chain(action.outputs.iter().map(|output| (output, "out"))) {
                out.push_str("<argument>");
                element_into(&mut out, "name", argument.name);
                element_into(&mut out, "direction", direction);
                element_into(&mut out, "relatedStateVariable", argument.variable);
                out.push_str("</argument>");
            }
            out.push_str("</argumentList>");
        }
        out.push_str("</action>");
    }
    out.push_str("</actionList><serviceStateTable>");
    for variable in service.variables().iter().filter(|variable| variable.since <= version) {
        let events = if variable.evented { "yes" } else { "no" };
        let _ = write!(out, "<stateVariable sendEvents=\"{events}\">");
        element_into(&mut out, "name", variable.name);
        element_into(&mut out, "dataType", variable.data_type.name());
        if let Some((_, default)) = variable.default.filter(|(since, _)| *since <= version) {
            element_into(&mut out, "defaultValue", default);
        }
        match variable.allowed {
            Allowed::Values(values) => {
                out.push_str("<allowedValueList>");
                for value in values {
                    element_into(&mut out, "allowedValue", value);
                }
                out.push_str("</allowedValueList>");
            }
            Allowed::Range { since, minimum, maximum } if since <= version => {
                out.push_str("<allowedValueRange>");
                element_into(&mut out, "minimum", &minimum.to_string());
                element_into(&mut out, "maximum", &maximum.to_string());
                element_into(&mut out, "step", "1");
                out.push_str("</allowedValueRange>");
            }
            Allowed::Any | Allowed::Range { .. } => {}
        }
        out.push_str("</stateVariable>");
    }
    out.push_str("</serviceStateTable></scpd>\n");
    out
}

/// 1.0 on the face for old control points, 1.1 on the other one.
fn spec_version(out: &mut String, face: Face) {
    let minor = face.version() - 1;
    let _ = write!(out, "<specVersion><major>1</major><minor>{minor}</minor></specVersion>");
}

/// The first `characters` of a text.
fn bounded(text: &str, characters: usize) -> &str {
    text.char_indices().nth(characters).map_or(text, |(end, _)| &text[..end])
}

/// A foreign device, as a control point sees it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ParsedDevice {
    /// What relative URLs are resolved against, if not the description's own URL.
    pub url_base: Option<String>,
    /// `uuid:…` of the root device.
    pub udn: String,
    /// Of the root device.
    pub device_type: String,
    /// Of the root device.
    pub friendly_name: String,
    /// Those of all devices of the tree, in document order.
    pub services: Vec<ParsedService>,
}

/// A service of a foreign device. URLs are as they stand in the description, often relative.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ParsedService {
    /// `urn:…:service:…:n`.
    pub service_type: String,
    /// `urn:…:serviceId:…`.
    pub service_id: String,
    /// Where its description is.
    pub scpd_url: String,
    /// Where it is controlled.
    pub control_url: String,
    /// Where its events are subscribed to; empty if there are none.
    pub event_url: String,
}

/// Reads a device description.
///
/// # Errors
/// It is not well-formed, or has no device with a type.
pub fn parse(body: &[u8]) -> Result<ParsedDevice, Malformed> {
    let document = Document::parse(body, MAX_ELEMENTS)?;
    let root = document.root();
    let device = root.child("device").filter(|_| root.name() == "root").ok_or(Malformed)?;
    let text = |element: Element<'_, '_>, name| element.child_text(name).to_owned();
    let services =
        device.descendants().filter(|element| element.name() == "service").map(|service| ParsedService {
            service_type: text(service, "serviceType"),
            service_id: text(service, "serviceId"),
            scpd_url: text(service, "SCPDURL"),
            control_url: text(service, "controlURL"),
            event_url: text(service, "eventSubURL"),
        });
    let parsed = ParsedDevice {
        url_base: Some(text(root, "URLBase")).filter(|base| !base.is_empty()),
        udn: text(device, "UDN"),
        device_type: text(device, "deviceType"),
        friendly_name: text(device, "friendlyName"),
        services: services.collect(),
    };
    if parsed.device_type.is_empty() { Err(Malformed) } else { Ok(parsed) }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn identity() -> Identity {
        Identity {
            friendly_name: "Router <&> \"home\"".to_owned(),
            manufacturer: "portferry".to_owned(),
            model_description: "Gateway".to_owned(),
            model_name: "portferry".to_owned(),
            model_number: "1".to_owned(),
            serial: "0001".to_owned(),
            v1: Udns::derive([7; 16], Face::V1),
            v2: Udns::derive([7; 16], Face::V2),
            presentation_url: Some("http://192.168.1.1/".to_owned()),
            url_token: "k3yt0k3n".to_owned(),
            eventing: true,
            config_id: 4711,
        }
    }

    #[test]
    fn the_root_description_parses_and_matches_the_table() {
        for face in Face::ALL {
            let identity = identity();
            let parsed = parse(root_description(face, &identity).as_bytes()).unwrap();
            assert_eq!(parsed.friendly_name, identity.friendly_name);
            assert_eq!(parsed.udn, format!("uuid:{}", identity.udns(face).root));
            assert_eq!(parsed.device_type, Device::InternetGateway.device_type(face.version()));
            assert_eq!(parsed.url_base, None);
            let expected: Vec<ParsedService> = Service::of(face)
                .map(|service| ParsedService {
                    service_type: service.service_type(service.version(face)),
                    service_id: service.service_id(),
                    scpd_url: service.scpd_path(face),
                    control_url: service.control_path(face, "k3yt0k3n"),
                    event_url: service.event_path(face, "k3yt0k3n"),
                })
                .collect();
            assert_eq!(parsed.services, expected);
        }
    }

    /// The tree of igd.md 1 and the element order of uda.md 7, device by device.
    #[test]
    fn the_tree_has_the_specifications_order() {
        let text = root_description(Face::V2, &identity());
        let document = Document::parse(text.as_bytes(), MAX_ELEMENTS).unwrap();
        let root = document.root();
        assert_eq!(root.namespace(), Some("urn:schemas-upnp-org:device-1-0"));
        let names =
            |element: Element<'_, '_>| element.children().map(|c| c.name().to_owned()).collect::<Vec<_>>();
        assert_eq!(names(root), ["specVersion", "device"]);
        let head = [
            "deviceType",
            "friendlyName",
            "manufacturer",
            "modelDescription",
            "modelName",
            "modelNumber",
            "serialNumber",
            "UDN",
            "serviceList",
        ];
        let gateway = root.child("device").unwrap();
        assert_eq!(names(gateway), [head.as_slice(), &["deviceList", "presentationURL"]].concat());
        let wan = gateway.child("deviceList").unwrap().child("device").unwrap();
        assert_eq!(names(wan), [head.as_slice(), &["deviceList"]].concat());
        let connection = wan.child("deviceList").unwrap().child("device").unwrap();
        assert_eq!(names(connection), head);
        assert_eq!(connection.child_text("deviceType"), "urn:schemas-upnp-org:device:WANConnectionDevice:2");
        assert_eq!(
            names(connection.child("serviceList").unwrap().child("service").unwrap()),
            ["serviceType", "serviceId", "SCPDURL", "controlURL", "eventSubURL"]
        );
        assert!(text.contains(" configId=\"4711\""));
        assert!(text.contains("urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1"));
    }

    #[test]
    fn without_eventing_and_presentation_the_urls_go() {
        let identity = Identity { eventing: false, presentation_url: None, ..identity() };
        let text = root_description(Face::V1, &identity);
        assert_eq!(text.matches("<eventSubURL></eventSubURL>").count(), 3);
        assert!(!text.contains("presentationURL") && !text.contains("URLBase"));
    }

    #[test]
    fn long_texts_are_cut_on_character_boundaries() {
        let identity = Identity { friendly_name: "\u{e4}".repeat(100), ..identity() };
        let parsed = parse(root_description(Face::V1, &identity).as_bytes()).unwrap();
        assert_eq!(parsed.friendly_name, "\u{e4}".repeat(63));
    }

    /// igd.md 5, Q-8: no document names the other connection service, nor what that alone has.
    #[test]
    fn ppp_is_not_described() {
        for face in Face::ALL {
            let scpds: String = Service::of(face).map(|service| scpd(service, face)).collect();
            for text in [root_description(face, &identity()), scpds] {
                assert!(!text.contains("PPP") && !text.contains("Password"), "{text}");
            }
        }
    }

    /// K-12: an SCPD has the actions and variables of its version, and every argument its variable.
    #[test]
    fn scpds_are_consistent() {
        for (face, service) in
            Face::ALL.into_iter().flat_map(|face| Service::ALL.map(|service| (face, service)))
        {
            let text = scpd(service, face);
            let document = Document::parse(text.as_bytes(), MAX_ELEMENTS).unwrap();
            let root = document.root();
            assert_eq!((root.name(), root.namespace()), ("scpd", Some("urn:schemas-upnp-org:service-1-0")));
            let variables: Vec<&str> =
                root.child("serviceStateTable").unwrap().children().map(|v| v.child_text("name")).collect();
            let version = service.version(face);
            let expected: Vec<&str> =
                service.variables().iter().filter(|v| v.since <= version).map(|v| v.name).collect();
            assert_eq!(variables, expected);
            for action in root.child("actionList").unwrap().children() {
                let known = service.action(action.child_text("name")).unwrap();
                assert!(known.since <= version);
                let arguments: Vec<_> =
                    action.child("argumentList").iter().flat_map(Element::children).collect();
                assert_eq!(arguments.len(), known.inputs.len() + known.outputs.len());
                let mut outputs_begun = false;
                for argument in arguments {
                    assert!(variables.contains(&argument.child_text("relatedStateVariable")));
                    let out = argument.child_text("direction") == "out";
                    assert!(out || !outputs_begun, "in after out");
                    outputs_begun |= out;
                }
            }
        }
    }

    /// Q-9, K-12: what the :1 document must not have.
    #[test]
    fn the_older_scpd_lacks_what_version_2_brought() {
        let (old, new) = (scpd(Service::WanIpConnection, Face::V1), scpd(Service::WanIpConnection, Face::V2));
        for name in [
            "AddAnyPortMapping",
            "DeletePortMappingRange",
            "GetListOfPortMappings",
            "SystemUpdateID",
            "A_ARG_TYPE_Manage",
            "A_ARG_TYPE_PortListing",
            "604800",
        ] {
            assert!(!old.contains(name) && new.contains(name), "{name}");
        }
        assert!(new.contains(
            "<stateVariable sendEvents=\"yes\"><name>SystemUpdateID</name><dataType>ui4</dataType></stateVariable>"
        ));
    }

    #[test]
    fn the_config_id_follows_the_documents() {
        let one = identity();
        let id = one.derive_config_id();
        assert!(id < CONFIG_IDS);
        assert_eq!(id, Identity { config_id: 1, ..one.clone() }.derive_config_id());
        assert_ne!(id, Identity { eventing: false, ..one.clone() }.derive_config_id());
        assert_ne!(id, Identity { friendly_name: "other".to_owned(), ..one }.derive_config_id());
    }

    #[test]
    fn uuids_are_stable_and_distinct() {
        // What an installation has once announced must never change: this value is pinned.
        let uuid = Uuid::derive([0; 16], "igd1/root");
        assert_eq!(uuid.to_string(), "2355e78a-55c1-8d2a-a91a-648821f3140e");
        let mut all: Vec<Uuid> = Vec::new();
        for seed in [[0; 16], [1; 16], *b"0123456789abcdef"] {
            for role in ["", "a", "b", "ab", "ba", "igd1/root", "igd1/wan", "igd2/root"] {
                let uuid = Uuid::derive(seed, role);
                assert_eq!((uuid.0[6] >> 4, uuid.0[8] >> 6), (8, 2));
                assert_eq!(uuid.to_string().parse(), Ok(uuid));
                assert_eq!(uuid.to_string().to_uppercase().parse(), Ok(uuid));
                all.push(uuid);
            }
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        for refused in
            ["", "uuid", "0123456789abcdef0123456789abcdef0123", "00000000-0000-0000-0000-00000000000g"]
        {
            assert_eq!(refused.parse::<Uuid>(), Err(Malformed));
        }
    }

    #[test]
    fn the_default_connection_service() {
        let identity = identity();
        let expected = format!(
            "uuid:{}:WANConnectionDevice:2,urn:upnp-org:serviceId:WANIPConn1",
            identity.v2.connection
        );
        assert_eq!(identity.default_connection_service(Face::V2), expected);
    }

    #[test]
    fn foreign_descriptions() {
        let text =
            b"<root xmlns='urn:schemas-upnp-org:device-1-0'><URLBase>http://10.0.0.1:5000</URLBase><device>\
            <deviceType>t</deviceType><serviceList/></device></root>";
        let parsed = parse(text).unwrap();
        assert_eq!(parsed.url_base.as_deref(), Some("http://10.0.0.1:5000"));
        assert_eq!((parsed.device_type.as_str(), parsed.services.len()), ("t", 0));
        for refused in
            ["", "<root/>", "<root><device/></root>", "<a><device><deviceType>t</deviceType></device></a>"]
        {
            assert_eq!(parse(refused.as_bytes()), Err(Malformed), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn damaged_descriptions_are_survived(
            at in any::<prop::sample::Index>(),
            with in proptest::collection::vec(any::<u8>(), 0..4),
            cut in 0_usize..9,
        ) {
            let mut bytes = root_description(Face::V1, &identity()).into_bytes();
            let start = at.index(bytes.len());
            let end = (start + cut).min(bytes.len());
            bytes.splice(start..end, with);
            let _ = parse(&bytes);
        }

        #[test]
        fn every_prefix_is_refused(at in any::<prop::sample::Index>()) {
            let text = root_description(Face::V2, &identity());
            let text = text.trim_end();
            prop_assert_eq!(parse(&text.as_bytes()[..at.index(text.len())]), Err(Malformed));
        }

        #[test]
        fn uuids_come_back(octets: [u8; 16]) {
            prop_assert_eq!(Uuid(octets).to_string().parse::<Uuid>(), Ok(Uuid(octets)));
        }

        #[test]
        fn any_uuid_text_is_survived(text in any::<String>()) {
            let _ = text.parse::<Uuid>();
        }
    }
}

//! A table as large as the ports of an external address make it.

use wire::pcp::{GetData, NextMapping};

use super::*;

const COUNT: u16 = 64_000;

/// Does what the server wants, without looking at everything each time.
fn oblige(server: &mut Server, now: Instant, mut store: impl FnMut(Record)) -> Option<Vec<u8>> {
    let mut answer = None;
    while let Some(output) = server.poll_output() {
        match output {
            Output::Nat { ticket, .. } => server.handle_nat(now, ticket, Ok(())),
            Output::Flow { ticket, .. } => server.handle_flow(now, ticket, None),
            Output::Send { bytes, .. } => answer = Some(bytes),
            Output::Store(record) => store(record),
            Output::Multicast { .. } | Output::Notice(_) => {}
        }
    }
    answer
}

/// Every port that there is, made, listed page by page, restored, listed again; and none is left.
#[test]
fn all_the_ports_there_are() {
    let config = ServerConfig { quota: u32::MAX, query: true, ports: 1024..=65_023, ..config() };
    let mut server = Server::new(at(0), config.clone(), at(0));
    let mut store = BTreeMap::new();
    let ask = |server: &mut Server, store: &mut BTreeMap<MappingKey, StoredMapping>, request: &Request| {
        server.handle_datagram(at(1), &arrival(CLIENT), &request.to_bytes());
        let answer = oblige(server, at(1), |record| {
            if let Record::Put(stored) = record {
                store.insert(stored.key, stored);
            }
        });
        Response::parse(&answer.expect("an answer")).expect("well-formed")
    };
    for port in 1..=COUNT {
        // Half of them suggest a port, the last of them the first ones.
        let wish = if port % 2 == 0 { 0 } else { 65_024 - port };
        let response = ask(&mut server, &mut store, &map(3600, data(1, port, wish), &[]));
        assert_eq!(response.result, ResultCode::SUCCESS, "{port}");
    }
    let response = ask(&mut server, &mut store, &map(3600, data(1, COUNT + 1, 0), &[]));
    assert_eq!(response.result, ResultCode::NO_RESOURCES);
    server.table.check();
    server.pool.check();
    let mut again = Server::new(at(2), config, at(0));
    again.restore(at(2), store.values().cloned().collect(), Vec::new());
    oblige(&mut again, at(2), |record| panic!("nothing is to be stored: {record:?}"));
    assert_eq!(again.epoch(at(100)), 100);
    for server in [&mut server, &mut again] {
        let mut place: Option<NextMapping> = None;
        let (mut pages, mut listed) = (0, 0_u16);
        while place.as_ref().is_none_or(|last| last.more) {
            let options = place.map(PcpOption::Next).into_iter().collect::<Vec<_>>();
            let body = Body::Get(GetData::ALL);
            let request = Request { lifetime: 0, client_addr: CLIENT.to_ipv6_mapped(), body, options };
            let page = ask(server, &mut store, &request).options;
            pages += 1;
            for option in &page {
                let PcpOption::Next(next) = option else { panic!("{option:?}") };
                listed += 1;
                assert_eq!((next.internal_port, next.nonce), (listed, Nonce([1; 12])));
            }
            place = page.into_iter().next_back().map(|option| match option {
                PcpOption::Next(next) => next,
                other => panic!("{other:?}"),
            });
        }
        assert_eq!((listed, pages), (COUNT, 3765));
    }
}

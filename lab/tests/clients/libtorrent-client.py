"""libtorrent (python3-libtorrent) as a PCP and NAT-PMP client, and with the argument "upnp" as a UPnP control point too, as it comes;
for lab/tests/pcp_server.rs and lan_clients.rs.

Listens on port 6881, asks the default router for it, and prints a line for each answer: `mapped PROTOCOL PORT TRANSPORT` or
`failed WHY`; then answers BitTorrent (TCP) and DHT (UDP) until its standard input ends, and deletes its mappings.
"""

import sys
import threading

import libtorrent

session = libtorrent.session(
    {
        "listen_interfaces": "0.0.0.0:6881",
        "enable_natpmp": True,
        "enable_upnp": "upnp" in sys.argv,
        "enable_lsd": False,
        "enable_dht": True,
        "dht_bootstrap_nodes": "",
        "alert_mask": libtorrent.alert.category_t.port_mapping_notification,
    }
)
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
print("libtorrent", libtorrent.__version__, flush=True)
while not ended.is_set():
    session.wait_for_alert(200)
    for alert in session.pop_alerts():
        if isinstance(alert, libtorrent.portmap_alert):
            print("mapped", str(alert.map_protocol), alert.external_port, str(alert.map_transport), flush=True)
        elif isinstance(alert, libtorrent.portmap_error_alert):
            print("failed", alert.message(), flush=True)

//! Any bytes as the body of an API request: the first byte is the type, the rest the JSON.
#![no_main]

use config::api::{
    ApplyReply, ApplyRequest, AttachRequest, CaptureQuery, CleanupRequest, FdbQuery, LogQuery, PortView,
    Status, merge_patch, route,
};
use config::{Document, FdbEntry, Network, Port};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// Reads one type, and requires that what was read is written and read again as the same.
macro_rules! round_trip {
    ($type:ty, $json:expr) => {
        serde_json::from_slice::<$type>($json).ok().inspect(|value| {
            let text = serde_json::to_string(value).expect("what was read can be written");
            let again: $type = serde_json::from_str(&text).expect("our own JSON is readable");
            assert_eq!(&again, value);
        })
    };
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, json)) = data.split_first() else { return };
    match kind % 12 {
        0 => {
            let request = round_trip!(ApplyRequest, json);
            let _ = request.map(|request| Document::parse(&request.toml, &request.path));
        }
        1 => {
            if let Some(network) = round_trip!(Network, json) {
                let _ = (network.gateway_addresses(), route::with_name(route::NETWORK, &network.name));
                check(Document { networks: vec![network], ..Document::default() });
            }
        }
        2 => {
            if let Some(port) = round_trip!(Port, json) {
                let _ = (port.interface_name(), port.guarded());
                let network = Network::new(port.network.clone());
                check(Document { networks: vec![network], ports: vec![port], ..Document::default() });
            }
        }
        3 => drop(round_trip!(AttachRequest, json)),
        4 => drop(round_trip!(FdbQuery, json)),
        5 => drop(round_trip!(FdbEntry, json)),
        6 => drop((round_trip!(CaptureQuery, json), round_trip!(LogQuery, json))),
        7 => drop(round_trip!(CleanupRequest, json)),
        8 => drop((round_trip!(ApplyReply, json), round_trip!(Status, json), round_trip!(PortView, json))),
        9 => {
            if let Ok(patch) = serde_json::from_slice::<Value>(json) {
                let _ = merge_patch(&Network::new("net"), &patch);
                let _ = merge_patch(&Port::new("port", "net"), &patch);
            }
        }
        10 => drop(round_trip!(Document, json).map(check)),
        _ => {
            let name = String::from_utf8_lossy(json);
            let path = route::with_name(route::PORT, &name);
            assert!(path.bytes().all(|b| b.is_ascii_graphic()), "{path}");
        }
    }
});

/// Validates a tree that came without a file, and shows what is wrong with it.
fn check(document: Document) {
    match document.validate() {
        Err(found) => {
            assert!(!found.list().is_empty(), "an error says what is wrong");
            let _ = (found.lines(), found.render(false));
        }
        Ok(()) => {
            let again =
                Document::parse(&document.to_toml(), "printed.toml").expect("our own print is readable");
            assert_eq!(again, document);
        }
    }
}

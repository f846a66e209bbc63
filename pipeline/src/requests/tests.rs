use packet::build::{self, eth};
use packet::header::{Ipv6, NeighborAdvert, NeighborSolicit};
use packet::{Area, Prefix};

use super::*;
use crate::answer::link_local;
use crate::random::{GATEWAY, STATION, pool};

const IP: Address = Address::v4([10, 0, 0, 254]);
const TARGET: Address = Address::v4([10, 0, 0, 1]);
const IP6: Address = Address::v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0a, 0x0b, 0xfe]);
const TARGET6: Address = Address::v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]);

/// Runs `make` and returns the bytes; the chunk goes home.
fn bytes(make: impl FnOnce(&mut FramePool) -> Option<Frame>) -> Vec<u8> {
    let mut pool = pool();
    let frame = make(&mut pool).expect("a chunk");
    assert!(frame.is_finished());
    let bytes = frame.bytes().to_vec();
    pool.free(frame);
    bytes
}

#[test]
fn neighbours_are_asked_for_an_address() {
    let asked = bytes(|pool| solicit(pool, (GATEWAY, IP), TARGET, None));
    assert_eq!(asked, build::arp_request(GATEWAY, IP.octets_v4(), TARGET.octets_v4()).bytes());
    let asked = bytes(|pool| solicit(pool, (GATEWAY, IP), TARGET, Some(STATION)));
    assert_eq!(asked, eth(GATEWAY, STATION).arp_request(IP.octets_v4(), TARGET.octets_v4()).bytes());

    let asked = bytes(|pool| solicit(pool, (GATEWAY, IP6), TARGET6, None));
    assert_eq!(asked, build::neighbor_solicit(GATEWAY, IP6.octets(), TARGET6.octets()).bytes());
    let asked = bytes(|pool| solicit(pool, (GATEWAY, IP6), TARGET6, Some(STATION)));
    let expected = eth(GATEWAY, STATION).ipv6(IP6.octets(), TARGET6.octets());
    assert_eq!(asked, expected.neighbor_solicit(TARGET6.octets(), Some(GATEWAY)).bytes());
}

#[test]
fn an_address_is_probed_before_it_is_taken() {
    let probed = bytes(|pool| probe(pool, GATEWAY, IP));
    assert_eq!(probed, build::arp_request(GATEWAY, [0; 4], IP.octets_v4()).bytes());
    let probed = bytes(|pool| probe(pool, GATEWAY, IP6));
    let solicit = NeighborSolicit::new(&Ipv6::new(&probed[14..]).expect("whole")).expect("valid");
    assert!(solicit.src.is_unspecified());
    assert_eq!(Address::from(solicit.target), IP6);
    assert_eq!(probed[..6], [0x33, 0x33, 0xff, 0x0a, 0x0b, 0xfe]);
    assert_eq!(packet::checksum::is_valid(&probed), Some(true));
}

#[test]
fn a_new_place_is_announced() {
    let told = bytes(|pool| announce(pool, GATEWAY, IP, Form::Request, false));
    assert_eq!(told, build::arp_request(GATEWAY, IP.octets_v4(), IP.octets_v4()).bytes());
    let told = bytes(|pool| announce(pool, GATEWAY, IP, Form::Reply, false));
    let arp = Arp::new(&told[14..]).expect("well-formed");
    assert_eq!(arp.operation(), ArpOperation::Reply);
    assert_eq!((arp.sender_mac, arp.sender_ip, arp.target_ip), (GATEWAY, IP.octets_v4(), IP.octets_v4()));
    assert_eq!(told[..6], [0xff; 6]);

    let told = bytes(|pool| announce(pool, GATEWAY, IP6, Form::Request, true));
    let advert = NeighborAdvert::new(&Ipv6::new(&told[14..]).expect("whole")).expect("valid");
    assert_eq!((advert.router, advert.solicited, advert.overrides), (true, false, true));
    assert_eq!(advert.options.link_address(nd_option::TARGET_LINK), Some(GATEWAY));
    assert_eq!(advert.dst.to_string(), "ff02::1");
    assert_eq!(packet::checksum::is_valid(&told), Some(true));
}

#[test]
fn a_router_advertises_itself() {
    let prefix = Prefix::new(IP6, 64).expect("a prefix");
    let advert = RouterAdvert::new(link_local(GATEWAY), 1800).with_prefix(prefix, false);
    let told = bytes(|pool| router_advert(pool, GATEWAY, &advert));
    assert_eq!(told[..6], [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(told.len(), 14 + 40 + 16 + 8 + 32);
    assert_eq!(packet::checksum::is_valid(&told), Some(true));
}

#[test]
fn an_empty_pool_makes_nothing() {
    let mut pool = FramePool::new(Area::new(64, 1).expect("a small area"));
    let all: Vec<_> = std::iter::from_fn(|| pool.alloc(60)).collect();
    assert!(solicit(&mut pool, (GATEWAY, IP), TARGET, None).is_none());
    for frame in all {
        pool.free(frame);
    }
}

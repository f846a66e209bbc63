//! Published ports as the host's own programs meet them: taken, and relayed. The container is a namespace behind a veth
//! pair here; the switch's part in between is tested elsewhere.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vswitch::relay::{Conflict, Protocol, Published, Relay, Source};

use crate::lab::{HOST, Lab, OUTSIDE, Outcome, eventually};

const SOURCE: Source =
    Source { v4: Ipv4Addr::new(169, 254, 7, 7), v6: Ipv6Addr::new(0xfd11, 0, 0, 0, 0, 0, 0, 1) };

fn published(protocol: Protocol, listen: &str, to: &str) -> Published {
    Published {
        listen: listen.parse().expect("an address"),
        protocol,
        to: Some(to.parse().expect("an address")),
        allow: Arc::new([]),
    }
}

/// A relay in the host; the outside stands in for the container.
fn relay(lab: &Lab) -> Relay {
    lab.sh("host", "ip addr add 169.254.7.7/32 dev d0 scope host; ip addr add fd11::1/128 dev d0 nodad");
    lab.sh("out", "ip route add 169.254.7.7 dev o0; ip route add fd11::1 dev o0");
    lab.within("host", || Relay::start(SOURCE)).expect("it starts")
}

fn set(lab: &Lab, relay: &Relay, published: &[Published]) -> Vec<Conflict> {
    lab.runtime.block_on(relay.set(published.to_vec()))
}

/// A TCP server in a namespace that says who asks, and repeats what it is told.
fn serve(lab: &Lab, space: &str, address: &str) {
    let listener = lab.within(space, || TcpListener::bind(address).expect("free"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let peer = stream.peer_addr().expect("connected").ip();
                let _ = stream.write_all(format!("{peer}\n").as_bytes());
                let mut reader = stream.try_clone().expect("a descriptor");
                let _ = std::io::copy(&mut reader, &mut stream);
                let _ = stream.shutdown(std::net::Shutdown::Write);
            });
        }
    });
}

/// Connects from `space`, and returns what the server says; sends `data` and expects it back, to the end.
fn ask(lab: &Lab, space: &str, to: SocketAddr, data: &[u8]) -> std::io::Result<String> {
    lab.within(space, || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut writer = stream.try_clone()?;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let _ = writer.write_all(data);
                let _ = writer.shutdown(std::net::Shutdown::Write);
            });
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            let end =
                answer.iter().position(|byte| *byte == b'\n').ok_or(std::io::ErrorKind::UnexpectedEof)?;
            assert_eq!(&answer[end + 1..], data, "it comes back as it was");
            Ok(String::from_utf8_lossy(&answer[..end]).into_owned())
        })
    })
}

#[test]
fn connections_are_relayed_from_the_host() -> Outcome {
    let lab = Lab::new()?;
    let relay = relay(&lab);
    serve(&lab, "out", "10.8.0.2:80");
    serve(&lab, "out", "[fd08::2]:80");
    let ports = [
        published(Protocol::Tcp, "0.0.0.0:8080", "10.8.0.2:80"),
        published(Protocol::Tcp, "[::]:8080", "[fd08::2]:80"),
        published(Protocol::Tcp, "0.0.0.0:8081", "10.8.0.2:9"),
        Published { to: None, ..published(Protocol::Tcp, "0.0.0.0:8082", "10.8.0.2:80") },
        published(Protocol::Sctp, "0.0.0.0:8080", "10.8.0.2:80"),
    ];
    assert_eq!(set(&lab, &relay, &ports), []);
    let data = vec![7; 3 << 20];
    for to in ["127.0.0.1:8080", "10.8.0.1:8080"] {
        assert_eq!(ask(&lab, "host", to.parse()?, &data)?, "169.254.7.7");
    }
    assert_eq!(ask(&lab, "host", "[::1]:8080".parse()?, &data)?, "fd11::1");
    // The host's programs are refused the port, whatever they ask for.
    lab.within("host", || {
        TcpListener::bind("127.0.0.1:8080").expect_err("it is held");
        TcpListener::bind("0.0.0.0:8082").expect_err("it is held");
    });
    // Nobody serves there, or nobody is there: an end at once.
    ask(&lab, "host", "127.0.0.1:8081".parse()?, b"x").expect_err("refused");
    ask(&lab, "host", "127.0.0.1:8082".parse()?, b"x").expect_err("refused");

    // A connection lives as long as its rule.
    let mut kept = lab.within("host", || TcpStream::connect("127.0.0.1:8080"))?;
    kept.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut greeting = [0; 12];
    kept.read_exact(&mut greeting)?;
    let fewer = &ports[..1];
    assert_eq!(set(&lab, &relay, fewer), []);
    kept.write_all(b"still")?;
    let mut echo = [0; 5];
    kept.read_exact(&mut echo)?;
    serve(&lab, "out", "10.8.0.2:81");
    assert_eq!(set(&lab, &relay, &[published(Protocol::Tcp, "0.0.0.0:8080", "10.8.0.2:81")]), []);
    assert_eq!(kept.read(&mut echo).unwrap_or(0), 0, "its target is another one now");
    assert_eq!(ask(&lab, "host", "127.0.0.1:8080".parse()?, b"y")?, "169.254.7.7");
    lab.within("host", || TcpListener::bind("0.0.0.0:8082")).expect("it is free again");
    Ok(())
}

#[test]
fn only_those_named_are_let_in() -> Outcome {
    let lab = Lab::new()?;
    let relay = relay(&lab);
    serve(&lab, "out", "10.8.0.2:80");
    let allow: Arc<[ipnet::IpNet]> = Arc::new(["127.0.0.0/8".parse()?]);
    let port = Published { allow, ..published(Protocol::Tcp, "0.0.0.0:8080", "10.8.0.2:80") };
    assert_eq!(set(&lab, &relay, &[port]), []);
    ask(&lab, "host", "127.0.0.1:8080".parse()?, b"x")?;
    ask(&lab, "out", "10.8.0.1:8080".parse()?, b"x").expect_err("it is not named");
    Ok(())
}

#[test]
fn who_has_the_port_is_named() -> Outcome {
    let lab = Lab::new()?;
    let relay = relay(&lab);
    let taken = lab.within("host", || TcpListener::bind((HOST, 8080)))?;
    let also = lab.within("host", || UdpSocket::bind("127.0.0.1:8053"))?;
    let ports = [
        published(Protocol::Tcp, "0.0.0.0:8080", "10.8.0.2:80"),
        published(Protocol::Udp, "0.0.0.0:8053", "10.8.0.2:53"),
        published(Protocol::Udp, "0.0.0.0:8080", "10.8.0.2:80"),
    ];
    let conflicts = set(&lab, &relay, &ports);
    let told: Vec<_> = conflicts.iter().map(ToString::to_string).collect();
    let me = std::process::id();
    let name = std::fs::read_to_string("/proc/self/comm")?;
    let owner = format!("{} (pid {me})", name.trim());
    assert_eq!(
        told,
        [
            format!("address 0.0.0.0:8080/tcp is in use by {owner}"),
            format!("address 0.0.0.0:8053/udp is in use by {owner}")
        ]
    );
    drop((taken, also));
    assert_eq!(set(&lab, &relay, &ports), []);
    // Another relay is somebody else; and it may have the ports when the first one has ended.
    let other = lab.within("host", || Relay::start(SOURCE))?;
    assert_eq!(set(&lab, &other, &ports).len(), 3);
    drop(relay);
    eventually("the ports are free", || set(&lab, &other, &ports).is_empty());
    Ok(())
}

#[test]
fn datagrams_are_relayed_and_answered_from_where_they_went() -> Outcome {
    let lab = Lab::new()?;
    let relay = relay(&lab);
    let server = |address: &str, name: &'static str| {
        let socket = lab.within("out", || UdpSocket::bind(address).expect("free"));
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                let answer = format!("{name} {} {}", from.ip(), String::from_utf8_lossy(&buffer[..len]));
                let _ = socket.send_to(answer.as_bytes(), from);
            }
        });
    };
    server("10.8.0.2:53", "a");
    server("10.8.0.2:54", "b");
    server("[fd08::2]:53", "c");
    let ports = |to: &str| {
        [published(Protocol::Udp, "0.0.0.0:8053", to), published(Protocol::Udp, "[::]:8053", "[fd08::2]:53")]
    };
    assert_eq!(set(&lab, &relay, &ports("10.8.0.2:53")), []);
    lab.sh("host", "ip addr add 10.8.0.3/24 dev d0");
    let ask = |socket: &UdpSocket, to: SocketAddr| -> std::io::Result<String> {
        socket.send_to(b"?", to)?;
        let mut buffer = [0; 2048];
        let (len, from) = socket.recv_from(&mut buffer)?;
        assert_eq!(from, to, "answered from where it was sent to");
        Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
    };
    let client = |space: &str, address: IpAddr| {
        let socket = lab.within(space, || UdpSocket::bind((address, 0)).expect("free"));
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("settable");
        socket
    };
    let local = client("host", [0; 4].into());
    assert_eq!(ask(&local, "127.0.0.1:8053".parse()?)?, "a 169.254.7.7 ?");
    // A second address of the host: not the one that the kernel would answer from by itself.
    let away = client("out", OUTSIDE.into());
    assert_eq!(ask(&away, "10.8.0.3:8053".parse()?)?, "a 169.254.7.7 ?");
    assert_eq!(ask(&away, "10.8.0.1:8053".parse()?)?, "a 169.254.7.7 ?");
    let v6 = client("host", [0; 16].into());
    assert_eq!(ask(&v6, "[::1]:8053".parse()?)?, "c fd11::1 ?");
    // The same client's next datagram follows the rule.
    assert_eq!(set(&lab, &relay, &ports("10.8.0.2:54")), []);
    assert_eq!(ask(&local, "127.0.0.1:8053".parse()?)?, "b 169.254.7.7 ?");
    assert_eq!(set(&lab, &relay, &[]), []);
    local.send_to(b"?", "127.0.0.1:8053")?;
    local.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut buffer = [0; 16];
    assert!(local.recv_from(&mut buffer).is_err(), "nobody is there any more");
    Ok(())
}

#[test]
fn a_range_is_cheap() -> Outcome {
    let lab = Lab::new()?;
    let relay = relay(&lab);
    serve(&lab, "out", "10.8.0.2:80");
    // As many as the usual limit of open files allows for.
    let ports: Vec<_> = (0..800_u16)
        .map(|n| published(Protocol::Tcp, &format!("0.0.0.0:{}", 10_000 + n), "10.8.0.2:80"))
        .collect();
    let start = Instant::now();
    assert_eq!(set(&lab, &relay, &ports), []);
    assert_eq!(set(&lab, &relay, &ports), []);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    ask(&lab, "host", "127.0.0.1:10799".parse()?, b"x")?;
    Ok(())
}

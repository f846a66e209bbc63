//! VLAN tags across an AF_XDP port.
//!
//! A sender's VLAN device puts its tag into the metadata of the socket buffer, where XDP does not see it. The
//! kernels we test on may have no VLAN devices, so a tc program does the same here.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use packet::{FramePool, FrameQueue};
use ports::afxdp::Options;
use ports::ethtool::{self, Offload};

use crate::lab::*;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_EGRESS: u32 = 47;

fn bpf(command: libc::c_long, words: &[(usize, u64, usize)]) -> OwnedFd {
    let mut attributes = [0u64; 16];
    for (offset, value, len) in words {
        let shift = offset % 8 * 8;
        assert!(*len == 8 || *value < 1 << 32);
        attributes[offset / 8] |= value << shift;
    }
    // SAFETY: the kernel reads 128 bytes and what they point to, which the caller keeps alive.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), 128) };
    assert!(fd >= 0, "bpf {command}: {}", io::Error::last_os_error());
    // SAFETY: both commands return a new descriptor.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) }
}

/// Tags all that leaves by `eth0` of the calling thread's namespace with VLAN 7, as long as the result lives.
fn tag_what_leaves() -> OwnedFd {
    // r2 = htons(0x8100); r3 = 7; call bpf_skb_vlan_push; r0 = TCX_PASS; exit
    let code: [u64; 5] = [0x0000_0081_0000_02b7, 0x0000_0007_0000_03b7, 0x0000_0012_0000_0085, 0xb7, 0x95];
    let program = bpf(
        BPF_PROG_LOAD,
        &[
            (0, u64::from(BPF_PROG_TYPE_SCHED_CLS), 4),
            (4, 5, 4),
            (8, code.as_ptr() as u64, 8),
            (16, c"GPL".as_ptr() as u64, 8),
            (68, u64::from(BPF_TCX_EGRESS), 4),
        ],
    );
    // SAFETY: the name is a C string.
    let index = unsafe { libc::if_nametoindex(c"eth0".as_ptr()) };
    bpf(
        BPF_LINK_CREATE,
        &[
            (0, u64::from(program.as_raw_fd().cast_unsigned()), 4),
            (4, u64::from(index), 4),
            (8, u64::from(BPF_TCX_EGRESS), 4),
        ],
    )
}

#[test]
fn a_tag_in_the_senders_metadata_arrives_in_the_frame() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs::default());
    let area = area();
    lab.enter("0");
    let _tagging = tag_what_leaves();
    ethtool::set("eth0", Offload::TxVlan, false).expect("veth can");
    assert!(!ethtool::is_on("eth0", Offload::TxVlan).expect("veth tells"));
    assert!(ethtool::is_on("eth0", Offload::RxVlan).expect("veth tells"));
    lab.enter("s");
    let opened = open(0, Options::default(), &area).expect("the port opens");
    assert_eq!(opened.notes, [] as [String; 0]);
    let mut port = opened.queues.into_iter().next().expect("one queue");
    let mut pool = FramePool::new(area.clone());
    port.receive(&mut pool, 64, |_| unreachable!("nobody sends"));
    lab.try_exec("0", "ping -c 1 -W 1 10.9.0.77");
    let mut frames = Vec::new();
    port.receive(&mut pool, 64, |frame| frames.push(frame));
    let arp: Vec<_> = frames.iter().filter(|f| f.bytes()[16..18] == [8, 6]).collect();
    assert!(!arp.is_empty(), "no tagged ARP request in {frames:?}");
    for frame in arp {
        assert_eq!(frame.bytes()[12..16], [0x81, 0, 0, 7]);
        assert_eq!(frame.len(), 14 + 4 + 28);
    }
    frames.into_iter().for_each(|frame| pool.free(frame));
    port.close(&mut pool);
    drop(pool);
    all_home(&area);
}

#[test]
fn a_tag_in_the_frame_reaches_the_container() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs::default());
    let area = area();
    lab.enter("s");
    let mut port = open(0, Options::default(), &area).expect("the port opens").queues.remove(0);
    let mut pool = FramePool::new(area.clone());
    let mut queue = FrameQueue::new(4);
    let mut watcher = lab.start("0", "timeout 10 tcpdump -nn -e -l -c 1 -i eth0 vlan 7");
    let mut bytes = [0u8; 64];
    bytes[..18].copy_from_slice(&[255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 9, 0x81, 0, 0, 7, 0x88, 0xb5]);
    let start = Instant::now();
    while watcher.0.try_wait().expect("a child").is_none() {
        assert!(start.elapsed() < Duration::from_secs(12), "tcpdump saw no tagged frame");
        queue.push(pool.alloc_from(&bytes).expect("a chunk")).expect("room");
        port.transmit(&mut queue, &mut pool);
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = io::read_to_string(watcher.0.stdout.take().expect("piped")).expect("text");
    assert!(output.contains("vlan 7"), "{output}");
    port.close(&mut pool);
    drop(pool);
    all_home(&area);
}

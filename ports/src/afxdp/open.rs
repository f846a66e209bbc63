//! Opening an AF_XDP port: from the best mode to the one that works, with a note for every step down.

use std::cell::Cell;
use std::io;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use packet::segment::MAX_SEGMENTS;
use packet::{Area, FrameQueue};

use super::bpf::{Link, Mode, Program};
use super::depth::Depth;
use super::device::Device;
use super::ledger::Ledger;
use super::socket::{Binding, Socket};
use super::{Afxdp, Attach, CopyMode, Options, Settings};
use crate::{Error, Health, Opened, Port, Stats};

/// How long a predecessor on the same queue may take to be gone: the kernel tears sockets down in the background.
const BUSY_LIMIT: Duration = Duration::from_secs(1);
const BUSY_STEP: Duration = Duration::from_millis(5);

/// Ethernet header and two VLAN tags.
pub(super) const LINK_HEADERS: usize = 14 + 2 * 4;

/// Opens a socket on every queue of `device` and attaches the program that feeds them.
///
/// # Errors
/// Names the port, the operation and the kernel's reason; nothing is left open.
pub fn open(port: &str, device: &str, options: Options, area: &Arc<Area>) -> Result<Opened, Error> {
    let fail = |operation: &str| {
        let (port, operation) = (port.to_owned(), operation.to_owned());
        move |source| Error { port, operation, source }
    };
    options.check().map_err(fail("use these AF_XDP options"))?;
    let interface = Device::find(device).map_err(fail(&format!("find {device}")))?;
    let mut notes = Vec::new();
    let mtu = interface.mtu().map_err(fail(&format!("read the MTU of {device}")))? as usize;
    let queues = options.queues.unwrap_or_else(|| interface.queues());
    let program = Program::load(queues, &options).map_err(fail("load the XDP program"))?;
    let (link, mode) = attach(&program, &interface, device, &options, &mut notes)
        .map_err(fail(&format!("attach the XDP program to {device}")))?;
    let link = Arc::new(link);

    let candidates = bindings(&options, &program, &interface, mode, mtu);
    let mut ports = Vec::new();
    let mut modes = None;
    for queue in 0..queues {
        let (socket, binding) = bind(area, &options, &candidates, queue, device, &mut notes)
            .map_err(|(operation, e)| fail(&format!("{operation} on {device} queue {queue}"))(e))?;
        link.claim(queue, socket.fd())
            .map_err(fail(&format!("put the socket of {device} queue {queue} into the program's map")))?;
        let zero_copy = socket.is_zero_copy();
        modes.get_or_insert_with(|| describe(mode, zero_copy, &socket));
        let uncut = (mode == Mode::Generic).then_some(mtu);
        let settings = Settings { options: options.clone(), binding, zero_copy, uncut };
        ports.push(Port::Afxdp(Box::new(Afxdp {
            area: Arc::clone(area),
            socket: ManuallyDrop::new(socket),
            open: true,
            ledger: Ledger::new(area),
            receiving: 0,
            depth: Depth::new(options.fill, options.fill_limit),
            in_flight: 0,
            staged: FrameQueue::new(MAX_SEGMENTS),
            health: Cell::new(Health::Up),
            unexplained: 0,
            counters: Stats::default(),
            settings,
            _link: Arc::clone(&link),
        })));
    }
    Ok(Opened { queues: ports, mode: modes.unwrap_or_default(), notes })
}

fn describe(mode: Mode, zero_copy: bool, socket: &Socket) -> String {
    let mut words = vec![
        if mode == Mode::Native { "xdp-native" } else { "xdp-generic" },
        if zero_copy { "zerocopy" } else { "copy" },
        "need_wakeup",
    ];
    if socket.layout.metadata > 0 {
        words.push("tx-csum");
    }
    if socket.fragments {
        words.push("sg");
    }
    words.join(",")
}

fn attach(
    program: &Program,
    interface: &Device,
    device: &str,
    options: &Options,
    notes: &mut Vec<String>,
) -> io::Result<(Link, Mode)> {
    let modes: &[Mode] = match options.attach {
        Attach::Auto => &[Mode::Native, Mode::Generic],
        Attach::Native => &[Mode::Native],
        Attach::Generic => &[Mode::Generic],
    };
    let mut last = io::Error::from(io::ErrorKind::Unsupported);
    for mode in modes {
        match patiently(libc::EBUSY, || program.attach(interface.index(), *mode)) {
            Ok(link) => return Ok((link, *mode)),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) => {
                let text = format!(
                    "another XDP program is attached to {device}: `ip -details link show {device}` tells which"
                );
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
            Err(e) => {
                notes.push(format!(
                    "{} XDP is not possible on {device}{}: {e}",
                    if *mode == Mode::Native { "native" } else { "generic" },
                    explain(&e)
                ));
                last = e;
            }
        }
    }
    Err(io::Error::new(last.kind(), notes.join("; ")))
}

/// Says in words what a driver means by its error.
fn explain(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => ", its driver has none",
        Some(libc::ERANGE) => ", the MTU is too large for it",
        Some(libc::ENOSPC) => ", the peer has more transmit queues than the device has receive queues",
        Some(libc::EPERM) => ", CAP_NET_ADMIN and CAP_BPF are needed",
        _ => "",
    }
}

/// Returns the ways to bind, best first.
fn bindings(
    options: &Options,
    program: &Program,
    interface: &Device,
    mode: Mode,
    mtu: usize,
) -> Vec<Binding> {
    let binding =
        |zero_copy, fragments| Binding { interface: interface.index(), queue: 0, zero_copy, fragments };
    let fragments = options.fragments && program.fragments();
    let fits = mtu + LINK_HEADERS <= packet::pool::SMALL_ROOM;
    let mut candidates = Vec::new();
    let zero_copy = match options.copy {
        CopyMode::Copy => false,
        CopyMode::ZeroCopy => true,
        // A veth has none and says so only after the memory was registered.
        CopyMode::Auto => mode == Mode::Native && !interface.is_veth(),
    };
    if zero_copy {
        if fragments {
            candidates.push(binding(true, true));
        }
        if fits || !fragments || options.copy == CopyMode::ZeroCopy {
            candidates.push(binding(true, false));
        }
    }
    if options.copy != CopyMode::ZeroCopy {
        if fragments {
            candidates.push(binding(false, true));
        }
        candidates.push(binding(false, false));
    }
    candidates
}

fn bind(
    area: &Area,
    options: &Options,
    candidates: &[Binding],
    queue: u32,
    device: &str,
    notes: &mut Vec<String>,
) -> Result<(Socket, Binding), (&'static str, io::Error)> {
    let mut last = ("bind", io::Error::from(io::ErrorKind::Unsupported));
    for candidate in candidates {
        let binding = Binding { queue, ..*candidate };
        let mut operation = "bind";
        let result = patiently(libc::EBUSY, || {
            Socket::open(area, options, binding).map_err(|(step, e)| {
                operation = step;
                e
            })
        });
        match result {
            Ok(socket) => return Ok((socket, binding)),
            Err(e)
                if operation == "bind"
                    && matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) =>
            {
                if queue == 0 {
                    notes.push(format!("{device} cannot do {}: {e}", name(binding)));
                }
                last = (operation, e);
            }
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                let text = format!("queue {queue} of {device} already has an AF_XDP socket");
                return Err((operation, io::Error::new(io::ErrorKind::ResourceBusy, text)));
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                let text = "the limit of locked memory (RLIMIT_MEMLOCK) is smaller than the frame memory; raise it \
                            or grant CAP_IPC_LOCK";
                return Err((operation, io::Error::new(io::ErrorKind::OutOfMemory, text)));
            }
            Err(e) => return Err((operation, e)),
        }
    }
    Err(last)
}

fn name(binding: Binding) -> &'static str {
    match (binding.zero_copy, binding.fragments) {
        (true, true) => "zero copy with frames of several buffers",
        (true, false) => "zero copy",
        (false, true) => "frames of several buffers",
        (false, false) => "AF_XDP",
    }
}

/// Tries again for a while as long as `attempt` fails with `errno`.
fn patiently<T>(errno: i32, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(e) if e.raw_os_error() == Some(errno) && start.elapsed() < BUSY_LIMIT => sleep(BUSY_STEP),
            result => return result,
        }
    }
}

/// Waits until the kernel has taken the queue of a closed zero-copy socket away from the device, by binding a
/// socket of our own to it. False when it takes too long.
pub(super) fn wait_until_free(area: &Area, settings: &Settings) -> bool {
    let binding = Binding { zero_copy: false, fragments: false, ..settings.binding };
    let result =
        patiently(libc::EBUSY, || Socket::open(area, &settings.options, binding).map_err(|(_, e)| e));
    // Any other error (the device is gone) comes after the check for the old socket.
    !matches!(result, Err(e) if e.raw_os_error() == Some(libc::EBUSY))
}

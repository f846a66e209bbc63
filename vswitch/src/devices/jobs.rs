//! The two threads that talk to the kernel about devices, and their queues.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use tokio::sync::oneshot;

use super::netlink::Netlink;
use super::{Device, DeviceKind, Error, Namespace, link, tap};

type Job = Box<dyn FnOnce(&mut Home) + Send>;

struct Removal {
    device: Device,
    reply: oneshot::Sender<Result<(), Error>>,
}

/// A thread that lives in the switch's namespace, with what it needs there.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) netlink: Netlink,
    namespace: Arc<Namespace>,
    switch: String,
}

impl Home {
    /// Moves the calling thread home.
    fn enter(namespace: Arc<Namespace>, switch: &str) -> Result<Self, Error> {
        namespace.join()?;
        let netlink = Netlink::open().map_err(|error| Error::kernel("open a netlink socket", error))?;
        Ok(Self { netlink, namespace, switch: switch.to_owned() })
    }

    /// Returns the switch's own namespace.
    pub(super) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Returns the switch's name.
    pub(super) fn switch(&self) -> &str {
        &self.switch
    }

    /// Runs `action` inside `namespace` with a socket there, and comes home.
    pub(super) fn visit<T, E: From<Error>>(
        &self,
        namespace: &Namespace,
        action: impl FnOnce(&mut Netlink) -> Result<T, E>,
    ) -> Result<T, E> {
        struct Return<'a>(&'a Namespace);
        impl Drop for Return<'_> {
            fn drop(&mut self) {
                // A job that ran in the wrong namespace would change a container instead of the switch.
                self.0.join().expect("a thread may go back to the namespace it came from");
            }
        }
        namespace.join()?;
        let _return = Return(&self.namespace);
        let mut netlink = Netlink::open().map_err(|error| Error::kernel("open a netlink socket", error))?;
        action(&mut netlink)
    }
}

/// The queues to the threads, which end when this is dropped and the queues are empty.
#[derive(Debug)]
pub(super) struct Jobs {
    namespace: Arc<Namespace>,
    jobs: Sender<Job>,
    removals: Sender<Removal>,
}

impl Jobs {
    pub(super) fn start(switch: &str) -> Result<Self, Error> {
        let namespace = Arc::new(Namespace::switch(switch)?);
        let (jobs, queue) = channel::<Job>();
        spawn("devices", &namespace, switch, move |mut home| {
            for job in queue {
                job(&mut home);
            }
        })?;
        let (removals, queue) = channel();
        spawn("devices-remove", &namespace, switch, move |home| remove_loop(home, &queue))?;
        Ok(Self { namespace, jobs, removals })
    }

    pub(super) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(super) async fn submit<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Home) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |home| {
            // Nobody waits when the request was given up; the next start or cleanup finds what was made.
            let _ = reply.send(job(home));
        });
        self.jobs.send(job).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    pub(super) async fn remove(&self, device: Device) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.removals.send(Removal { device, reply }).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

fn ended() -> Error {
    Error::Kernel {
        operation: "change a device".to_owned(),
        reason: "its thread has ended".to_owned(),
        errno: 0,
    }
}

fn spawn(
    name: &str,
    namespace: &Arc<Namespace>,
    switch: &str,
    body: impl FnOnce(Home) + Send + 'static,
) -> Result<(), Error> {
    let (ready, is_ready) = channel();
    let (namespace, switch) = (Arc::clone(namespace), switch.to_owned());
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || match Home::enter(namespace, &switch) {
            Ok(home) => {
                let _ = ready.send(Ok(()));
                body(home);
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        })
        .map_err(|error| Error::kernel(format!("start thread '{name}'"), error))?;
    is_ready.recv().map_err(|_| ended())?
}

/// Deletes what is asked for, and everything else that waits by then in the same go.
fn remove_loop(mut home: Home, queue: &Receiver<Removal>) {
    while let Ok(first) = queue.recv() {
        let mut names = Vec::new();
        let mut waiting = Vec::new();
        for Removal { device, reply } in std::iter::once(first).chain(queue.try_iter()) {
            match device.kind {
                DeviceKind::Tap => {
                    let _ = reply.send(tap::remove(&home, &device));
                }
                DeviceKind::Veth => {
                    names.push(device.near.clone());
                    waiting.push((device, reply));
                }
            }
        }
        let results = link::delete_together(&mut home.netlink, &names);
        for ((device, reply), result) in waiting.into_iter().zip(results) {
            let operation = || format!("remove '{}' of port '{}'", device.near, device.port);
            let _ = reply.send(result.map_err(|refusal| Error::refused(operation(), &refusal)));
        }
    }
}

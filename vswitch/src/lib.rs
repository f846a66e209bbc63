//! The switch daemon: workers that move frames, and the manager that decides what they do.
//!
//! * `worker`: a packet's way in and out; `crew` starts workers and talks to them.
//! * `manager`: turns the `intent` into what runs. `compile` makes of it what workers go by, `plug` what `devices` are
//!   asked for, `store` keeps it, `journal` tells what happened, `keeper` writes down which connections there are.
//! * `uplink` is the way to the outside and to the host itself, by the host's own devices; `relay` listens where the host
//!   publishes a port.
//! * `front`: the API.

pub mod compile;
pub mod crew;
pub mod devices;
pub mod doctor;
pub mod front;
pub mod intent;
pub mod journal;
pub mod keeper;
pub mod manager;
pub mod numbers;
pub mod plug;
pub mod refusal;
pub mod relay;
pub mod store;
pub mod surroundings;
pub mod uplink;
pub mod worker;

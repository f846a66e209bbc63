//! What the commands of routes, policies and published addresses have in common.

use config::api::{ObjectState, route};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::Context;
use crate::settings::Patch;

/// What every view tells.
pub(crate) trait View: DeserializeOwned {
    /// What people call the object.
    const NOUN: &'static str;

    /// Its name, its state, and why it has no effect.
    fn standing(&self) -> (&str, ObjectState, Option<&str>);
}

macro_rules! views {
    ($($view:ty, $noun:literal;)+) => {$(
        impl View for $view {
            const NOUN: &'static str = $noun;

            fn standing(&self) -> (&str, ObjectState, Option<&str>) {
                (&self.name, self.state, self.reason.as_deref())
            }
        }
    )+};
}

views! {
    config::api::RouteView, "route";
    config::api::PolicyView, "policy";
    config::api::FloatingIpView, "floating IP";
    config::api::PublishView, "published port";
    config::api::EgressView, "egress address of port";
    config::api::PeerView, "peer";
    config::api::RemoteView, "remote";
}

/// Adds an object.
pub(crate) async fn add<V: View>(context: &Context, path: &str, mut patch: Patch) -> anyhow::Result<()> {
    patch.drop_defaults();
    let answer = context.client.post(path, &patch.into_value()).await?;
    context.show(&answer, |view: &V| outcome(view, "added"))
}

/// Changes an object.
pub(crate) async fn set<V: View>(
    context: &Context,
    path: &str,
    name: &str,
    patch: Patch,
) -> anyhow::Result<()> {
    patch.must_say_something()?;
    let answer = context.client.patch(&route::with_name(path, name), &patch.into_value()).await?;
    context.show(&answer, |view: &V| outcome(view, "changed"))
}

/// Removes an object.
pub(crate) async fn rm<V: View>(context: &Context, path: &str, name: &str) -> anyhow::Result<()> {
    let answer = context.client.delete(&route::with_name(path, name)).await?;
    context.done(&answer, &format!("{} {name} removed", V::NOUN))
}

/// Returns one object.
pub(crate) async fn get(context: &Context, path: &str, name: &str) -> anyhow::Result<Value> {
    Ok(context.client.get(&route::with_name(path, name)).await?)
}

fn outcome<V: View>(view: &V, done: &str) -> String {
    let (name, state, reason) = view.standing();
    match state {
        ObjectState::Active => format!("{} {name} {done}\n", V::NOUN),
        ObjectState::Pending => {
            let reason = reason.unwrap_or("something it needs is missing");
            format!("{} {name} {done}, and waits: {reason}\n", V::NOUN)
        }
    }
}

/// Returns the state for a table; `active` is what nobody has to look at.
pub(crate) fn state<V: View>(view: &V) -> String {
    match view.standing().1 {
        ObjectState::Active => "active".to_owned(),
        ObjectState::Pending => "PENDING".to_owned(),
    }
}

/// Returns the state with its reason.
pub(crate) fn state_with_reason<V: View>(view: &V) -> String {
    match view.standing().2 {
        Some(reason) => format!("{}: {reason}", state(view)),
        None => state(view),
    }
}

#[cfg(test)]
mod tests {
    use config::api::EgressView;
    use serde_json::json;

    use super::*;

    #[test]
    fn outcome_names_what_is_waited_for() {
        let mut view: EgressView = serde_json::from_value(json!({
            "name": "web", "config": {"port": "web", "address": "203.0.113.7"}, "owner": "cli", "state": "active",
        }))
        .expect("a view as the daemon sends it");
        assert_eq!(outcome(&view, "added"), "egress address of port web added\n");
        view.state = ObjectState::Pending;
        view.reason = Some("there is no port 'web' yet".to_owned());
        assert_eq!(
            outcome(&view, "changed"),
            "egress address of port web changed, and waits: there is no port 'web' yet\n"
        );
        assert_eq!(state_with_reason(&view), "PENDING: there is no port 'web' yet");
    }
}

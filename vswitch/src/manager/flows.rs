//! What the manager knows of the flows that workers decide: which policy decided how often, which L4 port was taken,
//! what would become of a connection.
//!
//! One place, so that nobody else asks the workers' tables. What is not counted or not decided is `None`, never a
//! number that looks like one.

use config::Publish;
use config::api::AssertView;

use super::Manager;
use crate::intent::Intent;
use crate::refusal::Refusal;

impl Manager {
    /// Returns how many new connections a policy decided, when somebody counts.
    pub(super) fn policy_hits(&self, _name: &str) -> Option<u64> {
        None
    }

    /// Returns the first L4 port that a published port listens on; `None` while a free one is to be chosen.
    pub(super) fn bound_l4_port(&self, publish: &Publish) -> Option<u16> {
        match publish.listen.is_random() {
            true => self.outside.as_ref()?.chosen(&config::Object::name(publish)),
            false => Some(publish.listen.ports.first),
        }
    }

    /// Looks at what the file asserts, as it would be with `next`.
    pub(super) fn look_at_asserts(&self, next: &Intent) -> Vec<AssertView> {
        let asserts = next.settings.asserts.iter();
        asserts
            .map(|assert| AssertView {
                from: assert.from.clone(),
                to: assert.to.to_string(),
                expect: assert.expect,
                found: None,
                reason: match next.ports.contains_key(&assert.from) {
                    true => "this switch does not decide connections yet".to_owned(),
                    false => format!("there is no port '{}' yet", assert.from),
                },
            })
            .collect()
    }
}

/// Refuses a change after which an assertion would not hold.
pub(super) fn hold(asserts: &[AssertView]) -> Result<(), Refusal> {
    let broken: Vec<String> = asserts
        .iter()
        .filter_map(|assert| {
            let found = assert.found.filter(|found| *found != assert.expect)?;
            let AssertView { from, to, expect, reason, .. } = assert;
            Some(format!("assert {from}->{to}: expected {expect}, found {found} by {reason}"))
        })
        .collect();
    match broken.as_slice() {
        [] => Ok(()),
        [one] => Err(Refusal::conflict(one.clone())),
        more => {
            Err(Refusal::conflict(format!("{} assertions would not hold", more.len())).with_details(broken))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::Action;

    fn view(expect: Action, found: Option<Action>) -> AssertView {
        AssertView { from: "web".into(), to: "mgmt:22/tcp".into(), expect, found, reason: "policy x".into() }
    }

    #[test]
    fn only_what_was_looked_at_and_is_not_so_is_refused() {
        let (good, unknown) = (view(Action::Deny, Some(Action::Deny)), view(Action::Deny, None));
        assert_eq!(hold(&[good.clone(), unknown]), Ok(()));
        let bad = view(Action::Deny, Some(Action::Allow));
        let refused = hold(&[good, bad.clone()]).expect_err("one is not so");
        assert_eq!(refused.message, "assert web->mgmt:22/tcp: expected deny, found allow by policy x");
        assert_eq!(hold(&[bad.clone(), bad]).expect_err("two are not").details.len(), 2);
    }
}

//! Puts the VLAN tag into the shape that the output port wants (IEEE 802.1Q-2022, 9.6).

use packet::{Frame, VlanId};

use crate::flow_cache::TagAction;

const TAG_LEN: usize = 4;
const MACS_LEN: usize = 12;

/// Carries out `action`; a tag that is put in or set names `vlan`, with priority 0 or the one it had. `None`, and
/// nothing changed, when there is no headroom left for a tag or no tag to remove.
pub(crate) fn apply(frame: &mut Frame, action: TagAction, vlan: VlanId) -> Option<()> {
    match action {
        TagAction::Keep => {}
        TagAction::Push => {
            frame.prepend(TAG_LEN)?;
            let bytes = frame.bytes_mut();
            bytes.copy_within(TAG_LEN..TAG_LEN + MACS_LEN, 0);
            bytes[12..14].copy_from_slice(&[0x81, 0x00]);
            bytes[14..16].copy_from_slice(&vlan.0.to_be_bytes());
        }
        TagAction::Pop => {
            if frame.len() < MACS_LEN + TAG_LEN {
                return None;
            }
            frame.bytes_mut().copy_within(..MACS_LEN, TAG_LEN);
            frame.trim_front(TAG_LEN)?;
        }
        TagAction::Set => {
            let tci = frame.bytes_mut().get_mut(14..16)?;
            tci[0] = tci[0] & 0xf0 | (vlan.0 >> 8) as u8 & 0x0f;
            tci[1] = (vlan.0 & 0xff) as u8;
        }
    }
    Some(())
}

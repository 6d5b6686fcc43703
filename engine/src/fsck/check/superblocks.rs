//! Superblocks of all devices.

use super::super::finding::Finding;
use super::super::kind::Kind;
use super::super::view::{Device, Devices, Fault};
use super::Checked;
use bcache_format::error::Problem;
use bcache_format::superblock::{RawSuperblock, SB_BYTES, SB_OFFSET};
use bcache_format::{Structure, Superblock};
use std::sync::Arc;

pub(super) fn pass(checked: &mut Checked, devices: impl IntoIterator<Item = Device>) {
    let mut known = Devices::default();
    for device in devices {
        let name: Arc<str> = device.name().into();
        match look(&device, &name) {
            Ok((sb, wrong_csum)) => {
                if let Some(fault) = wrong_csum {
                    checked.found(fault.into());
                }
                known.push_with(device, sb);
            }
            Err(fault) => checked.found(fault.into()),
        }
    }
    checked.backings = known.backings;
    let mut caches = known.caches.into_iter();
    checked.cache = caches.next();
    for second in caches {
        let detail = "a second cache".to_owned();
        checked.found(Finding::new(Kind::TwoCaches, &second.name, SB_OFFSET, detail));
    }
}

/// The superblock, if it says what it can say; with a fault when only its checksum is wrong.
fn look(device: &Device, name: &Arc<str>) -> Result<(Superblock, Option<Fault>), Fault> {
    let bytes =
        super::super::view::devices::read(device, name, Structure::Superblock, SB_OFFSET, SB_BYTES as u64)?;
    let at = |error| Fault::format(name, error, SB_OFFSET);
    let (sb, fault) = match Superblock::parse(&bytes) {
        Ok(sb) => (sb, None),
        Err(error) if matches!(error.problem, Problem::Checksum { .. }) => {
            let raw = RawSuperblock::read(&bytes).ok_or_else(|| at(error.clone()))?;
            // Worth a look when all else is as it must be; otherwise the checksum is the least of it.
            (Superblock::decode(&raw).map_err(at)?, Some(at(error)))
        }
        Err(error) => return Err(at(error)),
    };
    sb.check_device(device.size(), 0).map_err(at)?;
    Ok((sb, fault))
}

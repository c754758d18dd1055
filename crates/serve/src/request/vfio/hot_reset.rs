//! Hot reset: a program that has all devices behind a bridge resets them together.

use std::sync::Arc;

use ioasid::{Context, GroupId};
use ioasid_uapi::vfio as uapi;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::device::Opened;
use super::group::GroupFile;
use super::{get, through};
use crate::bus::Member;
use crate::request::Caller;
use crate::request::file::of_kind;

/// What a device is to a context that has another device of its bus.
fn id_for(member: &Member, all: &[Member], context: &Arc<Context>) -> u32 {
    let id_of = |member: &Member| member.opened().and_then(|device| device.id_in(context));
    let in_group = |other: &&Member| other.group == member.group;
    match id_of(member) {
        Some(id) => id.0.get(),
        // No other context can have it.
        None if all.iter().filter(in_group).any(|other| id_of(other).is_some()) => uapi::PCI_DEVID_OWNED,
        None => uapi::PCI_DEVID_NOT_OWNED,
    }
}

/// GET_PCI_HOT_RESET_INFO: which devices are reset together.
pub(super) fn info(opened: &Opened, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
    let (mut head, argsz) = get::<uapi::PciHotResetInfo>(address, caller, through!(uapi::PciHotResetInfo, count: u32))?;
    let bus = opened.bus().ok_or(Errno::NODEV)?;
    let context = opened.cdev().map(ioasid::Device::context);
    // The program's memory is used without the guard: it may wait.
    let entries: Vec<_> = {
        let _use = bus.use_open();
        let members = bus.members();
        let entry = |member: &Member| uapi::PciDependentDevice {
            id: context.map_or(member.group.0, |context| id_for(member, &members, context)),
            segment: member.rid.segment(),
            bus: member.rid.bus(),
            devfn: member.rid.devfn(),
        };
        members.iter().map(entry).collect()
    };
    head.count = entries.len() as u32;
    head.flags = 0;
    let at = size_of::<uapi::PciHotResetInfo>();
    if entries.len() > (argsz as usize - at) / size_of::<uapi::PciDependentDevice>() {
        caller.write(address, head.as_bytes())?;
        return Err(Errno::NOSPC);
    }
    if context.is_some() {
        head.flags |= uapi::PCI_HOT_RESET_FLAG_DEV_ID;
        if entries.iter().all(|entry| entry.id != uapi::PCI_DEVID_NOT_OWNED) {
            head.flags |= uapi::PCI_HOT_RESET_FLAG_DEV_ID_OWNED;
        }
    }
    caller.write(address.wrapping_add(at as u64), entries.as_bytes())?;
    caller.write(address, head.as_bytes())
}

/// PCI_HOT_RESET: resets all of them. The caller shows that it has them by its groups; or, by a file of the device's
/// own, by what is bound to the same context.
pub(super) fn reset(opened: &Opened, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
    // Linux does not check that the descriptors were set aside, either.
    let (request, _) = get::<uapi::PciHotReset>(address, caller, through!(uapi::PciHotReset, count: u32))?;
    if request.flags != 0 {
        return Err(Errno::INVAL);
    }
    let bus = opened.bus().ok_or(Errno::NODEV)?;
    let groups = match (opened.cdev(), request.count as usize) {
        (Some(_), 0) => None,
        (None, count) if (1..=bus.members().len()).contains(&count) => {
            let at = address.wrapping_add(size_of::<uapi::PciHotReset>() as u64);
            Some(groups(at, count, caller)?)
        }
        _ => return Err(Errno::INVAL),
    };
    let _use = bus.use_open();
    let members = bus.members();
    let is_had = |member: &Member| match (&groups, opened.cdev()) {
        (Some(groups), _) => groups.contains(&member.group),
        (None, Some(device)) => id_for(member, &members, device.context()) != uapi::PCI_DEVID_NOT_OWNED,
        (None, None) => false,
    };
    let has_all = members.iter().all(is_had);
    if !has_all || !members.iter().all(Member::is_bound) {
        return Err(Errno::INVAL);
    }
    // Those that were open when the caller was found to have them; one that is not, is as after a reset.
    members.iter().filter_map(Member::opened).try_for_each(|device| device.reset())
}

/// The groups that the caller has open files of.
fn groups(address: u64, count: usize, caller: &dyn Caller) -> Result<Vec<GroupId>, Errno> {
    let mut numbers = vec![0i32; count];
    caller.read(address, numbers.as_mut_bytes())?;
    let group = |number: i32| match caller.file(number) {
        Ok(file) => Ok(of_kind::<GroupFile>(file).ok_or(Errno::INVAL)?.id()),
        Err(Errno::BADFD) => Err(Errno::INVAL),
        Err(errno) => Err(errno),
    };
    numbers.into_iter().map(group).collect()
}

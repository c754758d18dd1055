//! What kinds of files there are, as programs see them.

use std::ffi::CString;

use crate::cdev::path_of;
use crate::container::{device, group_of, with_iommu};
use crate::sys::{File, Outcome, Rows, open, outcome};

/// Type, size, and with `numbered` the device number: 20 bits of minor and, above, of major.
fn seen(stat: &libc::stat, numbered: bool) -> i64 {
    let kind = i64::from(stat.st_mode & libc::S_IFMT) << 40 | (stat.st_size & 0xff) << 40;
    let number = i64::from(libc::major(stat.st_rdev)) << 20 | i64::from(libc::minor(stat.st_rdev));
    kind | if numbered { number } else { 0 }
}

fn ask(call: impl FnOnce(&mut libc::stat) -> i32) -> Result<libc::stat, i32> {
    // SAFETY: plain numbers.
    let mut stat = unsafe { std::mem::zeroed() };
    outcome(call(&mut stat).into()).map(|_| stat)
}

fn by_path(path: &str) -> Result<libc::stat, i32> {
    let path = CString::new(path).map_err(|_| libc::EINVAL)?;
    // SAFETY: a terminated string, and room for the answer.
    ask(|stat| unsafe { libc::stat(path.as_ptr(), stat) })
}

fn by_file(file: &File) -> Result<libc::stat, i32> {
    // SAFETY: room for the answer.
    ask(|stat| unsafe { libc::fstat(file.0, stat) })
}

fn by_statx(file: &File) -> Outcome {
    // SAFETY: plain numbers.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated string, and room for the answer.
    outcome(unsafe { libc::statx(file.0, c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_ALL, &mut stat) }.into())
        .map(|_| i64::from(stat.stx_mode) & i64::from(libc::S_IFMT))
}

pub(crate) fn rows(name: &str, rows: &mut Rows) {
    let own = path_of(name);
    for (what, path, numbered) in [
        ("the iommu", "/dev/iommu", false),
        ("a container", "/dev/vfio/vfio", true),
        ("a group", &group_of(name), false),
        ("a device", &own, false),
    ] {
        let told = by_path(path);
        rows.row(&format!("stat: {what}"), told.map(|stat| seen(&stat, numbered)));
        if let Some(file) = rows.file(&format!("stat: open {what}"), open(path)) {
            rows.row(&format!("fstat: {what}"), by_file(&file).map(|stat| seen(&stat, numbered)));
            rows.row(&format!("statx: {what}"), by_statx(&file));
            let same = |stat: libc::stat| told.is_ok_and(|told| told.st_rdev == stat.st_rdev);
            rows.row(&format!("fstat: {what}, the same number"), by_file(&file).map(|stat| same(stat).into()));
        }
    }
    let file = own.rsplit('/').next().unwrap_or_default();
    let text = std::fs::read_to_string(format!("/sys/bus/pci/devices/{name}/vfio-dev/{file}/dev")).unwrap_or_default();
    let number = by_path(&own).map(|stat| format!("{}:{}\n", libc::major(stat.st_rdev), libc::minor(stat.st_rdev)));
    rows.row("stat: a device, as /sys has it", number.map(|number| i64::from(number == text)));
    let kinds = std::fs::read_dir("/dev/vfio").into_iter().flatten().flatten().filter(|entry| {
        use std::os::unix::fs::FileTypeExt as _;
        entry.file_type().is_ok_and(|kind| kind.is_char_device()) && entry.file_name() == "vfio"
    });
    rows.row("a directory's idea of a container", Ok(kinds.count() as i64));
    let (group, _container) = with_iommu(name, 3);
    if let Ok(device) = device(&group, name) {
        rows.row("fstat: a group's device, its number", by_file(&device).map(|stat| stat.st_rdev as i64));
    }
}

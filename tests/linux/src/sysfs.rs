//! The device bound and unbound by way of `/sys`.

use std::fs;
use std::io::Write as _;

use crate::container::{device, group_of, with_iommu};
use crate::sys::{Outcome, Rows, open};

const DRIVER: &str = "/sys/bus/pci/drivers/vfio-pci";

pub(crate) fn write(path: &str, text: &str) -> Outcome {
    let file = fs::OpenOptions::new().write(true).open(path);
    let written = file.and_then(|mut file| file.write(text.as_bytes()));
    // The length says nothing that the text did not.
    written.map(|_| 0).map_err(|error| error.raw_os_error().unwrap_or(0))
}

/// A number for a text, so that it can be a row.
fn text(path: &str) -> Outcome {
    let text = fs::read_to_string(path).map_err(|error| error.raw_os_error().unwrap_or(0))?;
    Ok(text.bytes().fold(0, |sum, byte| sum * 31 % 0xf_ffff + i64::from(byte)))
}

pub(crate) fn rows(name: &str, rows: &mut Rows) {
    let home = format!("/sys/bus/pci/devices/{name}");
    let path = group_of(name);
    let id = |file: &str| fs::read_to_string(format!("{home}/{file}")).expect("the device has an id");
    let id = format!("{} {}", id("vendor").trim(), id("device").trim());
    let (over, probe) = (format!("{home}/driver_override"), "/sys/bus/pci/drivers_probe");
    let driver = |file: &str| format!("{DRIVER}/{file}");
    let state = |when: &str, rows: &mut Rows| {
        let there = |path: &str| i64::from(fs::symlink_metadata(path).is_ok());
        rows.row(&format!("{when}: driver"), Ok(there(&format!("{home}/driver"))));
        rows.row(&format!("{when}: of the driver"), Ok(there(&driver(name))));
        rows.row(&format!("{when}: group"), open(&path).map(|_| 0));
        rows.row(&format!("{when}: override"), text(&over));
    };
    rows.row("override: vfio-pci", write(&over, "vfio-pci\n"));
    state("bound", rows);
    for (what, text) in
        [("it", name), ("nothing", ""), ("none", "0009:09:09.0"), ("a line of it", &format!("{name}\n"))]
    {
        rows.row(&format!("bind {what}, bound"), write(&driver("bind"), text));
    }
    for (what, text) in [("nothing", "\n"), ("none", "0009:09:09.0"), ("a part", &name[1..])] {
        rows.row(&format!("unbind {what}"), write(&driver("unbind"), text));
    }
    rows.row("override: other, bound", write(&over, "other"));
    state("bound, other", rows);
    rows.row("unbind", write(&driver("unbind"), name));
    rows.row("unbind again", write(&driver("unbind"), name));
    state("unbound, other", rows);
    rows.row("bind, other", write(&driver("bind"), name));
    rows.row("probe, other", write(probe, name));
    rows.row("probe none", write(probe, "0009:09:09.0"));
    rows.row("override: none", write(&over, "\n"));
    state("unbound", rows);
    rows.row("bind, none", write(&driver("bind"), name));
    for (what, text) in
        [("nothing", ""), ("one number", "1234"), ("a word", "what is"), ("a long number", "1234 123456789")]
    {
        rows.row(&format!("new id: {what}"), write(&driver("new_id"), text));
        rows.row(&format!("remove id: {what}"), write(&driver("remove_id"), text));
    }
    rows.row("remove an id that is not there", write(&driver("remove_id"), &id));
    rows.row("new id", write(&driver("new_id"), &id));
    rows.row("new id again", write(&driver("new_id"), &id));
    state("bound by id", rows);
    rows.row("remove id", write(&driver("remove_id"), &id));
    rows.row("remove id again", write(&driver("remove_id"), &id));
    state("bound, id gone", rows);
    rows.row("unbind, by its link", write(&format!("{home}/driver/unbind"), name));
    rows.row("bind, id gone", write(&driver("bind"), name));
    rows.row("override", write(&over, "vfio-pci"));
    rows.row("bind", write(&driver("bind"), name));
    state("bound anew", rows);
    rows.row("a long override", write(&over, &"x".repeat(4095)));
    let (group, _container) = with_iommu(name, 3);
    rows.row("a device that was bound anew", device(&group, name).map(|_| 0));
}

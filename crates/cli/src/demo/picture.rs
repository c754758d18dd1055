//! Who can reach what, drawn for people.

use std::fmt::Write as _;

use ioasid::{Access, AreaView, AttachmentView, EndpointView};

/// Draws each attachment with what is mapped in its address space:
///
/// ```text
///   device 0001:00:01.0 ── group 0 ── HWPT 3 ── IOAS 2 ─┐
///      ┌────────────────────────────────────────────────┘
///      ├─ 0x0100_0000 ─ 0x0101_0fff    68 KiB  read, write
///      └─ 0x0101_2000 ─ 0x1101_1fff   256 MiB  read
/// ```
pub fn picture(view: &[EndpointView]) -> String {
    let mut text = String::new();
    for endpoint in view {
        let EndpointView { rid, group, attachments, .. } = endpoint;
        if attachments.is_empty() {
            let _ = writeln!(text, "  device {rid} ── group {group} ── attached to nothing");
        }
        for AttachmentView { pasid, hwpt, ioas, areas } in attachments {
            let pasid = pasid.map(|pasid| format!(" PASID {pasid}")).unwrap_or_default();
            let ioas = ioas.map(|ioas| format!(" ── IOAS {ioas}")).unwrap_or_default();
            let path = format!("  device {rid}{pasid} ── group {group} ── HWPT {hwpt}{ioas} ─");
            if areas.is_empty() {
                let _ = writeln!(text, "{path} nothing mapped");
            } else {
                let across = "─".repeat(path.chars().count() - 6);
                let _ = write!(text, "{path}┐\n     ┌{across}┘\n{}", branches(areas));
            }
        }
    }
    text
}

/// One line for each mapping, in columns.
fn branches(areas: &[AreaView]) -> String {
    let mut text = String::new();
    let groups = areas.iter().map(|area| hex_groups(area.range.last())).max().unwrap_or(0).max(2);
    for (number, area) in areas.iter().enumerate() {
        let branch = if number + 1 == areas.len() { "└" } else { "├" };
        let (start, last) = (address(area.range.start(), groups), address(area.range.last(), groups));
        let bytes = (area.range.last() - area.range.start()).saturating_add(1);
        let _ = writeln!(text, "     {branch}─ {start} ─ {last}  {:>9}  {}", size(bytes), access(area.access));
    }
    text
}

fn access(access: Access) -> String {
    let names = [(Access::READ, "read"), (Access::WRITE, "write")];
    names.iter().filter(|(bit, _)| access.contains(*bit)).map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}

/// How many groups of four hexadecimal digits a number needs.
fn hex_groups(number: u64) -> u32 {
    (u64::BITS - number.leading_zeros()).div_ceil(16).max(1)
}

/// `0x0101_2000`: in groups of four digits, at least `groups` of them.
pub fn address(number: u64, groups: u32) -> String {
    let groups = groups.max(hex_groups(number));
    let digits: Vec<_> = (0..groups).rev().map(|group| format!("{:04x}", number >> (16 * group) & 0xffff)).collect();
    format!("0x{}", digits.join("_"))
}

/// `68 KiB`, `1.5 GiB`: in the largest binary unit of which there is one, with a tenth if it is not a whole number.
pub fn size(bytes: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (bytes.max(1).ilog2() / 10) as usize;
    let one = 1u64 << (10 * unit);
    match bytes % one {
        0 if bytes == 1 => "1 byte".to_owned(),
        0 => format!("{} {}", bytes / one, units[unit]),
        _ => format!("{:.1} {}", bytes as f64 / one as f64, units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use ioasid::{GroupId, IovaRange, ObjectId, Pasid};

    use super::*;

    fn area(start: u64, bytes: u64, access: Access) -> AreaView {
        AreaView { range: IovaRange::new(start, bytes).unwrap(), access, absent: false }
    }

    fn endpoint(areas: Option<Vec<AreaView>>) -> EndpointView {
        let id = |number| ObjectId(NonZeroU32::new(number).unwrap());
        let attachment = |areas| AttachmentView { pasid: None, hwpt: id(3), ioas: Some(id(2)), areas };
        EndpointView {
            rid: "0001:00:01.0".parse().unwrap(),
            group: GroupId(0),
            traffic: (0, 0),
            attachments: areas.map(attachment).into_iter().collect(),
        }
    }

    #[test]
    fn a_device_is_drawn_with_its_mappings_in_columns() {
        let areas = vec![
            area(0x100_0000, 68 << 10, Access::READ | Access::WRITE),
            area(0x101_2000, 256 << 20, Access::READ),
            area(0x1101_3000, 1 << 12, Access::WRITE),
        ];
        let expected = "  device 0001:00:01.0 ── group 0 ── HWPT 3 ── IOAS 2 ─┐
     ┌────────────────────────────────────────────────┘
     ├─ 0x0100_0000 ─ 0x0101_0fff     68 KiB  read, write
     ├─ 0x0101_2000 ─ 0x1101_1fff    256 MiB  read
     └─ 0x1101_3000 ─ 0x1101_3fff      4 KiB  write
";
        assert_eq!(picture(&[endpoint(Some(areas))]), expected);
    }

    #[test]
    fn high_addresses_widen_the_column_for_all() {
        let areas = vec![area(0x1000, 4096, Access::READ), area(u64::MAX - 4095, 4096, Access::READ)];
        let text = branches(&areas);
        let widths: Vec<_> = text.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths[0], widths[1], "{text}");
        assert!(text.contains("0x0000_0000_0000_1000 ─ ") && text.contains("─ 0xffff_ffff_ffff_ffff"), "{text}");
    }

    #[test]
    fn what_is_not_there_is_said() {
        assert_eq!(picture(&[]), "");
        assert!(picture(&[endpoint(None)]).ends_with("── attached to nothing\n"));
        assert!(picture(&[endpoint(Some(Vec::new()))]).ends_with("── IOAS 2 ─ nothing mapped\n"));
    }

    #[test]
    fn an_attachment_of_a_pasid_names_it() {
        let mut endpoint = endpoint(Some(Vec::new()));
        endpoint.attachments[0].pasid = Pasid::new(5);
        assert!(picture(&[endpoint]).contains("0001:00:01.0 PASID 5 ── group"));
    }

    #[test]
    fn sizes_are_in_the_unit_that_fits() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (69632, "68 KiB"),
            (256 << 20, "256 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn addresses_are_in_groups_of_four_digits() {
        assert_eq!(address(0, 1), "0x0000");
        assert_eq!(address(0x101_2000, 2), "0x0101_2000");
        assert_eq!(address(0x1_0000_0000, 2), "0x0001_0000_0000");
        assert_eq!(address(u64::MAX, 0), "0xffff_ffff_ffff_ffff");
    }
}

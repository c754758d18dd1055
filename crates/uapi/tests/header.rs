//! The structures and constants of this crate are those of Linux's own headers: a C compiler is asked.
//!
//! - `IOASID_KERNEL_HEADERS` names the folder of headers to compare with; without it, it is `/usr/include`.
//! - `IOASID_KERNEL_SOURCE` names the sources of a kernel, for a header that is not installed.
//!
//! Those of Linux 7.3 have to define everything that is here. Of another version's, what they do not define cannot be
//! compared; how much was, and what was not, is printed. A structure that lacks a field there is an older one: of its
//! other fields, those with a name that means something are compared, but neither its size nor what is reserved in it.
//! One of a newer Linux may be longer.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use ioasid_uapi::description::{HEADERS, Header, Layout};

#[test]
fn what_is_here_of_iommufd_h_is_as_linux_has_it() {
    let Some(compared) = compare("linux/iommufd.h") else { return };
    for basic in ["destroy", "ioas_alloc", "ioas_iova_ranges", "ioas_map", "ioas_unmap"] {
        let structure = format!("iommu_{basic}");
        assert!(compared.contains(&structure), "the header has no complete struct {structure}");
        let request = structure.to_uppercase();
        assert!(compared.contains(&request), "the header has no {request}");
    }
}

#[test]
fn what_is_here_of_vfio_h_is_as_linux_has_it() {
    let Some(compared) = compare("linux/vfio.h") else { return };
    assert!(compared.contains("vfio_region_info"), "the header has no complete struct vfio_region_info");
}

#[test]
fn what_is_here_of_iommufd_test_h_is_as_linux_has_it() {
    let Some(compared) = compare("drivers/iommu/iommufd/iommufd_test.h") else { return };
    assert!(compared.contains("iommu_test_cmd"), "the header has no complete struct iommu_test_cmd");
}

#[test]
fn what_is_here_of_our_own_header_is_all_of_it() {
    let Some(compared) = compare("include/ioasid.h") else { return };
    let text = std::fs::read_to_string(own("include/ioasid.h")).unwrap();
    let words = || text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let structures = text.lines().filter_map(|line| line.strip_prefix("struct ")?.strip_suffix(" {"));
    let requests =
        text.lines().filter_map(|line| line.strip_prefix("#define ")?.split_once(" _IO(")).map(|(name, _)| name);
    let missing: Vec<_> = structures.chain(requests).filter(|name| !compared.contains(*name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let values = words().filter(|word| word.starts_with("IOASID_") && !word.starts_with("IOASID_CMD_"));
    let missing: Vec<_> = values.filter(|name| !compared.contains(*name)).collect();
    assert!(missing.iter().all(|name| ["IOASID_H", "IOASID_TYPE"].contains(name)), "{missing:?}");
}

/// A file of this crate.
fn own(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// One line of C for the compiler to judge.
struct Claim {
    /// The structure or constant that it is about.
    about: &'static str,
    /// An expression that compiles if what it is about is defined.
    defined: String,
    /// An expression that is not 0 if the claim holds.
    holds: String,
    /// Only to be made of a structure that has all of its fields.
    complete_only: bool,
}

/// Compares with a header what is here of it, and returns the constants and the complete structures that were compared;
/// `None` if there is no header or no compiler.
fn compare(path: &str) -> Option<BTreeSet<String>> {
    let header = HEADERS.iter().find(|header| header.path == path).unwrap();
    let compiler = Compiler::new(header)?;
    let claims = claims(header);

    let mut undefined = BTreeSet::new();
    loop {
        let found = compiler.errors(&claims, |at, claim| {
            (!undefined.contains(&at)).then(|| format!("_Static_assert(sizeof({}), \"\");", claim.defined))
        });
        if found.is_empty() {
            break;
        }
        undefined.extend(found);
    }
    let incomplete: BTreeSet<_> = undefined.iter().map(|&at| claims[at].about).collect();
    let wrong = compiler.errors(&claims, |at, claim| {
        let skip = undefined.contains(&at) || (claim.complete_only && incomplete.contains(claim.about));
        Some(format!("_Static_assert({}, \"\");", if skip { "!SAME" } else { &claim.holds }))
    });
    let wrong: Vec<_> = wrong.iter().map(|&at| &claims[at].holds).collect();
    assert!(wrong.is_empty(), "these do not hold in {path}: {wrong:#?}");

    let complete = |name: &&str| !incomplete.contains(name);
    let structures: Vec<_> = header.layouts.concat().iter().map(|layout| layout.c_name).collect();
    let constants: Vec<_> = header.constants.concat().iter().map(|constant| constant.c_name).collect();
    say(&format!(
        "{path}: compared {} of {} structures and {} of {} constants",
        structures.iter().filter(|name| complete(name)).count(),
        structures.len(),
        constants.iter().filter(|name| complete(name)).count(),
        constants.len(),
    ));
    if !incomplete.is_empty() {
        say(&format!("{path}: another version, without all or some of {incomplete:?}"));
    }
    Some(structures.iter().chain(&constants).filter(|name| complete(name)).map(ToString::to_string).collect())
}

/// What this crate says of a header, in C.
fn claims(header: &Header) -> Vec<Claim> {
    let mut claims = Vec::new();
    for layout in header.layouts.concat() {
        let (about, size, c_type) = (layout.c_name, layout.size, c_type(&layout));
        for &(field, offset) in layout.fields {
            for c_field in c_fields(&layout, field) {
                let at = format!("__builtin_offsetof({c_type}, {c_field})");
                let complete_only = c_field.starts_with("__");
                claims.push(Claim { about, holds: format!("{at} == {offset}"), defined: at, complete_only });
            }
        }
        let bytes = format!("sizeof({c_type})");
        let holds = format!("{bytes} == {size} || (NEWER && {bytes} > {size})");
        claims.push(Claim { about, defined: bytes, holds, complete_only: true });
    }
    for constant in header.constants.concat() {
        let name = constant.c_name;
        let holds = format!("(unsigned long long)({name}) == {:#x}ull", constant.value);
        claims.push(Claim { about: name, defined: name.to_owned(), holds, complete_only: false });
    }
    claims
}

/// The type in C.
fn c_type(layout: &Layout) -> String {
    match layout.c_name.split_once('.') {
        Some((outer, member)) => format!("__typeof__(((struct {outer} *)0)->{member})"),
        None => format!("struct {}", layout.c_name),
    }
}

/// The names in C of a field, where it may be another one, the first member of a union without name, or none.
fn c_fields(layout: &Layout, field: &'static str) -> Vec<&'static str> {
    match (layout.c_name, field) {
        ("iommu_hw_info", "data_type") => vec!["in_data_type", "out_data_type"],
        ("iommu_test_cmd", "body") => vec!["add_reserved"],
        (name, "kind") if !name.starts_with("ioasid_") => vec!["type"],
        ("vfio_iommu_type1_info_cap_iova_range", "reserved") => vec!["reserved"],
        (_, "reserved") => vec!["__reserved"],
        (_, "reserved2") => vec!["__reserved2"],
        // What C leaves between its fields, and at the end.
        (_, "padding") => vec![],
        _ => vec![field],
    }
}

/// A C compiler, and a header.
struct Compiler {
    command: String,
    folders: Vec<PathBuf>,
    header: PathBuf,
}

impl Compiler {
    fn new(header: &Header) -> Option<Self> {
        let named = env::var_os("IOASID_KERNEL_HEADERS").map(PathBuf::from);
        let folder = named.clone().unwrap_or_else(|| PathBuf::from("/usr/include"));
        let (path, named) = if header.path.starts_with("linux/") {
            (folder.join(header.path), named)
        } else if header.path.starts_with("include/") {
            (own(header.path), named)
        } else {
            let Some(sources) = env::var_os("IOASID_KERNEL_SOURCE").map(PathBuf::from) else {
                say(&format!("{}: not compared, as IOASID_KERNEL_SOURCE is not set", header.path));
                return None;
            };
            (sources.join(header.path), Some(sources))
        };
        if !path.exists() {
            assert!(named.is_none(), "{} does not exist, in a folder that was named", path.display());
            say(&format!("{}: not compared, as there is no {}", header.path, path.display()));
            return None;
        }
        let command = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let there = Command::new(&command).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if there.is_err() {
            say(&format!("{}: not compared, as there is no C compiler {command:?}", header.path));
            return None;
        }
        let of_machine = folder.join(format!("{}-linux-gnu", env::consts::ARCH));
        let header = path.canonicalize().unwrap();
        Some(Self { command, folders: vec![folder, of_machine], header })
    }

    /// Compiles the lines that `line` makes of claims, and returns the positions of those in whose lines are errors.
    fn errors(&self, claims: &[Claim], line: impl Fn(usize, &Claim) -> Option<String>) -> BTreeSet<usize> {
        let mut program = format!("#include <linux/version.h>\n#include \"{}\"\n", self.header.display());
        program.push_str("enum { SAME = LINUX_VERSION_CODE >> 8 == KERNEL_VERSION(7, 3, 0) >> 8 };\n");
        program.push_str("enum { NEWER = LINUX_VERSION_CODE > KERNEL_VERSION(7, 3, 255) };\n");
        let first = program.lines().count() + 1;
        for (at, claim) in claims.iter().enumerate() {
            writeln!(program, "{}", line(at, claim).unwrap_or_default()).unwrap();
        }

        let mut command = Command::new(&self.command);
        command.env("LC_ALL", "C").args(["-std=gnu11", "-fsyntax-only", "-x", "c"]);
        for folder in &self.folders {
            command.arg("-I").arg(folder);
        }
        command.arg("-").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(program.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);

        let errors: BTreeSet<_> = text
            .lines()
            .filter(|message| message.contains("error:"))
            .filter_map(|message| message.strip_prefix("<stdin>:")?.split(':').next()?.parse::<usize>().ok())
            .filter_map(|number| number.checked_sub(first))
            .collect();
        assert_eq!(output.status.success(), errors.is_empty(), "{} says:\n{text}", self.command);
        errors
    }
}

/// Prints a line, even of a test that passes.
#[allow(clippy::explicit_write, reason = "a test that passes keeps what eprintln! prints to itself")]
fn say(line: &str) {
    writeln!(io::stderr(), "{line}").unwrap();
}

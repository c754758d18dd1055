//! What the fuzzers have found so far, once more: in `fuzz/corpus` and `fuzz/findings`.

use std::path::Path;

use super::{sequence, vfio_sequence};

#[test]
fn what_a_fuzzer_found_is_handled() {
    let count = handled("requests", sequence::perform);
    assert!(count >= 40, "{count} inputs");
    let count = handled("vfio", |bytes| drop(vfio_sequence::perform(bytes)));
    assert!(count >= 7, "{count} inputs");
}

/// Performs what is kept for a target, and returns how much that is.
fn handled(target: &str, perform: impl Fn(&[u8]) + std::panic::RefUnwindSafe) -> usize {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let mut count = 0;
    for folder in ["corpus", "findings"] {
        let Ok(entries) = std::fs::read_dir(fuzz.join(folder).join(target)) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_file() && path.extension().is_none_or(|extension| extension != "md") {
                let bytes = std::fs::read(&path).unwrap();
                if std::panic::catch_unwind(|| perform(&bytes)).is_err() {
                    panic!("{} is not handled", path.display());
                }
                count += 1;
            }
        }
    }
    count
}

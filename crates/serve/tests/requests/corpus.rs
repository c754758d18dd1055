//! What the fuzzer has found so far, once more: `fuzz/corpus/requests`, and `fuzz/findings/requests`.

use std::path::Path;

use super::sequence::perform;

#[test]
fn what_a_fuzzer_found_is_handled() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let mut count = 0;
    for folder in ["corpus/requests", "findings/requests"] {
        for entry in std::fs::read_dir(fuzz.join(folder)).unwrap() {
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
    assert!(count >= 40, "{count} inputs");
}

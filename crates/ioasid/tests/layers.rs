//! The order of the folders, which the crate's front page gives, is the order of imports and of locks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The folders, from the outermost to the innermost, and where each stands.
fn layers() -> BTreeMap<String, usize> {
    let front = fs::read_to_string(sources().join("lib.rs")).unwrap();
    let rows = front.lines().filter_map(|line| line.strip_prefix("//! | `")?.split('`').next());
    let layers: BTreeMap<String, usize> = rows.zip(0..).map(|(folder, place)| (folder.to_owned(), place)).collect();
    let modules = front.lines().filter_map(|line| {
        let module = line.trim_start_matches("pub ").strip_prefix("mod ")?;
        module.strip_suffix(';')
    });
    for module in modules {
        assert!(layers.contains_key(module), "{module} has no place in the list of layers");
    }
    layers
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The code of a file: no comments, and no tests at its end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\n").next().unwrap_or("");
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// What a file imports from other folders of the crate.
fn imports(code: &str) -> Vec<String> {
    let mut imports = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        // A list of folders in braces would not be seen, so there is none.
        assert!(!rest.starts_with('{'), "`crate::{{` hides what is imported");
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        imports.push(name);
    }
    imports
}

#[test]
fn imports_go_downwards_only() {
    let (layers, mut files) = (layers(), Vec::new());
    rust_files(&sources(), &mut files);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in files {
        let relative = file.strip_prefix(sources()).unwrap();
        let own =
            relative.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        let Some(place) = layers.get(&own) else { continue };
        // Tests may use what they like.
        if relative.ends_with("tests.rs") || relative.ends_with("gate_model.rs") {
            continue;
        }
        for other in imports(&code(&fs::read_to_string(&file).unwrap())) {
            // What is no folder is a name that the front page exports.
            let Some(below) = layers.get(&other) else { panic!("{} imports crate::{other}", relative.display()) };
            seen += 1;
            if below < place {
                wrong.push(format!("{} imports {other}, which stands above {own}", relative.display()));
            }
        }
    }
    assert!(seen > 300, "{seen} imports");
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn locks_are_in_the_order_of_their_folders() {
    let layers = layers();
    let ranks = fs::read_to_string(sources().join("base/rank.rs")).unwrap();
    let list = ranks.split("\nranks! {").nth(1).unwrap();
    let folders: Vec<&str> = list
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .filter_map(|line| line.trim().split_once("::"))
        .map(|(folder, _)| folder)
        .collect();
    assert!(folders.len() > 20, "{folders:?}");
    let places: Vec<usize> = folders.iter().map(|folder| layers[*folder]).collect();
    assert!(places.is_sorted(), "{folders:?}");
}

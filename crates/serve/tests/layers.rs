//! The order of the folders, which the crate's front page gives, is the order of imports.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The folders, from the outermost to the innermost.
fn layers() -> Vec<String> {
    let front = fs::read_to_string(sources().join("lib.rs")).unwrap();
    let rows = front.lines().filter_map(|line| line.strip_prefix("//! | ")?.trim_start_matches('[').strip_prefix('`'));
    let layers: Vec<String> = rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned())).collect();
    for line in front.lines() {
        let module = line.trim_start_matches("pub ").strip_prefix("mod ").and_then(|module| module.strip_suffix(';'));
        assert!(module.is_none_or(|module| layers.iter().any(|layer| layer == module)), "{line} has no place");
    }
    layers
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn imports_go_downwards_only() {
    let (layers, mut files) = (layers(), Vec::new());
    let place = |name: &str| layers.iter().position(|layer| layer == name);
    rust_files(&sources(), &mut files);
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for file in files {
        let relative = file.strip_prefix(sources()).unwrap().to_str().unwrap();
        let own = relative.split('/').next().unwrap().trim_end_matches(".rs");
        let Some(own) = place(own) else { continue };
        let text = fs::read_to_string(&file).unwrap();
        // Tests at the end may use what they like, and comments name what they like.
        let code = text.split("#[cfg(test)]\n").next().unwrap();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for (at, path) in line.match_indices("crate::") {
                let name = &line[at + path.len()..];
                let name = name.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
                let other = place(name).unwrap_or_else(|| panic!("{relative} imports crate::{name}"));
                seen += 1;
                if other < own {
                    wrong.push(format!("{relative} imports {name}, which stands above it"));
                }
            }
        }
    }
    assert_eq!((layers.len(), wrong), (9, vec![]));
    assert!(seen > 50, "{seen} imports");
}

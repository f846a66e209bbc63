//! The documents tell the truth about the tree.

use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

#[test]
fn documents_name_only_files_that_exist() {
    for document in ["ARCHITECTURE.md", "README.md", "docs/nat.md"] {
        let text = std::fs::read_to_string(root().join(document)).expect(document);
        let names = text.split('`').skip(1).step_by(2).filter(|name| {
            let is_path = name.contains('/') && !name.starts_with('/') && !name.contains([' ', '*', ':']);
            is_path && (name.ends_with('/') || name.contains('.') || name.starts_with("tools/"))
        });
        let missing: Vec<_> =
            names.filter(|name| !root().join(name.trim_start_matches("./")).exists()).collect();
        assert!(missing.is_empty(), "{document} names {missing:?}");
    }
}

#[test]
fn the_table_of_stages_is_the_order_of_the_walk() {
    let code = std::fs::read_to_string(root().join("pipeline/src/lib.rs")).expect("the pipeline");
    let steps: Vec<&str> =
        code.lines().filter_map(|line| line.trim().strip_prefix("step!(")?.strip_suffix(");")).collect();
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let (_, table) = text.split_once("| stage | decides |").expect("the table of stages");
    let rows: Vec<&str> = table
        .lines()
        .map(str::trim)
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .filter_map(|line| line.split('`').nth(1))
        .collect();
    assert_eq!(rows, steps);
}

/// Returns all files below `directory` whose name ends in `.rs`.
fn sources(directory: &Path, files: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(std::fs::read_to_string(path).expect("a source"));
        }
    }
}

#[test]
fn the_page_about_nat_names_only_tests_that_exist() {
    let mut files = Vec::new();
    sources(&root().join("tests/tests"), &mut files);
    sources(&root().join("pipeline/src"), &mut files);
    let text = std::fs::read_to_string(root().join("docs/nat.md")).expect("docs/nat.md");
    let is_test = |name: &&str| {
        name.contains('_')
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            && name.len() > 15
    };
    let names: Vec<&str> = text.split('`').skip(1).step_by(2).filter(is_test).collect();
    assert!(names.len() > 40);
    let missing: Vec<_> =
        names.iter().filter(|name| !files.iter().any(|file| file.contains(&format!("fn {name}(")))).collect();
    assert!(missing.is_empty(), "docs/nat.md names {missing:?}");
    for line in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| |")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        assert!(matches!(cells[3], "met" | "partly" | "not met" | "not applicable"), "{line}");
        assert!(cells[3] != "met" || !cells[4].is_empty() || !cells[5].is_empty(), "{line}");
    }
}

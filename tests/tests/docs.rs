//! The documents tell the truth about the tree.

use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

#[test]
fn documents_name_only_files_that_exist() {
    for document in ["ARCHITECTURE.md", "README.md"] {
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

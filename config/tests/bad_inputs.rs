//! Bad files, and exactly what is said about them: `bad_inputs.txt` has one block a case.
//!
//! `### what it is about`, the file, `---`, the findings. `BLESS=1` writes the findings of this run into it, to
//! be read before they are committed.

use config::Document;

const CASES: &str = include_str!("bad_inputs.txt");

struct Case<'t> {
    title: &'t str,
    toml: &'t str,
    expected: &'t str,
}

fn cases() -> Vec<Case<'static>> {
    let blocks = CASES.split("### ").skip(1);
    blocks
        .map(|block| {
            let (title, rest) = block.split_once('\n').expect("a title has a line");
            let (toml, expected) = rest.split_once("---\n").expect("a case has findings");
            Case { title, toml, expected: expected.trim_end() }
        })
        .collect()
}

fn findings(toml: &str) -> String {
    Document::parse(toml, "x.toml").map_or_else(|found| found.to_string(), |_| String::new())
}

#[test]
fn each_bad_file_gets_its_findings() {
    if std::env::var_os("BLESS").is_some() {
        let blessed: Vec<String> = cases()
            .iter()
            .map(|case| format!("### {}\n{}---\n{}\n", case.title, case.toml, findings(case.toml)))
            .collect();
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bad_inputs.txt"), blessed.join("\n"))
            .expect("the source tree is writable");
        return;
    }
    assert!(cases().len() > 40);
    for case in cases() {
        assert!(!case.expected.is_empty(), "{}: nothing is expected", case.title);
        assert_eq!(findings(case.toml), case.expected, "{}", case.title);
    }
}

#[test]
fn findings_are_rendered_with_the_line_and_what_is_allowed() {
    let found = Document::parse("[workers]\nbudget = 0 # none\n", "x.toml").expect_err("too small");
    let expected = "\
error: workers: budget: 0 is too small
 --> x.toml:2:10
  |
2 | budget = 0 # none
  |          ^
  |
  = help: allowed: 1 to 256
";
    assert_eq!(found.render(false), expected);
    assert!(found.render(true).contains("\u{1b}["));
}

#[test]
fn a_clash_with_another_owners_object_is_placed_in_the_file() {
    let others = Document::parse("[[network]]\nname = \"front\"\n", "cli").expect("good");
    let text = "[[network]]\nname = \"front\"\n";
    let found = Document::parse_beside(text, "x.toml", &others).expect_err("taken");
    assert_eq!(
        found.lines(),
        ["x.toml:2:8: network 'front': name: 'front' is the name of another network; allowed: a unique name"]
    );
    let port = "[[port]]\nname = \"p\"\nnetwork = \"front\"\n";
    assert!(Document::parse(port, "x.toml").is_err());
    let document = Document::parse_beside(port, "x.toml", &others).expect("front is there");
    assert_eq!((document.networks.len(), document.ports.len()), (0, 1));
}

#[test]
fn an_object_of_another_owner_that_the_file_leaves_behind_is_told_without_a_line() {
    let others =
        Document::parse("[[network]]\nname = \"front\"\n[[port]]\nname = \"p\"\nnetwork = \"front\"\n", "");
    let others = Document { networks: Vec::new(), ..others.expect("good") };
    let found = Document::parse_beside("", "x.toml", &others).expect_err("the port has no network");
    assert_eq!(
        found.lines(),
        [
            "port 'p': network: there is no network 'front'; allowed: the name of a [[network]], and there is none"
        ]
    );
}

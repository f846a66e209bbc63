//! Any text as a configuration file: errors that can be shown, or a tree that reads back from its own print.
#![no_main]

use config::Document;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Document::parse(text, "fuzz.toml") {
        Err(found) => {
            assert!(!found.list().is_empty(), "an error says what is wrong");
            let _ = (found.lines(), found.render(true), found.render(false));
        }
        Ok(document) => {
            document.validate().expect("what was read is valid");
            let printed = document.to_toml();
            let again = Document::parse(&printed, "printed.toml").expect("our own print is readable");
            assert_eq!(again, document);
            assert!(document.diff(&again).is_empty());
            let json = serde_json::to_string(&document).expect("a tree prints as JSON");
            assert_eq!(serde_json::from_str::<Document>(&json).expect("our own JSON"), document);
            let _ = document.limits.sizing(2, 8);
        }
    }
});
